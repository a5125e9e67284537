"""Direct mode: each derivative as one closed form, of order one, two or three."""

from __future__ import annotations

from chainrule.errors import ChainruleError
from chainrule.interpreters.differentiate import gradient, jvp
from chainrule.interpreters.linearize import jacobian
from chainrule.ir import Node, constant, shape_text
from chainrule.ops.contraction import einsum
from chainrule.ops.movement import broadcast
from chainrule.verbs.expression import Expression, resolve
from chainrule.verbs.named_program import NamedProgram
from chainrule.verbs.naming import shortest, useful_names
from chainrule.verbs.steps import Step
from chainrule.verbs.zeros import is_zero, why_zero

ORDERS = (1, 2, 3)
_MAX_NAMED = 30  # more names are not looked for in a higher derivative
_MAX_INDICES = 4  # of a third derivative


def direct_step(program: NamedProgram, wrt: str, layout: str, seed: Node | None, order: int) -> Step:
    """The derivative of the output by ``wrt``, written out.

    Args:
        wrt: a variable; a named intermediate is cut free of what it means.
        layout: of the first derivative. Higher ones are F.shape + X.shape + X.shape (+ X.shape) in any layout.
        seed: cotangent of the output, or None. order: 1, 2 or 3.

    Raises:
        ChainruleError: a third derivative with more than four indices.
    """
    target, of = program.symbol[wrt], program.output
    definitions = program.without(wrt)
    output = resolve(program.symbol[of], definitions)
    if seed is not None:
        indices = tuple(range(output.type.rank))
        output = einsum(([indices, indices], ()), output, seed)
    _refuse_too_many_indices(of, wrt, output, target, order)
    if order == 1:
        shape = (*target.shape, *output.shape) if layout == "denominator" else (*output.shape, *target.shape)
    else:
        shape, layout = (*output.shape, *target.shape * order), "numerator"
    before, found, note = output, output, ""
    for k in range(order):
        before, found = found, jacobian(found, target, layout)
        if found is None or is_zero(found):
            note = why_zero(_symbol(of, wrt, k), wrt, before, target)
            found = None
            break
    node = found if found is not None else broadcast(constant(0.0), shape)
    if order > 1 and len(definitions) <= _MAX_NAMED:
        node = shortest(node, None, useful_names(definitions, of))
    expression = Expression(node, definitions, program.leaves, derivative=True)
    return Step(
        of,
        wrt,
        (),
        expression,
        expression,
        node.shape,
        note=note,
        raw=None if found is None else _unsimplified(before, target, layout),
        order=order,
    )


def _unsimplified(output: Node, target: Node, layout: str) -> Node | None:
    """The derivative as the rules give it: forward by a scalar, where each term is one product; else reverse.

    None for the derivative of a tensor by a tensor, which is read off simplified terms.
    """
    if target.shape == () and (output.shape == () or layout == "denominator"):
        return jvp([output], [target], [constant(1.0, target.type.dtype)])[0]
    return gradient(output, [target])[0] if output.shape == () else None


def _symbol(of: str, wrt: str, order: int) -> str:
    """``y``, ``dy/dx``, ``d2y/dx2``."""
    return of if order == 0 else f"d{of}/d{wrt}" if order == 1 else f"d{order}{of}/d{wrt}{order}"


def _refuse_too_many_indices(of: str, wrt: str, output: Node, target: Node, order: int) -> None:
    indices = output.type.rank + order * target.type.rank
    if order > 2 and indices > _MAX_INDICES:
        raise ChainruleError(
            f"the third derivative of {of} by {wrt} has {indices} indices",
            given=f"{of} of shape ({shape_text(output.shape)}), {wrt} of shape ({shape_text(target.shape)})",
            required=f"at most {_MAX_INDICES}",
            instead="order=2, or a scalar times it: cotangent=..., and one element or direction of the variable",
        )
