"""Results written over operands: the same numbers, in less memory, and never over something that is still read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import chainrule.ops  # noqa: F401  (fills the registry)
from benchmarks import step_time
from chainrule.backends.torch import compile
from chainrule.backends.torch.reuse import aliases
from chainrule.ir import OPS, Graph, Node, Op, Sample, TensorType, apply, constant, variable
from chainrule.ops.contraction import einsum, sum_axes
from tests.op_contract import outputs_of, tensor_of, trial

IN_PLACE = [
    pytest.param(op, sample, position, id=f"{op.name}-{n}-{position}")
    for op in OPS.values()
    for n, sample in enumerate(op.samples)
    for position in op.in_place
]
VALUED = [
    pytest.param(op, sample, id=f"{op.name}-{n}")
    for op in OPS.values()
    if op.torch is not None
    for n, sample in enumerate(op.samples)
]


def _fresh(x: Node) -> Node:
    """The value of a leaf in memory of its own."""
    return x * constant(1.0, x.type.dtype)


@pytest.mark.parametrize("op, sample, position", IN_PLACE)
def test_in_place_gives_the_same_numbers(op: Op, sample: Sample, position: int) -> None:
    t = trial(op, sample)
    if t.leaves[position].type != t.node.type:
        return  # never written over
    operands = [_fresh(x) if k == position else x for k, x in enumerate(t.leaves)]
    node = apply(op, *operands, **sample.params)
    over, plain = (compile(Graph(t.leaves, (node,)), reuse=reuse) for reuse in (True, False))
    arrays = [tensor_of(a) for a in t.arrays]
    before = [a.clone() for a in arrays]
    assert torch.equal(over(*arrays)[0].nan_to_num(7.0), plain(*arrays)[0].nan_to_num(7.0))
    assert all(torch.equal(a, b) or bool(a.isnan().any()) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("op, sample", VALUED)
def test_what_aliases_says_so(op: Op, sample: Sample) -> None:
    t = trial(op, sample)
    if aliases(t.node):
        return
    graph = Graph(t.leaves, outputs_of(t.node))
    arrays = [tensor_of(a) for a in t.arrays]
    own = {a.untyped_storage().data_ptr() for a in arrays if a.numel()}
    for result in compile(graph)(*arrays):
        assert not result.numel() or result.untyped_storage().data_ptr() not in own


X = variable("x", TensorType((3, 4), "float64"))
VALUES = torch.from_numpy(np.linspace(-1.0, 2.0, 12).reshape(3, 4))


def _op(name: str, *inputs: Any, **params: Any) -> Node:
    return apply(OPS[name], *inputs, **params)


def _both(*outputs: Node) -> str:
    """The source with reuse, after comparing its numbers with those without; the input stays as it was."""
    graph = Graph((X,), outputs)
    given = VALUES.clone()
    over, plain = compile(graph, reuse=True), compile(graph)
    for a, b in zip(over(given), plain(given), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    assert torch.equal(given, VALUES)
    return over.source


def _keep(x: Node) -> Node:
    """The value behind something that hides where its memory comes from."""
    return _op("slice", _op("concat", x, x, axis=0), starts=(0, 0), stops=(3, 4), steps=(1, 1))


def test_a_chain_lives_in_one_tensor() -> None:
    source = _both(_op("tanh", _op("exp", X) * 2.0 + 1.0))
    assert source.count("mul_(") == source.count("add_(") == source.count("out=") == 1


def test_what_is_read_again_is_kept() -> None:
    e = _op("exp", X)
    source = _both(_op("tanh", e) * _op("sin", e))
    assert "tanh(t0)" in source or "sin(t0)" in source


def test_a_view_that_is_read_later_keeps_its_memory() -> None:
    e = _op("exp", X)
    turned = einsum("ij->ji", e)
    doubled = e * 2.0
    source = _both(doubled, turned + 1.0)
    assert "mul_(" not in source


def test_a_slice_and_a_broadcast_are_not_written_over() -> None:
    e = _op("exp", X)
    part = _op("slice", e, starts=(0, 0), stops=(2, 4), steps=(1, 1))
    wide = _op("broadcast", sum_axes(X), shape=(3, 4))
    assert "_(" not in _both(part * 2.0, wide * 3.0).replace("broadcast_to(", "")


def test_both_operands_in_one_memory() -> None:
    e = _op("exp", _op("slice", X, starts=(0, 0), stops=(3, 3), steps=(1, 1)))
    assert "add_(" not in _both(e + einsum("ij->ji", e))


def test_outputs_and_inputs_stay() -> None:
    e = _op("exp", X)
    assert "mul_(" not in _both(e, e * 2.0) and "mul_(" not in _both(X * 2.0)


def test_an_operand_that_lies_in_another_order_is_not_taken() -> None:
    turned = einsum("ij->ji", _op("exp", einsum("ij->ji", _op("sin", X))))
    assert "add_(" not in _both(_keep(_op("cos", X)) + turned)
    assert "mul_(" in _both(turned * _op("cos", X))


def test_a_result_takes_the_memory_of_a_value_that_died_before() -> None:
    x = variable("x", TensorType((128, 128), "float32"))
    a = _op("exp", x)
    b = einsum("ij,jk->ik", a, x)  # the last reader of a
    c = einsum("ij,jk->ik", b, x)
    graph = Graph((x,), (c, b))
    given = torch.randn(128, 128)
    over, plain = compile(graph, reuse=True), compile(graph)
    assert "out=" in over.source and "out=" not in plain.source
    for left, right in zip(over(given), plain(given), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("make", [step_time.gpt2, step_time.t5, step_time.lstm], ids=lambda make: make.__name__)
def test_a_step_needs_no_more_memory_than_eager(make: Any) -> None:
    row = step_time.measure(make, rounds=0)
    assert row["peak"] <= 1.0
