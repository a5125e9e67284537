"""What a parameter is for: a weight of a sum, a bias, a scale, a table of vectors. By the module that owns it.

``graph_roles`` says the same by what the traced program does with a parameter, where there is an example; this file
is for what is known without one, and for what a graph does not show (padding rows, gates, packed projections).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from chainrule.verbs.initialize.laws import Layout

KINDS = ("weight", "recurrent", "embedding", "bias", "scale", "position", "other")


@dataclass(frozen=True)
class Role:
    """What one parameter is for.

    Attributes:
        kind: one of :data:`KINDS`. ``recurrent`` weights act from step to step; ``position`` is added like a bias but
            has more than the units for dimensions; ``other`` is left as it is.
        layout: of a weight, None where it is not known which dimensions are what.
        fans: (fan_in, fan_out) of one projection, where it has them.
        parts: projections or gates that are stacked along dimension 0.
        forget: which of the gates forgets, -1 for none.
        padding: row that stays zero, -1 for none.
        value: of scales and biases, what they start from.
        module: class that owns it, for tables.
    """

    kind: str
    layout: Layout | None = None
    fans: tuple[int, int] = (0, 0)
    parts: int = 1
    forget: int = -1
    padding: int = -1
    value: float = 0.0
    module: str = ""


_DENSE = Layout((0,), (1,))
_GATES = {"LSTM": (4, 1), "LSTMCell": (4, 1), "GRU": (3, -1), "GRUCell": (3, -1)}
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_NORMS = ("LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm", "InstanceNorm")


def module_role(module: nn.Module, own: str, shape: tuple[int, ...]) -> Role:
    """The role of the parameter ``own`` of a module, ``other`` where its class does not say."""
    name = type(module).__name__
    role = _known(module, name, own, shape)
    fans = role.layout.fans(shape) if role.layout is not None else (0, 0)
    if role.parts > 1 and role.layout is not None and role.layout.outputs == (0,):
        fans = (fans[0], fans[1] // role.parts)
    return Role(role.kind, role.layout, fans, role.parts, role.forget, role.padding, role.value, name)


def _known(module: nn.Module, name: str, own: str, shape: tuple[int, ...]) -> Role:
    if isinstance(module, nn.modules.conv._ConvNd) and own == "weight":
        kernel = tuple(range(2, len(shape)))
        if module.transposed:
            return Role("weight", Layout((1,), (0,), kernel=kernel, groups=module.groups, transposed=True))
        return Role("weight", Layout((0,), (1,), kernel=kernel, groups=module.groups))
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        parts, forget = _GATES.get(name, (1, -1))
        if own.startswith("bias"):
            return Role("bias", parts=parts, forget=forget if own.startswith("bias_ih") else -1)
        return Role("recurrent" if own.startswith("weight_hh") else "weight", _DENSE, parts=parts)
    if isinstance(module, nn.MultiheadAttention):
        if own == "in_proj_weight":
            return Role("weight", _DENSE, parts=3)
        if own in ("bias_k", "bias_v"):
            return Role("position", fans=(1, 1))
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        padding = module.padding_idx
        return Role("embedding", fans=(1, shape[1]), padding=-1 if padding is None else padding)
    if isinstance(module, nn.Bilinear) and own == "weight":
        return Role("weight", Layout((0,), (1, 2)))
    if isinstance(module, nn.PReLU):
        return Role("scale", value=0.25)
    if name == "Conv1D" and hasattr(module, "nf") and own == "weight":  # of transformers: inputs first
        return Role("weight", Layout((1,), (0,)))
    if own == "bias" or own.endswith("_bias"):
        return Role("bias")
    if own == "weight" and (any(n in name for n in _NORMS) or (name.endswith("Norm") and len(shape) <= 1)):
        return Role("scale", value=1.0)
    if isinstance(module, nn.Linear) or (own.endswith("weight") and len(shape) == 2):
        return Role("weight", _DENSE)
    return Role("other")


def flat_size(shape: tuple[int, ...]) -> int:
    """Elements of a shape."""
    return math.prod(shape)
