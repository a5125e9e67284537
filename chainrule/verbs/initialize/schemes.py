"""The schemes of the literature: a law for each role, from its fans alone. ``auto`` and ``critical`` are in ``plan``.

Sources: lecun, LeCun et al. 1998; xavier, Glorot and Bengio 2010; he, He et al. 2015; orthogonal, Saxe et al. 2014;
mup, Yang et al. 2022 (hidden weights 1/fan_in, output weights 1/fan_in^2, learning rates for Adam 1/fan_in);
torch-default, the reset_parameters methods of torch.nn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from chainrule.verbs.initialize.laws import Constant, Law, Layout, Normal, Orthogonal, Stacked, Uniform
from chainrule.verbs.initialize.roles import Role


@dataclass(frozen=True)
class Choice:
    """What one parameter starts from, and why; ``rate`` multiplies its learning rate (mup)."""

    law: Law | None
    why: str
    rate: float = 1.0


KEPT = "its use is not known: left as it is"


def variance(factor: float, count: float) -> float:
    """The standard deviation of a weight of variance ``factor / count``."""
    return math.sqrt(factor / max(count, 1.0))


def _he(role: Role, shape: tuple[int, ...]) -> Choice:
    n, _ = role.fans
    return Choice(Normal(variance(2.0, n)), f"Var(w) = 2 / fan_in, fan_in = {n}")


def _lecun(role: Role, shape: tuple[int, ...]) -> Choice:
    n, _ = role.fans
    return Choice(Normal(variance(1.0, n)), f"Var(w) = 1 / fan_in, fan_in = {n}")


def _xavier(role: Role, shape: tuple[int, ...]) -> Choice:
    n, m = role.fans
    packed = f", one of {role.parts} stacked projections" if role.parts > 1 else ""
    return Choice(Normal(variance(2.0, n + m)), f"Var(w) = 2 / (fan_in + fan_out), {n} and {m}{packed}")


def _orthogonal(role: Role, shape: tuple[int, ...]) -> Choice:
    law = orthogonal(role.layout, shape, 1.0, role.parts)
    if law is None:
        return Choice(Normal(variance(1.0, role.fans[0])), f"no matrix to make orthogonal: 1 / fan_in, {role.fans[0]}")
    return Choice(law, "keeps lengths")


def orthogonal(layout: Layout | None, shape: tuple[int, ...], gain: float, parts: int = 1) -> Law | None:
    """An orthogonal law for a weight, part by part where projections are stacked; None where it has no matrix."""
    if layout is None or 0 in shape or min(layout.sizes(shape)) < 1 or layout.sizes(shape) == (1, 1):
        return None
    if parts > 1 and layout.outputs == (0,) and not layout.batch:
        rows = (shape[0] // parts, *shape[1:])
        return Stacked((Orthogonal(gain, layout, rows),) * parts, shape)
    return Orthogonal(gain, layout, shape)


def _mup(role: Role, shape: tuple[int, ...]) -> Choice:
    n, _ = role.fans
    return Choice(
        Normal(variance(1.0, n)), f"hidden weight: Var(w) = 1 / fan_in, rate 1 / fan_in, fan_in = {n}", 1.0 / max(n, 1)
    )


def _torch_default(role: Role, shape: tuple[int, ...]) -> Choice:
    n, m = role.fans
    if role.module in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"):
        hidden = shape[0] // role.parts
        return Choice(Uniform(1 / math.sqrt(max(hidden, 1))), f"torch's default: +-1 / sqrt(hidden size {hidden})")
    if role.module == "MultiheadAttention":
        packed = m * role.parts
        bound = math.sqrt(6 / max(n + packed, 1))
        return Choice(Uniform(bound), f"torch's default: Xavier of the packed matrix, {n} and {packed}")
    if role.module == "Bilinear":
        n = shape[1]
    elif role.layout is not None and role.layout.kernel and role.layout.transposed:
        # torch counts the inputs of a transposed convolution in dimension 1, which holds its outputs
        n = math.prod(shape[1:])
    bound = 1 / math.sqrt(max(n, 1))
    return Choice(Uniform(bound), f"torch's default: +-1 / sqrt({n})")


_WEIGHTS: dict[str, Callable[[Role, tuple[int, ...]], Choice]] = {
    "he": _he,
    "xavier": _xavier,
    "lecun": _lecun,
    "orthogonal": _orthogonal,
    "mup": _mup,
    "torch-default": _torch_default,
    "zeros": lambda role, shape: Choice(Constant(0.0), "asked for"),
}
FIXED = tuple(_WEIGHTS)
SCHEMES = ("auto", *FIXED[:4], "critical", *FIXED[4:])


def fixed(scheme: str, role: Role, shape: tuple[int, ...], weight_fan: int | None = None) -> Choice:
    """What a scheme of the literature gives one parameter. ``weight_fan``: fan_in of the weight beside a bias."""
    if role.kind in ("weight", "recurrent"):
        return _WEIGHTS[scheme](role, shape)
    if scheme == "zeros" and role.kind != "scale":
        return Choice(None, KEPT) if role.kind == "other" else Choice(Constant(0.0), "asked for")
    if role.kind == "bias":
        if scheme == "torch-default" and weight_fan:
            return Choice(Uniform(1 / math.sqrt(weight_fan)), f"torch's default: +-1 / sqrt({weight_fan})")
        return Choice(Constant(role.value), "biases start at zero")
    if role.kind == "scale":
        return Choice(Constant(role.value), f"scales start at {role.value:g}")
    if role.kind == "embedding":
        return Choice(Normal(1.0), "torch's default: N(0, 1)" if scheme == "torch-default" else "rows of unit variance")
    if role.kind == "position":
        return Choice(Normal(0.02), "a table that is added: small beside what it is added to")
    return Choice(None, KEPT)
