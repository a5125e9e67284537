"""Rewrites for code that runs: the same function computed without overflow, cancellation or an inverse.

They are declared as ``Op.stable`` of the op at the root of each pattern and applied where source is written. Printed
answers keep the form in which a person would write them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chainrule.ir import OPS, Node, apply, constant, substitute_nodes


# ---- logarithms --------------------------------------------------------------------------------------------
def stable_logarithm(node: Node) -> Node | None:
    """``log(1 + exp(u))``, ``log(sum(exp(u)))``, ``log(softmax(u))``, ``log(sigmoid(u))``, ``log|det(X)|``."""
    (x,) = node.inputs
    name = x.op.name
    if name == "softmax":
        return apply(OPS["log_softmax"], x.inputs[0], **x.params)
    if name == "sigmoid":
        return -apply(OPS["softplus"], -x.inputs[0])
    if name == "det" or (name == "abs" and x.inputs[0].op.name == "det"):
        return apply(OPS["logdet"], (x if name == "det" else x.inputs[0]).inputs[0])
    if name == "add":
        one, e = sorted(x.inputs, key=lambda i: i.op.name == "exp")
        if one.number == 1 and e.op.name == "exp":
            return apply(OPS["softplus"], e.inputs[0])
    if name == "sub" and x.inputs[0].number == 1 and x.inputs[1].op.name == "sigmoid":
        return -apply(OPS["softplus"], x.inputs[1].inputs[0])
    axes = _summed_exponential(x)
    if axes is None:
        return None
    total = x.inputs[0].inputs[0]
    for axis in reversed(axes):  # of a sum over several axes, one after the other
        total = apply(OPS["logsumexp"], total, axis=axis)
    return total


def _summed_exponential(x: Node) -> list[int] | None:
    """The axes over which ``x`` sums exponentials, if that is what it does."""
    operands = x.params.get("operands")
    if operands is None or len(operands) != 1 or x.inputs[0].op.name != "exp":
        return None
    own, result = operands[0], x.params["result"]
    plain = len(set(own)) == len(own) and tuple(i for i in own if i in result) == tuple(result)
    return [a for a, i in enumerate(own) if i not in result] if plain and len(result) < len(own) else None


def stable_power(node: Node) -> Node | None:
    """``sqrt(u)^2`` without the root; ``u^(-1/2)`` of a sum of squares, which is 0 where all of them are."""
    base, exponent = node.inputs
    if base.op.name == "sqrt" and exponent.number == 2:
        return base.inputs[0]
    return None


# ---- norms, in derivatives ---------------------------------------------------------------------------------
# A norm may be 0 (a point's distance from itself). Its derivative is 0 by convention, as that
# of torch's norm, and must not become 0 * inf; the value of a formula is left as it is.
LIMIT = "limit"


def limit_of_power(node: Node) -> Node | None:
    """``s^(-1/2)``, 0 where the sum of squares ``s`` is."""
    base, exponent = node.inputs
    if exponent.number is not None and exponent.number < 0 and exponent.number % 1 and _sums_of_squares(base):
        return _positive(base) ** exponent
    return None


def limit_of_quotient(node: Node) -> Node | None:
    """``x / sqrt(s)`` and ``x / s^(3/2)``, 0 where the sum of squares ``s`` is."""
    numerator, root = node.inputs
    below = root
    while root.op.family == "linear" or (len(root.inputs) == 1 and "operands" in root.params):
        root = root.inputs[0]
    base, *exponent = root.inputs or (root,)
    power = exponent[0].number if root.op.name == "pow" else 0.5 if root.op.name == "sqrt" else None
    if power is None or not power % 1 or not _sums_of_squares(base):
        return None
    (positive,) = substitute_nodes([below], {base: _positive(base)})
    return numerator / positive


def _positive(base: Node) -> Node:
    above = apply(OPS["gt"], base, constant(0.0, base.type.dtype))
    return apply(OPS["where"], above, base, constant(np.inf, base.type.dtype))


def _sums_of_squares(x: Node) -> bool:
    """Whether ``x`` is a sum of squares, or an array of them."""
    while x.op.family == "linear":
        x = x.inputs[0]
    operands = x.params.get("operands")
    if operands is None:
        return False
    square = x.inputs[0]
    if len(operands) == 1:
        return square.op.name == "pow" and square.inputs[1].number == 2
    first, second, *more = x.inputs
    return not more and first is second and operands[0] == operands[1]


# ---- quotients ---------------------------------------------------------------------------------------------
def stable_quotient(node: Node) -> Node | None:
    """``exp(u) / (1 + exp(u))``, ``1 / (1 + exp(u))`` and ``exp(u) / sum(exp(u))``."""
    above, below = node.inputs
    if below.op.name == "add":
        one, e = sorted(below.inputs, key=lambda i: i.op.name == "exp")
        if one.number == 1 and e.op.name == "exp" and below.shape == node.shape:
            u = e.inputs[0]
            if above is e:
                return apply(OPS["sigmoid"], u)
            if above.number == 1:
                return apply(OPS["sigmoid"], u.inputs[0] if u.op.name == "neg" else -u)
    total = below
    while total.op.name in ("broadcast", "expand_dims"):
        total = total.inputs[0]
    axes = _summed_exponential(total)
    if axes is None or len(axes) != 1 or above is not total.inputs[0]:
        return None
    # Without expand_dims the sum is over the only axis, or it would not line up with what it divides.
    lined_up = above.type.rank == 1 or (below.type.rank == above.type.rank and _restores(below, axes[0]))
    return apply(OPS["softmax"], above.inputs[0], axis=axes[0]) if lined_up else None


def _restores(below: Node, axis: int) -> bool:
    """Whether the sum comes back as a dimension of size 1 at ``axis``."""
    while below.op.name == "broadcast":
        below = below.inputs[0]
    return below.op.name == "expand_dims" and tuple(below.params["axes"]) == (axis,)


# ---- inverses ----------------------------------------------------------------------------------------------
def solve_for_inverse(node: Node) -> Node | None:
    """``inv(A) @ b`` is the solution of ``A x = b``, of ``A' x = b`` where the inverse is transposed.

    A sum that holds an inverse is multiplied out when that makes it a sum of solutions: ``(inv(A) + inv(A)') @ b``.
    """
    operands, result = node.params["operands"], tuple(node.params["result"])
    if len(operands) != 2:
        return None
    for k in (0, 1):
        inverse, own = _transposed(node.inputs[k], operands[k])
        other, rest = node.inputs[1 - k], operands[1 - k]
        if len(own) != 2 or own[0] == own[1] or not 1 <= len(rest) <= 2:
            continue
        if inverse.op.name in ("add", "sub") and any(_is_inverse(x) for x in inverse.inputs):
            parts = [_times(x, own, other, rest, result) for x in inverse.inputs if x.shape == inverse.shape]
            if len(parts) == 2 and len(rest) == 1:
                return apply(inverse.op, *parts)
        if inverse.op.name != "inv":
            continue
        shared = [i for i in own if i in rest]
        if len(shared) != 1 or shared[0] in result or len(set(rest)) != len(rest):
            continue
        (j,) = shared
        matrix = inverse.inputs[0] if own[1] == j else _permuted(inverse.inputs[0], (0, 1), (1, 0))
        kept = own[0] if own[1] == j else own[1]
        columns = tuple(i for i in rest if i != j)
        found = apply(OPS["solve"], matrix, _permuted(other, rest, (j, *columns)))
        if set(result) != {kept, *columns}:
            continue
        return _permuted(found, (kept, *columns), result)
    return None


def _transposed(x: Node, own: Sequence[int]) -> tuple[Node, Sequence[int]]:
    """What a transposed matrix is the transpose of, with its indices."""
    if x.params.get("operands") == ((0, 1),) and x.params["result"] == (1, 0) and len(own) == 2:
        return x.inputs[0], (own[1], own[0])
    return x, own


def _is_inverse(x: Node) -> bool:
    return _transposed(x, (0, 1))[0].op.name == "inv"


def _times(x: Node, own: Sequence[int], other: Node, rest: Sequence[int], result: Sequence[int]) -> Node:
    """The product of two factors, as a solution where that is possible."""
    number: dict[int, int] = {}
    for i in (*own, *rest):
        number.setdefault(i, len(number))
    operands = tuple(tuple(number[i] for i in o) for o in (own, rest))
    product = apply(OPS["einsum"], x, other, operands=operands, result=tuple(number[i] for i in result))
    return solve_for_inverse(product) or product


def _permuted(x: Node, own: Sequence[int], result: Sequence[int]) -> Node:
    if tuple(own) == tuple(result):
        return x
    number = {i: n for n, i in enumerate(own)}
    return apply(OPS["einsum"], x, operands=(tuple(number.values()),), result=tuple(number[i] for i in result))
