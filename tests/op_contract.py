"""What tests/test_ops.py needs to try any op on its own samples: programs, numbers, finite differences, torch.

Nothing here knows an op by name; what an op cannot be asked is stated in test_ops.py, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.backends.source import LANGUAGES, write
from chainrule.backends.source.sizes import shape_helper
from chainrule.backends.torch import emit
from chainrule.interpreters.evaluate import evaluate
from chainrule.ir import Dim, Graph, Node, Op, Sample, TensorType, TupleType, apply, item, variable
from chainrule.ops.arithmetic import compare
from chainrule.ops.contraction import sum_axes

STEP = 1e-5  # of central differences: truncation ~1e-10 and rounding ~1e-11 of the function's size


@dataclass(frozen=True)
class Trial:
    """One op on one sample: leaves ``x0, x1, ...``, their arrays, the node, and its outputs."""

    op: Op
    sample: Sample
    leaves: tuple[Node, ...]
    arrays: tuple[Any, ...]
    node: Node
    outputs: tuple[Node, ...]

    @property
    def values(self) -> dict[Node, Any]:
        """leaf -> array"""
        return dict(zip(self.leaves, self.arrays, strict=True))

    @property
    def floats(self) -> list[Node]:
        """The operands that may have derivatives."""
        return [leaf for leaf in self.leaves if leaf.type.is_float]

    def generator(self) -> np.random.Generator:
        """Its own random numbers, the same in every run."""
        return np.random.default_rng([*self.op.name.encode(), len(self.leaves), *map(np.size, self.arrays)])


def type_of(array: Any) -> TensorType:
    """The type of a sample's operand."""
    array = np.asarray(array)
    return TensorType(array.shape, str(array.dtype))


def trial(op: Op, sample: Sample) -> Trial:
    """The op applied to leaves that stand for the sample's arrays."""
    arrays = tuple(np.asarray(a) for a in sample.args)
    leaves = tuple(variable(f"x{k}", type_of(a)) for k, a in enumerate(arrays))
    node = apply(op, *leaves, **sample.params)
    return Trial(op, sample, leaves, arrays, node, outputs_of(node))


def outputs_of(node: Node) -> tuple[Node, ...]:
    """The tensors that a node gives."""
    if isinstance(node.type, TupleType):
        return tuple(item(node, k) for k in range(len(node.type.items)))
    return (node,)


def written(op: Op, sample: Sample) -> tuple[Node, dict[str, tuple[int, ...]]]:
    """The op on named float leaves, as a formula can say it: a condition becomes a comparison with zero."""
    shapes: dict[str, tuple[int, ...]] = {}
    operands = []
    for k, array in enumerate(sample.args):
        shapes[f"x{k}"] = np.shape(array)
        leaf = variable(f"x{k}", TensorType(np.shape(array)))
        operands.append(compare("gt", leaf, 0.0) if np.asarray(array).dtype == bool else leaf)
    return apply(op, *operands, **sample.params), shapes


# ---- derivatives -------------------------------------------------------------------------------------------
def weighted(outputs: Sequence[Node], generator: np.random.Generator) -> tuple[Node, dict[Node, Any]]:
    """A scalar that depends on every element of every float output, and the values of its weights."""
    total: Node | None = None
    values: dict[Node, Any] = {}
    for k, output in enumerate(o for o in outputs if o.type.is_float):
        weight = variable(f"weight {k}", output.type)
        values[weight] = generator.uniform(0.5, 1.5, output.shape)
        part = sum_axes(output * weight)
        total = part if total is None else total + part
    assert total is not None
    return total, values


def central(function: Callable[[np.ndarray], Any], at: np.ndarray) -> np.ndarray:
    """d function / d at by central differences, element by element: shape ``at.shape + function(at).shape``."""
    columns = []
    for k in range(at.size):
        step = np.zeros(at.size)
        step[k] = STEP
        step = step.reshape(at.shape)
        columns.append((np.asarray(function(at + step)) - np.asarray(function(at - step))) / (2 * STEP))
    if not columns:
        return np.zeros(at.shape + np.shape(function(at)))
    return np.stack(columns).reshape(at.shape + columns[0].shape)


def number(node: Node, values: dict[Node, Any]) -> np.ndarray:
    """The value of one node."""
    return np.asarray(evaluate([node], values)[0])


def close(a: Any, b: Any, tolerance: float) -> bool:
    """Equal to ``tolerance`` of the larger of 1 and the largest value."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return False
    finite = np.isfinite(a)
    scale = max(1.0, float(np.max(np.abs(b[finite]), initial=0.0)))
    return bool(np.all(np.abs(a[finite] - b[finite]) <= tolerance * scale))


# ---- torch -------------------------------------------------------------------------------------------------
def tensor_of(array: Any, requires_grad: bool = False) -> torch.Tensor:
    """An operand for the emitted code."""
    tensor = torch.as_tensor(np.array(array))
    return tensor.requires_grad_() if requires_grad and tensor.is_floating_point() else tensor


def emitted(graph: Graph) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The emitted torch code with autograd on."""
    namespace: dict[str, Any] = {"torch": torch}
    exec(emit(graph), namespace)
    return namespace["forward"]


# ---- source ------------------------------------------------------------------------------------------------
def named_sizes(t: Trial) -> Graph:
    """The op on leaves whose sizes are names, one name per number."""

    def type_named(type_: TensorType) -> TensorType:
        return TensorType(tuple(s if s == 1 else Dim(f"n{s}") for s in type_.shape), type_.dtype)

    leaves = tuple(variable(leaf.params["name"], type_named(leaf.type)) for leaf in t.leaves)
    return Graph(leaves, outputs_of(apply(t.op, *leaves, **t.sample.params)))


def outputs_of_source(graph: Graph, language: str, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """What the source of a graph returns for arrays."""
    function = write(graph, "f", LANGUAGES[language], packed=True)
    parts = [*LANGUAGES[language].imports, "import math", shape_helper(LANGUAGES[language]), *function.helpers]
    namespace: dict[str, Any] = {}
    exec("\n".join([*parts, function.text]), namespace)
    given = [tensor_of(a) for a in arrays] if language == "torch" else arrays
    sizes = dict.fromkeys(function.sizes, 3)
    return namespace["f"](*given, **sizes)
