"""Order: which element is largest, sorted positions, medians. The positions are integers without a derivative; the
values are gathered at them, so that their derivative is that of ``gather``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Node, Op, Sample, TensorType, apply, register, shape_text
from chainrule.ops.families import written_as_call
from chainrule.ops.gathering import gather
from chainrule.ops.movement import axis_of, reshape, squeeze, vector
from chainrule.ops.reductions import extremum_jvp, extremum_vjp

_X = np.array([[0.3, -1.2, 0.8, 1.1], [2.0, -0.4, 0.1, -0.7]])


def _positions(
    name: str,
    value: Callable[..., Any],
    torch: Callable[[str, dict[str, Any]], str],
    count: Callable[[int, dict[str, Any]], int],
    aten: dict[str, Callable[..., Any]],
    **sample: Any,
) -> Op:
    """An op that gives positions along ``axis``; ``count(size, params)`` of them."""

    def shape(x: TensorType, *, axis: int, **params: Any) -> TensorType:
        if not 0 <= axis < x.rank:
            raise ShapeError("a dimension that does not exist", given=f"{axis} of ({shape_text(x.shape)})")
        new = count(int(x.shape[axis]), params)
        return TensorType((*x.shape[:axis], new, *x.shape[axis + 1 :]), "int64", None, x.device)

    return register(
        Op(
            name,
            "kernel",
            shape=shape,
            value=value,
            torch=lambda node, x: torch(x[0], dict(node.params)),
            aten=aten,
            differentiable=False,
            samples=(Sample((_X,), {"axis": 1} | sample), Sample((_X,), {"axis": 0} | sample)),
            error_samples=(Sample((_X,), {"axis": 2} | sample),),
            **written_as_call(name),
            source=f"torch.{name}: positions, constant almost everywhere",
        )
    )


def _sorted(x: Any, axis: int, descending: bool) -> Any:
    return np.argsort(-np.asarray(x) if descending else np.asarray(x), axis, kind="stable")


def _first(order: Any, axis: int, position: int) -> Any:
    return np.take(order, [position], axis)


def _running(x: Any, axis: int, better: Callable[[Any, Any], Any]) -> Any:
    x = np.moveaxis(np.asarray(x), axis, 0)
    best, found = np.zeros(x.shape[1:], int), []
    for k, row in enumerate(x):
        best = np.where(better(row, np.take_along_axis(x, best[None], 0)[0]), k, best)
        found.append(best)
    return np.moveaxis(np.stack(found), 0, axis)


def _pair(op: Op, keeps: bool, x: Node, dim: int, keepdim: bool = False, **params: Any) -> list[Node]:
    """(values, positions) as torch returns them; ``keeps``: the dimension stays."""
    axis = axis_of(x, dim)
    places = apply(op, vector(x), axis=axis, **params)
    values = gather(vector(x), axis, places)
    if not x.shape:
        return [reshape(n, ()) for n in (values, places)]
    return [n if keeps or keepdim else squeeze(n, (axis,)) for n in (values, places)]


def _argument(op: Op, x: Node, dim: int | None, keepdim: bool) -> Node:
    if dim is None:
        places = apply(op, reshape(x, (x.type.numel,)), axis=0)
        return reshape(places, (1,) * x.type.rank if keepdim else ())
    return _pair(op, False, x, dim, keepdim)[1]


def _one(size: int, params: dict[str, Any]) -> int:
    return 1


ARGSORT = _positions(
    "argsort",
    lambda x, *, axis, descending, stable: _sorted(x, axis, descending),
    lambda x, p: f"torch.sort({x}, dim={p['axis']}, descending={p['descending']}, stable={p['stable']})[1]",
    lambda size, p: size,
    aten={
        "sort": lambda x, dim=-1, descending=False: _pair(ARGSORT, True, x, dim, descending=descending, stable=False),
        "sort.stable": lambda x, dim=-1, descending=False, stable=False: _pair(
            ARGSORT, True, x, dim, descending=descending, stable=stable
        ),
        "argsort": lambda x, dim=-1, descending=False: _pair(
            ARGSORT, True, x, dim, descending=descending, stable=False
        )[1],
        "argsort.stable": lambda x, stable, dim=-1, descending=False: _pair(
            ARGSORT, True, x, dim, descending=descending, stable=stable
        )[1],
    },
    descending=True,
    stable=False,
)
TOP = _positions(
    "topk",
    lambda x, *, axis, k, largest, sorted: np.take(_sorted(x, axis, largest), np.arange(k), axis),
    lambda x, p: f"torch.topk({x}, {p['k']}, {p['axis']}, {p['largest']}, {p['sorted']})[1]",
    lambda size, p: p["k"],
    aten={
        "topk": lambda x, k, dim=-1, largest=True, sorted=True: _pair(
            TOP, True, x, dim, k=k, largest=largest, sorted=sorted
        )
    },
    k=2,
    largest=True,
    sorted=True,
)
ARGMAX = _positions(
    "argmax",
    lambda x, *, axis: np.argmax(x, axis, keepdims=True),
    lambda x, p: f"torch.max({x}, {p['axis']}, keepdim=True)[1]",
    _one,
    aten={
        "max.dim": lambda x, dim, keepdim=False: _pair(ARGMAX, False, x, dim, keepdim),
        "argmax": lambda x, dim=None, keepdim=False: _argument(ARGMAX, x, dim, keepdim),
    },
)
ARGMIN = _positions(
    "argmin",
    lambda x, *, axis: np.argmin(x, axis, keepdims=True),
    lambda x, p: f"torch.min({x}, {p['axis']}, keepdim=True)[1]",
    _one,
    aten={
        "min.dim": lambda x, dim, keepdim=False: _pair(ARGMIN, False, x, dim, keepdim),
        "argmin": lambda x, dim=None, keepdim=False: _argument(ARGMIN, x, dim, keepdim),
    },
)
KTH = _positions(
    "kthvalue",
    lambda x, *, axis, k: _first(_sorted(x, axis, False), axis, k - 1),
    lambda x, p: f"torch.kthvalue({x}, {p['k']}, {p['axis']}, keepdim=True)[1]",
    _one,
    aten={"kthvalue": lambda x, k, dim=-1, keepdim=False: _pair(KTH, False, x, dim, keepdim, k=k)},
    k=2,
)
MEDIAN_PLACE = _positions(
    "median_place",
    lambda x, *, axis: _first(_sorted(x, axis, False), axis, (np.shape(x)[axis] - 1) // 2),
    lambda x, p: f"torch.median({x}, {p['axis']}, keepdim=True)[1]",
    _one,
    aten={"median.dim": lambda x, dim, keepdim=False: _pair(MEDIAN_PLACE, False, x, dim, keepdim)},
)
NANMEDIAN_PLACE = _positions(
    "nanmedian_place",
    lambda x, *, axis: _first(_sorted(x, axis, False), axis, (np.shape(x)[axis] - 1) // 2),
    lambda x, p: f"torch.nanmedian({x}, {p['axis']}, keepdim=True)[1]",
    _one,
    aten={"nanmedian.dim": lambda x, dim, keepdim=False: _pair(NANMEDIAN_PLACE, False, x, dim, keepdim)},
)
MODE_PLACE = _positions(
    "mode_place",
    lambda x, *, axis: np.argmin(x, axis, keepdims=True),  # all different: the smallest
    lambda x, p: f"torch.mode({x}, {p['axis']}, keepdim=True)[1]",
    _one,
    aten={"mode": lambda x, dim=-1, keepdim=False: _pair(MODE_PLACE, False, x, dim, keepdim)},
)
CUMMAX = _positions(
    "cummax",
    lambda x, *, axis: _running(x, axis, np.greater_equal),
    lambda x, p: f"torch.cummax({x}, {p['axis']})[1]",
    lambda size, p: size,
    aten={"cummax": lambda x, dim: _pair(CUMMAX, True, x, dim)},
)
CUMMIN = _positions(
    "cummin",
    lambda x, *, axis: _running(x, axis, np.less_equal),
    lambda x, p: f"torch.cummin({x}, {p['axis']})[1]",
    lambda size, p: size,
    aten={"cummin": lambda x, dim: _pair(CUMMIN, True, x, dim)},
)


# ---- medians of all elements -------------------------------------------------------------------------------
def _middle(name: str, value: Callable[..., Any]) -> Op:
    """The median of all elements: equal ones share the derivative, as torch does it."""
    return register(
        Op(
            name,
            "kernel",
            shape=lambda x: x.with_shape(()),
            value=value,
            vjp=lambda g, y, x: extremum_vjp(g, y, x, axes=tuple(range(x.type.rank)), keepdims=False),
            jvp=lambda t, y, x: extremum_jvp(t, y, x, axes=tuple(range(x.type.rank)), keepdims=False),
            torch=f"torch.{name}({{0}})",
            aten={name: None},
            samples=(Sample((_X,)), Sample((_X[:, :3],))),
            **written_as_call(name),
            source=f"torch.{name}: the lower of the two in the middle",
        )
    )


MEDIAN = _middle("median", lambda x: np.sort(np.ravel(x))[(np.size(x) - 1) // 2])
NANMEDIAN = _middle("nanmedian", lambda x: np.sort(np.ravel(x))[(np.size(x) - 1) // 2])
