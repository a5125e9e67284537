"""Random programs for the property tests: a pool of values that grows by one op at a time.

Sizes are 3 and 2 throughout, written as numbers or as the names ``n`` and ``m``, so that products and broadcasts fit
often. Functions that grow fast are applied to bounded values only: what is compared then stays comparable.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from chainrule.errors import ShapeError
from chainrule.ir import OPS, SPELLINGS, Dim, Graph, Node, TensorType, apply, variable
from chainrule.ops.arithmetic import compare, where
from chainrule.ops.contraction import einsum, sum_axes, transpose
from chainrule.ops.indexing import index
from chainrule.ops.movement import broadcast, expand_dims, reshape
from chainrule.ops.slicing import concat

SIZES = {"n": 3, "m": 2}
SHAPES = {"a": "", "b": "", "x": "n", "y": "n", "w": "m", "A": "n,n", "B": "m,n", "C": "m,n"}

Draw = Callable[[st.SearchStrategy], object]


def shapes(named: bool) -> dict[str, tuple[int | Dim, ...]]:
    """The shapes of the leaves, with names or numbers for sizes."""
    return {name: tuple(Dim(s) if named else SIZES[s] for s in text.split(",") if s) for name, text in SHAPES.items()}


def values(graph: Graph, seed: int) -> dict[Node, np.ndarray]:
    """Standard normal values for the inputs of a graph."""
    generator = np.random.default_rng(seed)
    drawn = {
        name: generator.standard_normal(tuple(SIZES[s] for s in text.split(",") if s)) for name, text in SHAPES.items()
    }
    return {leaf: drawn[leaf.params["name"]] for leaf in graph.inputs}


# ---- one step ----------------------------------------------------------------------------------------------
_UNARY = ("tanh", "sigmoid", "sin", "cos", "softplus", "relu", "abs", "neg", "gelu", "silu", "atan", "erf", "sign")
_BINARY = ("add", "sub", "mul", "maximum", "minimum", "add", "mul")
_NUMBERS = (0.0, 1.0, -1.0, 2.0, 0.5, 3.0, 0.1)


def _elementwise(draw: Draw, pool: list[Node]) -> Node:
    x = draw(st.sampled_from(pool))
    return apply(OPS[draw(st.sampled_from(_UNARY))], x)


def _bounded(draw: Draw, pool: list[Node]) -> Node:
    """Functions that grow fast or have a domain, of values inside it."""
    x = apply(OPS["tanh"], draw(st.sampled_from(pool)))
    kind = draw(st.sampled_from(("exp", "log", "sqrt", "power", "inverse", "tan")))
    if kind == "log":
        return apply(OPS["log"], 2.0 + x)
    if kind == "sqrt":
        return apply(OPS["sqrt"], x * x + 1.0)
    if kind == "power":
        return (2.0 - x) ** draw(st.sampled_from((2.0, 3.0, -1.0, 0.5, -0.5, 1.0, 0.0)))
    if kind == "inverse":
        return draw(st.sampled_from(_NUMBERS)) / (x + 2.0)
    return apply(OPS[kind], x)


def _binary(draw: Draw, pool: list[Node]) -> Node:
    a, b = draw(st.sampled_from(pool)), draw(st.sampled_from(pool))
    if a.type.rank == b.type.rank + 1 and draw(st.booleans()):
        b = expand_dims(b, (b.type.rank,))
    return apply(OPS[draw(st.sampled_from(_BINARY))], a, b)


def _number(draw: Draw, pool: list[Node]) -> Node:
    x, number = draw(st.sampled_from(pool)), draw(st.sampled_from(_NUMBERS))
    return draw(st.sampled_from((x * number, number * x, x + number, number - x, x - number, x**2.0)))


def _product(draw: Draw, pool: list[Node]) -> Node:
    a, b = draw(st.sampled_from(pool)), draw(st.sampled_from(pool))
    form = draw(
        st.sampled_from(
            (
                "ij,jk->ik",
                "ij,kj->ik",
                "ji,jk->ik",
                "ij,j->i",
                "ij,i->j",
                "i,j->ij",
                "i,i->",
                "ij,ij->",
                "ij,ij->ij",
                "ij,ij->i",
                "ii->",
                "ii->i",
                "ij->ji",
                "ij,i->ij",
            )
        )
    )
    return einsum(form, *((a, b) if "," in form else (a,)))


def _reduction(draw: Draw, pool: list[Node]) -> Node:
    x = draw(st.sampled_from([p for p in pool if p.shape]))
    name = draw(st.sampled_from(("sum", "mean", "max", "logsumexp", "softmax", "log_softmax", "sum", "tr", "norm1")))
    if name in ("tr", "norm1"):
        return SPELLINGS[name](x)
    axis = draw(st.sampled_from(range(x.type.rank)))
    return SPELLINGS[name](x, axis)


def _movement(draw: Draw, pool: list[Node]) -> Node:
    x = draw(st.sampled_from([p for p in pool if p.shape]))
    kind = draw(st.sampled_from(("new", "first", "cut", "flat", "join", "repeat", "transpose", "select")))
    if kind == "new":
        return expand_dims(x, (draw(st.sampled_from(range(x.type.rank + 1))),))
    if kind == "first":
        return index(x, [0])
    if kind == "select":
        return index(x, [slice(None), 1])
    if kind == "cut":
        return index(x, [slice(1, None)])
    if kind == "flat":
        return reshape(x, (x.type.numel,))
    if kind == "join":
        return concat([x, draw(st.sampled_from(pool))], 0)
    if kind == "repeat":
        return broadcast(x, (*draw(st.sampled_from(pool)).shape[:1], *x.shape))
    return transpose(x)


def _choice(draw: Draw, pool: list[Node]) -> Node:
    a, b, c = (draw(st.sampled_from(pool)) for _ in range(3))
    if draw(st.booleans()):
        b = 0.0 * b
    return where(compare(draw(st.sampled_from(("gt", "le"))), a, c), a, b)


_STEPS = (_elementwise, _bounded, _binary, _binary, _number, _product, _product, _reduction, _movement, _choice)


@st.composite
def programs(draw: Draw, most: int = 9) -> Graph:
    """A graph with one output that depends on at least one variable."""
    leaves = {name: variable(name, TensorType(shape)) for name, shape in shapes(draw(st.booleans())).items()}
    pool = [
        leaves[name] for name in draw(st.lists(st.sampled_from(sorted(leaves)), min_size=2, max_size=5, unique=True))
    ]
    if not any(p.shape for p in pool):
        pool.append(leaves["x"])
    for _ in range(draw(st.integers(1, most))):
        try:
            found = draw(st.sampled_from(_STEPS))(draw, pool)
        except ShapeError:
            continue
        if found.type.rank <= 3:
            pool += [found] * 2  # newer values are used more often, so that programs get deep
    root = pool[-1]
    inputs = tuple(n for n in Graph((), (root,)).nodes if "name" in n.params and n.is_leaf)
    return Graph(inputs, (root,), ("f",))


def weighted_sum(root: Node) -> Node:
    """A scalar that depends differently on every element: a Jacobian is then seen through one gradient."""
    if not root.shape:
        return root
    numbers = variable("weights", root.type)
    return sum_axes(root * numbers)


def weights_of(scalar: Node, root: Node, shape: tuple[int, ...]) -> dict[Node, np.ndarray]:
    """The weights of :func:`weighted_sum`."""
    return (
        {}
        if scalar is root
        else {variable("weights", root.type): np.linspace(0.6, 1.4, int(np.prod(shape))).reshape(shape)}
    )
