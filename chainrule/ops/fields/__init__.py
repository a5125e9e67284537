"""What ops do to fields: expectations of single elements and of pairs, over redraws of the weights (``ir.field``)."""

from chainrule.ops.fields import attention, convolutions, layers, lookup, losses, movement, norms, pooling, softmax
from chainrule.ops.fields.registry import RULES

__all__ = [
    "RULES",
    "attention",
    "convolutions",
    "layers",
    "lookup",
    "losses",
    "movement",
    "norms",
    "pooling",
    "softmax",
]
