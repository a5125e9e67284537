"""The number that a node multiplies a value by: scales of logits, and of residual streams that are damped.

Read by ``moments_attention`` and by the plans of ``initialize``.
"""

from __future__ import annotations

import chainrule.ops  # noqa: F401  it declares products and quotients
from chainrule.ir import OPS, Node


def factor_of(node: Node) -> float | None:
    """What the value among a product's or quotient's operands is multiplied by; None where that is no number.

    >>> from chainrule.ir import variable
    >>> x = variable("x")
    >>> factor_of(x * 3.0), factor_of(x / 4.0), factor_of(4.0 / x), factor_of(x + 1.0)
    (3.0, 0.25, None, None)
    """
    if node.op not in (OPS["mul"], OPS["div"]):
        return None
    first, second = (operand.number for operand in node.inputs)
    if node.op is OPS["div"]:
        return 1.0 / float(second) if second else None
    number = first if second is None else second
    return None if number is None else float(number)
