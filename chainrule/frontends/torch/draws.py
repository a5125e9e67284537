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
from chainrule.frontends.torch.lower import is_in_place, key_of, type_of
from chainrule.ir import Node, TensorType
from chainrule.ops.random import draw, dropout_noise
from chainrule.ops.recurrent import KINDS, arguments, recurrent

# Functions that make a tensor and fill it -> the sampler that fills it, with its arguments.
_FILLED = {
    "rand": ("uniform_", (0.0, 1.0)),
    "rand_like": ("uniform_", (0.0, 1.0)),
    "randn": ("normal_", (0.0, 1.0)),
    "randn_like": ("normal_", (0.0, 1.0)),
}
_SAMPLERS = ("normal_", "uniform_", "bernoulli_", "exponential_", "random_", "log_normal_", "cauchy_", "geometric_")


def generator_state() -> tuple[bytes, ...]:
    """The state of every global generator of torch's."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return tuple(s.numpy().tobytes() for s in states)


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
    if name in ("dropout", "dropout_", "feature_dropout", "feature_dropout_"):
        x = args[0]
        shape = (*x.shape[:2], *(1,) * (x.dim() - 2)) if name.startswith("feature") else tuple(x.shape)
        kind = TensorType(shape, type_of(x).dtype, None, str(x.device))
        if not name.startswith("feature"):
            kind = replace(kind, layout=tuple(torch.empty_like(x, device="meta").stride()))
        return [nodes[0] * dropout_noise(float(args[1]), kind, stream)]
    if name in KINDS:
        return _between_layers(name, overload == "data", nodes, stream)
    if name in _FILLED:
        method, given = _FILLED[name]
        return [draw(method, given, type_of(out), stream)]
    if is_in_place(func) and name in _SAMPLERS and overload != "Tensor":
        return [draw(name, tuple(args[1:]), type_of(out), stream)]
    return None


def _between_layers(mode: str, packed: bool, nodes: Sequence[Any], stream: int) -> list[Node]:
    """A recurrent layer whose dropout draws once between each two of its layers."""
    streams = itertools.count(stream)
    given = arguments(packed, nodes)
    dropout = float(given[6])
    return recurrent(mode, *given, noise=lambda kind: dropout_noise(dropout, kind, next(streams)))
