"""A Jacobian read off a linear function: the terms of V(G) with the factor G taken away.

Reverse mode gives the cotangent of a variable as an expression V(G) linear in a free cotangent G. Each of its terms
has G once; without it, and with its indices made free, the term is the Jacobian's. Movement of G (slices, reshapes) is
carried over by ``Op.lift``. No identity matrix is multiplied by anything.
"""

from __future__ import annotations

from dataclasses import replace

from chainrule.errors import UnsupportedOpError
from chainrule.interpreters.differentiate import gradient, vjp
from chainrule.interpreters.rebuild_terms import Builder
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.terms import Algebra, Factor, Sum, Term, collect, rename
from chainrule.ir import Node, TensorType, toposort, variable
from chainrule.ops.contraction import einsum, eye


def jacobian(output: Node, wrt: Node, layout: str = "denominator") -> Node | None:
    """dF/dX as one tensor, simplified; None where F does not depend on X.

    Args:
        layout: ``"denominator"`` (the book's): X.shape + F.shape, so that d(Omega h)/dh is Omega'.
            ``"numerator"``: F.shape + X.shape.

    Raises:
        UnsupportedOpError: an op on the path has no derivative, or no matrix form.
    """
    if output.shape == ():  # the gradient is the Jacobian, in either layout
        (whole,) = gradient(output, [wrt])
        return None if whole is None else simplify(whole)
    g = variable("cotangent of F", TensorType(output.shape, output.type.dtype))
    (back,) = vjp([output], [g], [wrt])
    if back is None:
        return None
    found = jacobian_of_linear(simplify(back), g)
    if layout == "denominator":
        return simplify(found)
    rank_x, rank = wrt.type.rank, found.type.rank
    return simplify(einsum(([tuple(range(rank))], (*range(rank_x, rank), *range(rank_x))), found))


def jacobian_of_linear(value: Node, g: Node) -> Node:
    """The tensor J (value.shape + g.shape) with value = J : g, for a value that is linear in the leaf ``g``."""
    depends: set[Node] = set()
    for n in toposort([value]):
        if n is g or any(i in depends for i in n.inputs):
            depends.add(n)
    return _jacobian(value, g, depends)


def _reaches(node: Node, g: Node) -> bool:
    return g in toposort([node])


def _jacobian(value: Node, g: Node, depends: set[Node]) -> Node:
    algebra = Algebra()
    free = algebra.indices_of(value.type)
    columns = algebra.indices_of(g.type)
    terms: Sum = []
    pending = collect(algebra.expand(value, free), algebra)
    while pending:
        term = pending.pop(0)
        moving = [f for f in term.factors if f.atom in depends or _reaches(f.atom, g)]
        if len(moving) != 1 or moving[0].power != 1:
            raise UnsupportedOpError("a cotangent that is not linear", given=str(value))
        (f,) = moving
        others = replace(term, factors=tuple(x for x in term.factors if x is not f))
        if f.atom is g:
            terms.append(_without(others, f, columns, algebra, g))
            continue
        split = algebra.expand(f.atom, f.indices) if f.atom.op.terms is not None else None
        if split is not None and not (len(split) == 1 and split[0].factors == (f,)):
            pending += algebra.multiply([[others], split])
            continue
        lifted = _lift(f.atom, g, depends)
        terms.append(Term(term.coefficient, (*others.factors, Factor(lifted, (*f.indices, *columns))), term.summed))
    return Builder(algebra, value.type.dtype).sum(terms, (*free, *columns))


def _without(others: Term, f: Factor, columns: tuple[int, ...], algebra: Algebra, g: Node) -> Term:
    """The term without G, G's summed indices renamed to the Jacobian's and its free ones tied by identities."""
    image: dict[int, int] = {}
    ties: list[Factor] = []
    for own, column in zip(f.indices, columns, strict=True):
        if own is None:
            continue
        if own in others.summed and own not in image:
            image[own] = column
        else:  # a free index, or the second place of a diagonal g[i, i]
            at = image.get(own, own)
            ties.append(Factor(eye(algebra.sizes[own], g.type.dtype), (min(at, column), max(at, column))))
    summed = tuple(i for i in others.summed if i not in image)
    moved = rename(replace(others, summed=summed), image)
    return replace(moved, factors=(*moved.factors, *ties))


def _lift(node: Node, g: Node, depends: set[Node]) -> Node:
    """The Jacobian of a movement: the same movement of the Jacobian of what it moves."""
    if node.op.lift is None:
        raise UnsupportedOpError(
            f"no matrix form of the derivative through {node.op.name!r}",
            instead="cotangent=... for the vector-Jacobian product, which needs none",
        )
    inputs = [_jacobian(i, g, depends) if _reaches(i, g) else i for i in node.inputs]
    return node.op.lift(node, inputs, g.shape)
