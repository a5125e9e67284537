"""Fields of a case: the leaves' laws, and both passes of the traced graph.

``Program.run`` is what ``moments`` reports and what ``initialize_`` searches with: parameters may be given other means
and mean squares by name, and a run costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from chainrule.interpreters import fields as propagation
from chainrule.ir import Node, TensorType
from chainrule.ir.field import Field, fixed, iid, unknown
from chainrule.ops.fields.registry import sizes

_NORMAL = NormalDist()

Moments2 = tuple[float, float]  # mean and mean square of a parameter's elements


@dataclass(frozen=True, eq=False)
class Propagation:
    """Both passes of a traced program.

    Attributes:
        forward, backward: expanded node -> field. image: node of the trace -> expanded node.
    """

    trace: Any
    image: Mapping[Node, Node]
    forward: Mapping[Node, Field]
    backward: Mapping[Node, Field]

    def value(self, node: Node) -> Field | None:
        """The field of a node of the trace."""
        found = self.forward.get(self.image.get(node, node))
        return found if isinstance(found, Field) else None

    def cotangent(self, node: Node) -> Field | None:
        """The field of its cotangent; None without a loss, or where none reaches it."""
        found = self.backward.get(self.image.get(node, node))
        return found if isinstance(found, Field) else None

    def parameter(self, name: str) -> Field | None:
        """The field of a parameter's gradient."""
        return self.cotangent(self.trace.parameters[name])


@dataclass(frozen=True, eq=False)
class Program:
    """A traced program, expanded once; :meth:`run` takes fields through it."""

    trace: Any
    roots: tuple[Node, ...]
    image: Mapping[Node, Node]
    leaves: Mapping[Node, Field]
    every: tuple[Node, ...] = ()

    @classmethod
    def of(cls, trace: Any, backward: bool = True, statistics: Mapping[str, Moments2] | None = None) -> Program:
        """The program of a trace. ``statistics``: of parameters by name, where they are already known."""
        named = [n for n in trace.graph.names.values() if isinstance(n.type, TensorType)]
        roots = [*([trace.loss] if trace.loss is not None else []), *trace.outputs, *trace.graph.outputs]
        image = propagation.expanded([*roots, *named])
        every = tuple(image[n] for n in trace.graph.nodes if n in image)
        return cls(trace, tuple(roots), image, leaf_fields(trace, statistics), every)

    def run(self, weights: Mapping[str, Moments2] | None = None, backward: bool = True) -> Propagation:
        """Both passes, with parameters of other mean and mean square where ``weights`` names them."""
        trace = self.trace
        leaves = dict(self.leaves)
        for name, (mean, second) in (weights or {}).items():
            leaf = trace.parameters[name]
            leaves[leaf] = redrawn(name, sizes(leaf.shape), float(mean), float(second))
        roots = [*(self.image[n] for n in self.roots), *self.every]
        states = propagation.forward(roots, leaves)
        found: dict[Node, Field] = {}
        if backward and trace.loss is not None:
            wrt = [*trace.parameters.values(), *(n for n in trace.batch_inputs.values() if n.type.is_float)]
            found = propagation.backward(self.image[trace.loss], states, list(dict.fromkeys(wrt)))
        return Propagation(trace, self.image, states, found)


# ---- leaves ------------------------------------------------------------------------------------------------
def leaf_fields(trace: Any, statistics: Mapping[str, Moments2] | None = None, strata: bool = True) -> dict[Node, Field]:
    """The field of every leaf: parameters redrawn with their own statistics, data and buffers as they are.

    ``strata``: vectors that differ much from unit to unit are taken at the quantiles of their law, not as random.
    """
    names: dict[Node, str] = {}
    for name, leaf in trace.parameters.items():
        names.setdefault(leaf, name)
    found: dict[Node, Field] = {}
    for leaf, tensor in trace.values.items():
        if leaf in names:
            name = names[leaf]
            if statistics is not None and name in statistics:
                found[leaf] = redrawn(name, sizes(leaf.shape), *statistics[name])
            else:
                found[leaf] = parameter_field(name, tensor)
                if strata:
                    found[leaf] = stratified(found[leaf])
        else:
            found[leaf] = data_field(leaf, tensor)
    return found


def redrawn(name: str, shape: Sequence[int], mean: float, second: Any) -> Field:
    """Independent elements of this mean and mean square; a constant where there is no variance."""
    average = float(np.mean(second))
    if average - mean * mean <= 1e-12 * max(average, 1e-300):
        one = np.full((1,) * len(shape), mean)
        base = iid(shape, mean, mean * mean)
        return replace(
            base, pairs=one * one, second=one * one, array=one, kurtosis=1.0, own=0.0, sources=frozenset({name})
        )
    source = frozenset({name})
    return iid(
        shape,
        mean,
        second,
        normal=True,
        fresh=True,
        sources=source,
        odd=source if mean == 0 else frozenset(),
        why=f"{name} redrawn",
    )


def parameter_field(name: str, tensor: torch.Tensor) -> Field:
    """A parameter redrawn with its own mean and mean square (per tap of a kernel)."""
    shape = tuple(tensor.shape)
    if tensor.is_meta:
        return declared(name, shape)
    values = tensor.detach()
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    count = max(values.numel(), 1)
    mean = float(values.sum(dtype=torch.float64 if count < 1_000_000 else None)) / count
    if values.dim() > 2:
        by_tap = values.double().pow(2).mean(dim=(0, 1))
        second: Any = by_tap.cpu().numpy().reshape(1, 1, *by_tap.shape)
    else:
        second = (
            float(torch.linalg.vector_norm(values, dtype=torch.float64 if count < 1_000_000 else None)) ** 2 / count
        )
    if values.dim() == 2 and 0 < (empty := _empty_rows(values)).sum() < len(empty):
        second = np.where(empty, 0.0, float(second) / (1.0 - float(np.mean(empty))))[:, None]  # of a padding number
    average = float(np.mean(second))
    centred = abs(mean) <= 4 * np.sqrt(average / count)
    if not np.isfinite(average):
        return unknown(shape, f"{name} holds nan or inf", frozenset({name}))
    constant = average - mean * mean <= 1e-10 * average or count == 1
    if not constant and _repeats(values):
        return replace(
            fixed(values.double().cpu().numpy(), why=f"{name} repeats its rows: given numbers"),
            sources=frozenset({name}),
        )
    if constant and values.min() == values.max():
        return redrawn(name, shape, mean, mean * mean)
    return redrawn(name, shape, 0.0 if centred and not constant else mean, second)


def _empty_rows(values: torch.Tensor) -> np.ndarray:
    """Which rows of a matrix are zero. A matrix with another kind of zeros has none that say anything."""
    return (values == 0).all(dim=1).cpu().numpy() if values.numel() <= _MOST_READ else np.zeros(1, dtype=bool)


_MOST_READ = 50_000_000
_WIDE = 0.8  # standard deviation above which a vector's units are told apart


def stratified(value: Field) -> Field:
    """A drawn vector whose units differ much, such as the biases that set time scales, at the quantiles of its law.

    Functions of it and of what it is added to are then known unit by unit, and so are products of several such
    functions, which would otherwise count as independent. Means over the units are those of a typical draw.
    """
    if len(value.shape) != 1 or not value.fresh or value.shape[0] < 16 or float(np.mean(value.variance)) < _WIDE**2:
        return value
    n, mean, std = value.shape[0], value.mean_value, float(np.sqrt(np.mean(value.variance)))
    z = np.array([_NORMAL.inv_cdf((k + 0.5) / n) for k in range(n)])
    array = mean + std * z / np.sqrt(np.mean(z * z))
    return replace(
        fixed(array), sources=value.sources, strata=n, kind="approximate", why="its units at the quantiles of its law"
    )


def _repeats(values: torch.Tensor) -> bool:
    """Whether all rows of a matrix are one row: laid out by rule, not drawn."""
    return values.dim() == 2 and values.shape[0] > 1 and values.shape[1] > 1 and bool((values == values[:1]).all())


def declared(name: str, shape: Sequence[int]) -> Field:
    """A parameter without values: one for norms' weights, zero for biases, 1 / fan_in for matrices."""
    if len(shape) < 2:
        return redrawn(name, shape, 0.0 if name.endswith("bias") else 1.0, 0.0 if name.endswith("bias") else 1.0)
    fan_in = int(np.prod(shape[1:]))
    return redrawn(name, shape, 0.0, 1.0 / fan_in)


def data_field(leaf: Node, tensor: torch.Tensor) -> Field:
    """Data and buffers: as they are, or standard normal without values."""
    shape = tuple(tensor.shape)
    grades = grading(shape, leaf.type.is_float)
    if tensor.is_meta:
        if leaf.type.is_float:
            return iid(
                shape, 0.0, 1.0, grades, normal=True, kind="approximate", why="data without values: standard normal"
            )
        return iid(shape, 0.0, 1.0, grades, kind="approximate", why="integers without values: all different")
    array = tensor.detach().to(torch.float64).cpu().numpy()
    if not np.all(np.isfinite(array)) and not np.any(np.isneginf(array)):
        return unknown(shape, "the data hold nan or inf")
    return fixed(np.nan_to_num(array, neginf=-1e9), grades, why="as given")


def grading(shape: Sequence[int], floating: bool) -> list[int | None]:
    """How finely pairs of positions of data are told apart, by dimension."""
    rank = len(shape)
    grades: list[int | None] = []
    for d, n in enumerate(shape):
        if d == 0:
            grades.append(None if n <= (8 if rank > 2 else 32) and rank > 1 else 0)
        elif rank == 2:
            grades.append((None if n <= 64 else 0) if not floating else 0)
        elif rank == 3:
            grades.append(None if n <= 24 else 4)
        elif d == 1:
            grades.append(0)
        else:
            grades.append(None if n <= 8 else 4)
    return grades
