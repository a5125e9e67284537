"""Numbers: a graph evaluated in NumPy float64, the oracle that every back end is compared with.

Reads ``Op.value``. Named dimensions are learnt from the arrays' shapes. A division by zero or an overflow gives inf or
nan, as IEEE says; nothing is raised and nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from chainrule.errors import ShapeError
from chainrule.ir import Dim, Graph, Node, shape_text, toposort
from chainrule.ir.dims import solve_for, substitute


def evaluate(outputs: Sequence[Node], values: Mapping[Node, Any], sizes: Mapping[str, int] | None = None) -> list[Any]:
    """The values of ``outputs`` given the values of leaves (or of any other node, which is then not computed).

    Args:
        outputs: nodes. values: node -> array. sizes: named dimensions that no array determines.

    Raises:
        ShapeError: an array that does not have its node's shape, a leaf without a value, an unknown dimension.
    """
    table = evaluate_all(outputs, values, sizes)
    return [table[node] for node in outputs]


def evaluate_all(
    outputs: Sequence[Node], values: Mapping[Node, Any], sizes: Mapping[str, int] | None = None
) -> dict[Node, Any]:
    """Like :func:`evaluate`, with the value of every node on the way."""
    table: dict[Node, Any] = {}
    known = dict(sizes or {})
    for node, value in values.items():
        if isinstance(value, tuple):
            table[node] = value
            continue
        array = real_numbers(node, value)
        _match(node, array, known)
        table[node] = array
    with np.errstate(all="ignore"):
        for node in toposort(outputs, stop=lambda n: n in table):
            if node in table:
                continue
            if "name" in node.params and node.is_leaf:
                raise ShapeError(
                    f"no value for {node.params['name']!r}",
                    required=f"an array of shape ({shape_text(node.shape)})",
                )
            params = _numeric(node.params, known)
            table[node] = node.op.value(*(table[i] for i in node.inputs), **params)
    return table


def real_numbers(node: Node, value: Any) -> np.ndarray:
    """A value of a variable as an array of float64, or of integers where the variable holds them.

    Raises:
        ShapeError: it is none: text, complex numbers, rows of different lengths.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" and not all(isinstance(x, Real) for x in array.flat):
            raise TypeError(f"{array.dtype} is no real number")
        whole = array.dtype.kind in "biu" and not node.type.is_float
        return array if whole else array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"value of {node.params['name']!r} is not an array of real numbers",
            given=repr(value)[:60],
            required=f"an array of shape ({shape_text(node.shape)})",
            instead=f"{node.params['name']}=0.5, or nested lists or an array of numbers",
        ) from error


def _match(node: Node, array: np.ndarray, sizes: dict[str, int]) -> None:
    fits = array.ndim == node.type.rank and all(
        solve_for(size, actual, sizes) if isinstance(size, Dim) else size == actual
        for size, actual in zip(node.shape, array.shape, strict=True)
    )
    if not fits:
        raise ShapeError(
            f"value of {node.params.get('name', node.op.name)!r} has the wrong shape",
            given=f"({shape_text(array.shape)})",
            required=f"({shape_text(node.shape)})"
            + (f" with {', '.join(f'{k} = {v}' for k, v in sizes.items())}" if sizes else ""),
        )


def _numeric(params: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    return {k: numeric(v, sizes) for k, v in params.items()}


def numeric(value: Any, sizes: Mapping[str, int]) -> Any:
    """A static parameter with its named dimensions replaced by numbers."""
    if isinstance(value, Dim):
        size = substitute(value, sizes)
        if isinstance(size, Dim):
            raise ShapeError(f"dimension {size} has no number", required=f"a size for {', '.join(sorted(size.names))}")
        return size
    if isinstance(value, tuple):
        return tuple(numeric(v, sizes) for v in value)
    return value


def evaluate_graph(graph: Graph, *arrays: Any) -> list[Any]:
    """The outputs of a graph for arrays given in the order of its inputs."""
    return evaluate(graph.outputs, dict(zip(graph.inputs, arrays, strict=True)))
