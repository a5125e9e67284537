"""Calls without a declaration as opaque nodes: an aten overload written out with its static arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch.lower import is_in_place, key_of, type_of
from chainrule.ir import Node
from chainrule.ops.layout import contiguous
from chainrule.ops.opaque import Call, opaque


def opaque_call(
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    node_of: Callable[[torch.Tensor], Node],
    out: Any,
    reason: str,
    stream: int | None,
) -> Node:
    """The opaque node of an aten call.

    Raises:
        UnsupportedOpError: it writes into its arguments, or has arguments or results that cannot be written.
    """
    text, operands = call_text(func, args, kwargs)
    outputs = list(out) if isinstance(out, (list, tuple)) else [out]
    if not outputs or not all(isinstance(o, torch.Tensor) for o in outputs):
        raise UnsupportedOpError(f"{func} does not return tensors alone", required="a tensor or a list of them")
    call = Call(
        name=f"{func}",
        text=text,
        types=tuple(type_of(o) for o in outputs),
        reason=reason,
    )
    return opaque(call, *(_lying(node_of(t), t) for t in operands), stream=stream)


def _lying(node: Node, tensor: torch.Tensor) -> Node:
    """The node as a kernel gets it: one number for all elements is expanded, which cuDNN refuses for a state."""
    expanded = bool(node.inputs) and all(i.number is not None for i in node.inputs)
    return contiguous(node) if expanded and tensor.is_contiguous() else node


def call_text(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, list[torch.Tensor]]:
    """A call as Python, with ``{0}``, ``{1}`` for its tensors, and these tensors.

    Raises:
        UnsupportedOpError: it writes into its arguments, or has one that cannot be written.
    """
    operands: list[torch.Tensor] = []
    parts = [_text(a, operands) for a in args]
    parts += [f"{key}={_text(value, operands)}" for key, value in kwargs.items()]
    text = f"{_functional(func)}({', '.join(parts)})"
    if any(t.device.type != "cpu" for t in operands):  # numbers that a kernel wants on the CPU: lengths of sequences
        for k in [k for k, t in enumerate(operands) if t.device.type == "cpu" and t.dim()]:
            text = text.replace(f"{{{k}}}", f"{{{k}}}.cpu()")
    return text, operands


def opaque_function(
    name: str,
    function: Callable[..., Any],
    operands: Sequence[Node],
    outputs: Sequence[torch.Tensor],
    stream: int | None,
) -> Node:
    """The opaque node of a Python function of tensors (a custom ``autograd.Function`` with its other arguments)."""
    call = Call(
        name=name,
        text="{f}(" + ", ".join(f"{{{k}}}" for k in range(len(operands))) + ")",
        types=tuple(type_of(o) for o in outputs),
        function=function,
        reason="its backward is its own",
    )
    return opaque(call, *operands, stream=stream)


def _functional(func: Any) -> str:
    """How the call is written without a write into its arguments."""
    name, overload = key_of(func)
    if func._schema.is_mutable:
        packet = getattr(getattr(torch.ops, func.namespace), name[:-1], None) if is_in_place(func) else None
        if packet is None or (overload or "default") not in packet.overloads():
            raise UnsupportedOpError(
                f"{func} writes into its arguments and is not declared",
                required="an op that returns a new tensor",
            )
        name = name[:-1]
    return f"torch.ops.{func.namespace}.{name.split('::')[-1]}.{overload or 'default'}"


def _text(value: Any, operands: list[torch.Tensor]) -> str:
    """An argument as Python; tensors become ``{0}``, ``{1}``, ... and are collected."""
    if isinstance(value, torch.Tensor):
        operands.append(value)
        return f"{{{len(operands) - 1}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(v, operands) for v in value)}]"
    if (isinstance(value, float) and value in (float("inf"), float("-inf"))) or value != value:
        return f'float("{value}")'
    if isinstance(value, (bool, int, float, type(None))):
        return repr(value)
    if isinstance(value, str):
        return repr(value).replace("{", "{{").replace("}", "}}")
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    raise UnsupportedOpError(f"an argument of type {type(value).__name__} of an op that is not declared")
