"""Random ops as nodes: which draw of torch's generator a call makes, and what it is multiplied into.

Whether a call drew is seen, not guessed: the generator's state moved. The samplers that fill a tensor become
``draw`` nodes of that tensor's type, strides included (they decide which bits go where); dropout is its noise times
its input; every other random op is an opaque call with a place in the order of draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch.calls import call_text
from chainrule.frontends.torch.generators import generator_states
from chainrule.frontends.torch.lower import is_in_place, key_of, type_of
from chainrule.ir import Node, TensorType
from chainrule.ops.random import alpha_dropout, draw, dropout_noise, rrelu, sampled
from chainrule.ops.recurrent import KINDS, arguments, recurrent

# Functions that make a tensor and fill it -> the sampler that fills it, with its arguments.
_FILLED = {
    "rand": ("uniform_", (0.0, 1.0)),
    "rand_like": ("uniform_", (0.0, 1.0)),
    "randn": ("normal_", (0.0, 1.0)),
    "randn_like": ("normal_", (0.0, 1.0)),
}
_SAMPLERS = ("normal_", "uniform_", "bernoulli_", "exponential_", "random_", "log_normal_", "cauchy_", "geometric_")
# Samplers whose result has no derivative, whatever their arguments are.
_BY_VALUE = ("bernoulli", "multinomial", "poisson", "binomial", "randint", "randint_like", "randperm", "normal")


def generator_state() -> tuple[bytes, ...]:
    """The state of every global generator of torch's, to compare."""
    return tuple(s.numpy().tobytes() for s in generator_states())


def drawn(
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    nodes: Sequence[Any],
    out: torch.Tensor,
    stream: int,
) -> list[Node] | None:
    """The nodes of a random call's results; None if it is none of those that have some.

    Args:
        args, kwargs: as the program gave them. nodes: the positional ones with nodes for tensors.
        out: the result. stream: the number of the draw.
    """
    name, overload = key_of(func)
    if kwargs.get("generator") is not None or any(isinstance(a, torch.Generator) for a in args):
        raise UnsupportedOpError(
            f"{func} draws from a generator of its own",
            required="torch's global generator",
            instead="the call without generator=",
        )
    plain = name.removesuffix("_")
    if plain in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
        x = args[0]
        feature = plain.startswith("feature")
        shape = (*x.shape[:2], *(1,) * (x.dim() - 2)) if feature else tuple(x.shape)
        kind = TensorType(shape, type_of(x).dtype, None, str(x.device))
        if not feature:
            kind = replace(kind, layout=tuple(torch.empty_like(x, device="meta").stride()))
        if "alpha" in plain:
            return [alpha_dropout(nodes[0], float(args[1]), kind, stream)]
        return [nodes[0] * dropout_noise(float(args[1]), kind, stream, feature)]
    if plain == "rrelu" and args[0].device.type == "cpu":
        low, high = (float(a) for a in args[1:3]) if len(args) > 2 else (0.125, 1 / 3)
        return [rrelu(nodes[0], low, high, stream)]
    if name in KINDS:
        return _between_layers(name, overload == "data", nodes, stream)
    if name in _FILLED:
        method, given = _FILLED[name]
        return [draw(method, given, type_of(out), stream)]
    if is_in_place(func) and name in _SAMPLERS and overload != "Tensor":
        return [draw(name, tuple(args[1:]), type_of(out), stream)]
    if name in _BY_VALUE and not func._schema.is_mutable:
        return [_by_value(func, args, kwargs, nodes, out, stream)]
    return None


def _by_value(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], nodes: Sequence[Any], out: torch.Tensor, stream: int
) -> Node:
    """A sampler that is called as it is."""
    text, _ = call_text(func, args, kwargs)
    operands = [n for a, n in zip(args, nodes, strict=True) if isinstance(a, torch.Tensor)]
    return sampled(text, type_of(out), stream, *operands)


def _between_layers(mode: str, packed: bool, nodes: Sequence[Any], stream: int) -> list[Node]:
    """A recurrent layer whose dropout draws once between each two of its layers."""
    streams = itertools.count(stream)
    given = arguments(packed, nodes)
    dropout = float(given[6])
    return recurrent(mode, *given, noise=lambda kind: dropout_noise(dropout, kind, next(streams)))
