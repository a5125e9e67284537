"""The lowering table: one call of an aten op becomes nodes.

What an op is called in torch is part of its declaration (``Op.aten``); this file reads those declarations and
adds only
what has no op of its own: copies that keep the value, in-place variants, and tensors whose numbers do not
depend on the numbers of their arguments. ``record`` calls :func:`lower` for every call that it sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from chainrule.errors import UnsupportedOpError
from chainrule.ir import LOWERINGS, OPS, Node, Op, TensorType, apply, as_node, constant
from chainrule.ops.casts import cast
from chainrule.ops.contraction import swap
from chainrule.ops.movement import broadcast


def _dropout(x: Node, p: float, train: bool) -> Node:
    if not train or p == 0 or not x.type.numel:
        return x
    if p == 1:
        return x * constant(0.0, x.type.dtype)
    raise UnsupportedOpError("dropout in training mode draws random numbers", given=f"p={p}", instead="model.eval()")


def _same(x: Node, *_: Any, **__: Any) -> Node:
    return x


# The value is that of the first argument: copies, and dropout that does nothing.
_IDENTITIES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("alias", "clone", "contiguous", "lift_fresh", "lift_fresh_copy", "alias_copy"), _same),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
}

# In-place ops without a functional twin in the table.
_WRITES: dict[str, Callable[..., Any]] = {
    "copy_": lambda x, source, non_blocking=False: broadcast(cast(source, x.type.dtype), x.shape),
    "fill_.Scalar": lambda x, value: broadcast(constant(value, x.type.dtype), x.shape),
    "fill_.Tensor": lambda x, value: broadcast(cast(value, x.type.dtype), x.shape),
    "zero_": lambda x: broadcast(constant(0, x.type.dtype), x.shape),
    "transpose_": swap,
    "swapaxes_": swap,
    "swapdims_": swap,
}

# Only shape, dtype and device of the argument matter: the result is a constant.
VALUE_FREE = frozenset(
    f"{prefix}{kind}"
    for prefix, kinds in {
        "new_": ("zeros", "ones", "full", "empty", "empty_strided"),
        "": ("zeros_like", "ones_like", "full_like", "empty_like"),
    }.items()
    for kind in kinds
)


@lru_cache(maxsize=1)
def _table(declared: tuple[int, int]) -> Mapping[str, Callable[..., Any]]:
    """aten name, with or without overload -> its rule. Ops may be declared at any time: ``declared`` counts them."""
    table = dict(LOWERINGS)
    for op in OPS.values():
        for key, adaptor in op.aten.items():
            if key in table:
                raise ValueError(f"aten.{key} is declared by {op.name!r} and once more")
            table[key] = adaptor or _positional(op)
    return table


def key_of(func: Any) -> tuple[str, str]:
    """Name and overload of an aten op: ``("add", "Tensor")``; the default overload is ``""``."""
    return func._schema.name.removeprefix("aten::"), func._schema.overload_name


def is_in_place(func: Any) -> bool:
    """Whether the op writes into its first argument and returns it."""
    name, _ = key_of(func)
    return name.endswith("_") and not name.endswith("__") and func._schema.is_mutable


def rule_for(func: Any) -> Callable[..., Any] | None:
    """The function ``(*args, **kwargs) -> Node | list[Node]`` of an aten op; None if it is not declared."""
    name, overload = key_of(func)
    full = f"{name}.{overload}" if overload else name
    for key in (full, name):
        if key in _WRITES:
            return _WRITES[key]
    if is_in_place(func):
        base, name = full.replace(name, name[:-1], 1), name[:-1]
    elif func._schema.is_mutable and full not in _table((len(OPS), len(LOWERINGS))):
        return None  # out= variants
    else:
        base = full
    if name in _IDENTITIES:
        return _IDENTITIES[name]
    table = _table((len(OPS), len(LOWERINGS)))
    # A copy is a view with memory of its own, an unsafe view promises more: the same value.
    plain_name = name.removesuffix("_copy").removeprefix("_").removeprefix("unsafe_")
    same_value = name.endswith("_copy") or name.startswith(("unsafe_", "_unsafe_"))
    found = table.get(base) or table.get(name)
    if found is None and same_value:
        found = table.get(base.replace(name, plain_name, 1)) or table.get(plain_name)
    return found


def decomposes(func: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether torch composes the op of others and it is not declared here as a whole (for these arguments)."""
    name, _ = key_of(func)
    if name == "_scaled_dot_product_attention_math":
        return True
    if name == "scaled_dot_product_attention":
        # With dropout there is no kernel on the CPU: torch runs the formula, op by op, with its draw in the middle.
        dropout = args[4] if len(args) > 4 else (kwargs or {}).get("dropout_p", 0.0)
        return dropout > 0 and args[0].device.type == "cpu"
    if name == "instance_norm" and args[3] is not None:  # by batch_norm, whose running statistics it then averages
        return True
    if rule_for(func) is not None or torch.Tag.nondeterministic_seeded in func.tags:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _positional(op: Op) -> Callable[..., Any]:
    def rule(*args: Any) -> Node:
        first = next((a for a in args if isinstance(a, Node)), None)
        return apply(op, *(as_node(a, like=first) for a in args))

    return rule


@cache
def _signature(rule: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(rule)


def lower(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dtype: str | None) -> Any:
    """The nodes of one call.

    Args:
        func: the aten overload.
        args, kwargs: nodes for tensors, names for dtypes, Python values for the rest.
        dtype: of the result, where there is one.
    Returns:
        A node, or a list of nodes for several outputs.
    Raises:
        UnsupportedOpError: not declared, or not with these arguments.
        ShapeError: the op's shape rule refuses the operands.
    """
    rule = rule_for(func)
    if rule is None:
        raise UnsupportedOpError(
            f"{func} is not declared",
            required="an op of chainrule/ops whose `aten` field names it",
            instead="the same in declared ops, or a declaration (docs/adding-an-op.md)",
        )
    kwargs = {key: value for key, value in kwargs.items() if value is not None and not _placement(key)}
    try:
        _signature(rule).bind(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedOpError(f"{func} is not declared with these arguments", given=str(error)) from None
    elementwise = torch.Tag.pointwise in func.tags or key_of(func)[0] == "where"
    if elementwise and dtype is not None and "float" in dtype:
        args = _promoted(func, args, dtype)
    return rule(*args, **kwargs)


def nodes_of(func: Any, args: Any, kwargs: Any, outputs: Sequence[torch.Tensor]) -> list[Node]:
    """The nodes of one call, held against the tensors that it returned."""
    found = lower(func, args, kwargs, dtype_name(outputs[0].dtype))
    found = [found] if isinstance(found, Node) else list(found)
    for tensor, node in zip(outputs, found, strict=True):
        if node is not None:
            check_type(func, tensor, node)
    return found


def check_type(func: Any, tensor: torch.Tensor, node: Node) -> None:
    """Our rules and torch agree on shape, dtype and device of each result, or the op is refused."""
    if node.number is not None:  # a constant has no place of its own
        return
    given = (tuple(tensor.shape), dtype_name(tensor.dtype), str(tensor.device))
    placed = node.type.device == given[2] or _has_place(node)
    ours = (node.shape, node.type.dtype, node.type.device if placed else given[2])
    if given != ours:
        raise UnsupportedOpError(
            f"{func} with these arguments", given=f"torch's result is {given}", required=f"{ours} by our rule"
        )


def _has_place(node: Node) -> bool:
    """Whether a value is made of more than numbers, which are wherever the program is."""
    return "literal" not in node.params if node.is_leaf else any(map(_has_place, node.inputs))


def _placement(key: str) -> bool:
    return key in ("layout", "device", "pin_memory", "non_blocking", "memory_format", "copy", "implicit")


def _promoted(func: Any, args: Sequence[Any], dtype: str) -> list[Any]:
    """Integers take part in floating-point arithmetic in the dtype of the result, as torch does it."""
    if any(isinstance(a, Node) and a.type.is_float for a in args):
        return list(args)
    operand = [a.name in ("self", "other", "exponent") for a in func._schema.arguments]
    return [
        a if not own else cast(a, dtype) if isinstance(a, Node) else constant(a, dtype)
        for a, own in zip(args, operand, strict=False)
    ]


def plain(value: Any) -> Any:
    """An argument that is no tensor, in words that ops understand: a dtype is its name."""
    return dtype_name(value) if isinstance(value, torch.dtype) else value


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def type_of(tensor: torch.Tensor) -> TensorType:
    """The type of a leaf: shape, dtype, strides and device of a tensor."""
    return TensorType(tuple(tensor.shape), dtype_name(tensor.dtype), tuple(tensor.stride()), str(tensor.device))


def constant_of(tensor: torch.Tensor) -> Node:
    """The numbers of a tensor as a constant; equal numbers everywhere as one number, broadcast."""
    if tensor.layout != torch.strided or tensor.is_nested:
        raise UnsupportedOpError(f"a {tensor.layout} constant", required="dense tensors", instead=".to_dense()")
    dtype = dtype_name(tensor.dtype)
    held = tensor.detach().to(device="cpu")
    array = (held.float() if dtype == "bfloat16" else held).numpy().copy()
    flat = array.reshape(-1)
    if flat.size > 1 and flat.tobytes() == flat[:1].tobytes() * flat.size:
        return broadcast(constant(flat[0], dtype), array.shape)
    return constant(np.ascontiguousarray(array).reshape(array.shape), dtype)
