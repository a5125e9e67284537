"""Direct mode: each derivative as one closed form, of order one, two or three."""

from __future__ import annotations

from chainrule.errors import ChainruleError
from chainrule.interpreters.linearize import jacobian
from chainrule.ir import Node, constant, shape_text
from chainrule.ops.contraction import einsum
from chainrule.ops.movement import broadcast
from chainrule.verbs.expression import Expression, resolve
from chainrule.verbs.named_program import NamedProgram
from chainrule.verbs.steps import Step
from chainrule.verbs.zeros import is_zero, why_zero

ORDERS = (1, 2, 3)
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
    found, note = output, ""
    for k in range(order):
        before, found = found, jacobian(found, target, layout)
        if found is None or is_zero(found):
            note = why_zero(_symbol(of, wrt, k), wrt, before, target)
            found = None
            break
    node = found if found is not None else broadcast(constant(0.0), shape)
    expression = Expression(node, definitions, program.leaves)
    return Step(
        of,
        wrt,
        (),
        expression,
        expression,
        node.shape,
        note=note,
        lines=((expression.text, _symbol(of, wrt, order)),),
        order=order,
    )


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
