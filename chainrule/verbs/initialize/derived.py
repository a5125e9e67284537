"""Weights that are computed from parameters: spectral norms, orthogonal maps, standardised kernels.

How large such a weight is does not follow from the size of the parameter behind it, so it is computed, once, and
counts as given. Where a matrix is divided by a size of itself (spectral norm), the parameter is drawn orthogonal: all
its singular values are the largest then, which is what such a layer can keep at most, and one step of a power
iteration from anywhere finds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.errors import ChainruleError
from chainrule.frontends.torch import Trace
from chainrule.interpreters.evaluate import evaluate
from chainrule.ir import OPS, Node, TensorType
from chainrule.verbs.initialize.graph_roles import nodes_of, views
from chainrule.verbs.initialize.held import is_sharded
from chainrule.verbs.initialize.laws import Layout, Orthogonal, orthonormal

_MOST = 1 << 20  # elements of a weight up to which it is computed
_COMPUTED = ("kernel", "linear_algebra")
_USES = ("linear", "einsum", "convolution", "conv_transpose")


@dataclass(frozen=True)
class Derived:
    """One weight that is computed.

    Attributes:
        node: as a layer uses it. behind: the parameters that act through it alone. free: which of them are divided by
            a size of themselves. second: the mean square of its elements.
    """

    node: Node
    behind: tuple[Node, ...]
    free: frozenset[Node]
    second: float


def derived(traced: Trace) -> list[Derived]:
    """The computed weights of a program whose size can be known, in its order."""
    order, own, parameters = nodes_of(traced), views(traced), set(traced.parameters.values())
    data, above = set(traced.batch_inputs.values()), {}
    moving: set[Node] = set()
    users: dict[Node, list[Node]] = {}
    for node in order:
        above[node] = frozenset({node} & parameters).union(*(above[i] for i in node.inputs))
        if node in data or any(i in moving for i in node.inputs):
            moving.add(node)
        for i in node.inputs:
            users.setdefault(i, []).append(node)
    found = []
    for node in order:
        if node in moving or node in own or not isinstance(node.type, TensorType) or node.type.rank < 2:
            continue
        if not above[node] or not any(u in moving and u.op.name in _USES for u in users.get(node, ())):
            continue
        free, computed = _how(node, above, own)
        if not free and not computed:
            continue
        inside = _ancestors(node)
        behind = tuple(p for p in above[node] if all(u in inside for u in users.get(p, ())))
        second = _second(traced, node, free & set(behind))
        if second is not None:
            found.append(Derived(node, behind, free & frozenset(behind), second))
    return found


def _ancestors(node: Node) -> set[Node]:
    inside, stack = {node}, [node]
    while stack:
        for i in stack.pop().inputs:
            if i not in inside:
                inside.add(i)
                stack.append(i)
    return inside


def _how(node: Node, above: Mapping[Node, frozenset[Node]], own: Mapping[Node, Node]) -> tuple[frozenset[Node], bool]:
    """(parameters that are divided by a size of themselves, whether a matrix function is on the way)."""
    free: set[Node] = set()
    computed = False
    for n in _ancestors(node):
        if n.op is OPS["div"] and above[n.inputs[0]] & above[n.inputs[1]]:
            computed = True
            leaf = own.get(n.inputs[0])
            if leaf is not None and leaf in above[n.inputs[1]] and leaf.type.rank >= 2:
                free.add(leaf)
        elif n.inputs and above[n] and (n.op.family in _COMPUTED or n.op.name == "householder_product"):
            computed = True
    return frozenset(free), computed


def isometric(shape: tuple[int, ...]) -> Orthogonal:
    """Orthonormal rows or columns of a weight whose rows are the units, all else what one reads."""
    long = math.sqrt(max(shape[0], math.prod(shape[1:])))
    law = Orthogonal(1.0, Layout((0,), tuple(range(1, len(shape)))), shape)
    return Orthogonal(1.0 / (law.std * long), law.layout, shape)


def _second(traced: Trace, node: Node, free: frozenset[Node]) -> float | None:
    """The mean square of the elements of a computed weight; None where it cannot be had."""
    size = math.prod(int(s) for s in node.shape)  # type: ignore[arg-type]
    if size > _MOST:
        return None
    values: dict[Node, np.ndarray] = {}
    for leaf in _ancestors(node):
        tensor = traced.values.get(leaf)
        if tensor is None:
            continue
        shape = tuple(tensor.shape)
        if leaf in free:
            values[leaf] = orthonormal(1, shape[0], math.prod(shape[1:]), 0)[0].reshape(shape).numpy()
        elif tensor.is_meta or tensor.is_complex():
            return None
        else:
            whole: Any = tensor
            whole = whole.full_tensor() if is_sharded(whole) else whole
            values[leaf] = whole.detach().to("cpu", torch.float64).numpy()
    try:
        (found,) = evaluate([node], values)
    except (ChainruleError, ValueError, np.linalg.LinAlgError):  # an op without a value, a matrix without an inverse
        return None
    second = float(np.mean(np.square(found)))
    return second if math.isfinite(second) and second > 0 else None
