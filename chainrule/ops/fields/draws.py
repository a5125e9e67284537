"""The field of a random draw of the program itself, such as dropout's mask."""

from __future__ import annotations

from typing import Any

from chainrule.ir import Node
from chainrule.ir.field import Field, iid, unknown
from chainrule.ops.fields.registry import sizes


def drawn(node: Node) -> Field:
    """Independent elements with the moments of the sampler."""
    method, args = node.params.get("method", ""), node.params.get("args", ())
    shape = sizes(node.shape)
    found = _moments(method, args)
    if found is None:
        return unknown(shape, f"a draw by {method or node.op.name}")
    mean, second, kurtosis = found
    return iid(
        shape,
        mean,
        second,
        kurtosis=kurtosis,
        normal=method == "normal_",
        degree=0.0,
        why=f"drawn by {method}",
        sources=frozenset({f"draw {node.params.get('stream')}"}),
    )


def _moments(method: str, args: Any) -> tuple[float, float, float] | None:
    if method == "bernoulli_":
        p = float(args[0])
        return p, p, 1 / p if p else 1.0
    if method == "native_dropout":
        p = float(args[0])
        return 1.0, 1 / (1 - p), 1 / (1 - p)
    if method == "normal_":
        mean, std = (float(a) for a in (*args, 0.0, 1.0)[:2]) if args else (0.0, 1.0)
        return mean, mean * mean + std * std, 3.0
    if method == "uniform_":
        low, high = (float(a) for a in args[:2]) if len(args) >= 2 else (0.0, 1.0)
        return (low + high) / 2, (low * low + low * high + high * high) / 3, 1.8
    if method == "exponential_":
        rate = float(args[0]) if args else 1.0
        return 1 / rate, 2 / rate**2, 6.0
    return None
