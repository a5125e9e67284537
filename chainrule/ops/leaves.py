"""Leaves of a program (inputs, constants, dimensions) and the ops that only route values."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import (
    ADD,
    ATOM,
    UNARY,
    Code,
    Dim,
    Literal,
    Node,
    Op,
    Rewrite,
    Sample,
    TensorType,
    TupleType,
    register,
)
from chainrule.ops.families import leaf, linear
from chainrule.ops.moment_rules import ScaleRule


def format_number(value: Any) -> str:
    """A number as a person writes it: ``2`` for 2.0, ``0.1``, ``1e-05``."""
    if isinstance(value, (bool, np.bool_)):
        return "1" if value else "0"
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(float(value))


def _constant_text(p: Any, node: Node) -> str:
    literal: Literal = node.params["literal"]
    if literal.array.ndim == 0:
        return p.number(literal.array.item())
    return p.array(literal.array)


def _constant_torch(node: Node, _: list[str]) -> str:
    literal: Literal = node.params["literal"]
    if literal.array.ndim == 0:
        number = literal.array.item()
        return repr(number) if np.isfinite(number) else f'float("{number}")'
    if not literal.array.size:  # nested lists lose the other sizes
        return f"torch.zeros({literal.array.shape}, dtype=torch.{node.type.dtype}, device={node.type.device!r})"
    values = repr(literal.array.tolist())
    if not np.all(np.isfinite(literal.array)):
        values = re.sub(r"\b(inf|nan)\b", r'float("\1")', values)
    return f"torch.tensor({values}, dtype=torch.{node.type.dtype}, device={node.type.device!r})"


def _constant_type(*, literal: Literal, dtype: str) -> TensorType:
    return TensorType(literal.array.shape, dtype)


INPUT = leaf(
    "input",
    shape=lambda *, name, type, structure=None: type,
    value=lambda **_: (_ for _ in ()).throw(KeyError("an input has no value of its own")),
    text=lambda p, node: p.symbol(node.params["name"]),
    latex=lambda p, node: p.symbol(node.params["name"]),
    native="input",
    source="a variable of the program",
)

CONSTANT = leaf(
    "constant",
    shape=_constant_type,
    value=lambda *, literal, dtype: literal.array[()],  # a scalar is a NumPy number, as any op gives it
    text=_constant_text,
    latex=_constant_text,
    torch=_constant_torch,
    code=Code(lambda w, node: w.array(node.params["literal"].array)),
    terms=lambda algebra, node, indices: algebra.number(node, indices),
    samples=(Sample((), {"literal": Literal(2.5, "float64"), "dtype": "float64"}),),
    native="constant",
    source="a number",
)

DIM = leaf(
    "dim",
    shape=lambda *, size: TensorType((), "float64"),
    value=lambda *, size: np.float64(size) if isinstance(size, int) else _unknown(size),
    text=lambda p, node: (p.size(node.params["size"]), _size_strength(node.params["size"])),
    latex=lambda p, node: (p.size(node.params["size"]), _size_strength(node.params["size"])),
    torch=lambda node, _: f"torch.tensor({float(node.params['size'])!r}, dtype=torch.float64)",
    code=lambda w, node: (w.size(node.params["size"]), _size_strength(node.params["size"])),
    samples=(Sample((), {"size": 3}),),
    source="a dimension used as a number, such as n in sum(x) / n",
)


def known_numbers(node: Node) -> np.ndarray | None:
    """The numbers of a constant, also of one number that is broadcast; None of everything else."""
    literal = node.params.get("literal")
    if literal is not None:
        return literal.array
    inner = node.inputs[0].number if len(node.inputs) == 1 and "shape" in node.params else None
    return None if inner is None else np.full(tuple(map(int, node.shape)), inner)


def _size_strength(size: int | Dim) -> int:
    """A plain name or number is an atom; anything else binds like a sum."""
    return ATOM if str(size).isidentifier() or isinstance(size, int) else ADD


def _unknown(size: Dim) -> Any:
    raise ShapeError(f"dimension {size} has no number yet", required="arrays whose shapes say what it is")


def _routed(name: str, **fields: Any) -> Op:
    return linear(
        name,
        **(
            {
                "shape": lambda x: x,
                "value": lambda x: x,
                "text": "{0}",
                "latex": "{0}",
                "samples": (Sample((np.array([0.3, -0.7]),)),),
            }
            | fields
        ),
    )


STOP_GRADIENT = _routed(
    "stop_gradient",
    transpose=lambda g, y, x: None,
    jvp=lambda tangents, y, x: None,
    text="stop_gradient({0})",
    latex=r"\operatorname{{sg}}\left({0}\right)",
    names=("stop_gradient", "detach"),
    torch="{0}.detach()",
    code=Code(lambda w, node: w(0, ATOM), jax="jax.lax.stop_gradient({0})"),
    aten={"detach": None},
    differentiable=False,
    moments=ScaleRule(1),
    native=lambda m, x: x,
    source="detach, .data and no_grad regions: the value passes, the derivative does not",
)


def _both(new: TensorType, old: TensorType) -> TensorType:
    if new.shape != old.shape:
        raise ShapeError("two values of one shape", given=f"{new} and {old}")
    return new


STRAIGHT_THROUGH = register(
    Op(
        "straight_through",
        "kernel",
        shape=_both,
        value=lambda new, old: new,
        vjp=lambda g, y, new, old: (None, g),
        jvp=lambda tangents, y, new, old: tangents[1],
        text="straight_through({0}, {1})",
        latex=r"\operatorname{{straight}}\left({0}, {1}\right)",
        torch="{0}",
        aliases=True,
        samples=(Sample((np.array([0.3, -0.7]), np.array([0.2, 1.1])), smooth=False),),
        error_samples=(Sample((np.zeros(2), np.zeros(3))),),
        source="the value of one, the derivative of the other: a write in place under no_grad",
    )
)


SEVERAL = register(
    Op(
        "several",
        "leaf",
        shape=lambda *types: TupleType(types),
        value=lambda *values: tuple(values),
        vjp=lambda g, y, *xs: tuple(g),
        jvp=lambda tangents, y, *xs: tuple(tangents),
        text=lambda p, node: f"({', '.join(p.child(i, 0) for i in node.inputs)})",
        latex=lambda p, node: rf"\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)",
        torch=lambda node, x: f"({', '.join(x)},)",
        aliases=True,
        code=lambda w, node: f"({', '.join(w(k) for k in range(len(node.inputs)))},)",
        samples=(Sample((np.array([0.3, -0.7]), np.array(1.5))),),
        source="the outputs of an expansion that has more than one",
    )
)


def _of_several(node: Node) -> Node | None:
    (x,) = node.inputs
    return x.inputs[node.params["index"]] if x.op is SEVERAL else None


def _item_shape(x: TupleType, *, index: int) -> TensorType:
    return x.items[index]


ITEM = register(
    Op(
        "item",
        "leaf",
        shape=_item_shape,
        value=lambda x, *, index: x[index],
        vjp=lambda g, y, x, *, index: (tuple(g if k == index else None for k in range(len(x.type.items))),),
        jvp=lambda tangents, y, x, *, index: None if tangents[0] is None else tangents[0][index],
        text=lambda p, node: f"{p.child(node.inputs[0], UNARY)}.{node.params['index']}",
        latex=lambda p, node: f"{p.child(node.inputs[0], UNARY)}_{{{node.params['index']}}}",
        torch=lambda node, x: f"{x[0]}[{node.params['index']}]",
        aliases=lambda node: bool(node.inputs[0].op.aliases),  # outputs of one kernel lie apart
        order="operands",
        code=lambda w, node: f"{w(0, ATOM)}[{node.params['index']}]",
        rewrites=(Rewrite(_of_several, exact=True),),
        source="one output of a node with several",
    )
)
