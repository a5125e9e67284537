"""Repeated parts are found by structure: same ops, types and wiring, whatever the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chainrule as cr
import chainrule.ops
from chainrule.interpreters.repeats import pattern
from chainrule.ir import TensorType, variable

X, Y = (variable(n, TensorType((3,), "float64")) for n in "xy")
A, B = (variable(n, TensorType((3,), "float64")) for n in "ab")


def test_leaves_do_not_count_and_wiring_does() -> None:
    assert pattern([X * A + X], [X]) == pattern([Y * B + Y], [Y])
    assert pattern([X * A + X], [X]) != pattern([Y * B + B], [Y])  # another operand
    assert pattern([X * A * A], [X]) != pattern([X * A * B], [X])  # a shared weight
    assert pattern([X * 2.0], [X]) != pattern([X * 3.0], [X])
    assert pattern([X * A, X], [X]) != pattern([X, X * A], [X])
    wide = variable("w", TensorType((4,), "float64"))
    assert pattern([X * A], [X]) != pattern([wide * wide], [wide])


def test_layers_of_a_model() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 3), nn.Linear(8, 4), nn.Linear(4, 4))
    repeats = cr.case(model, torch.randn(2, 5, 4)).trace.repeats
    assert repeats == (("1.layers.0", "1.layers.1", "1.layers.2"),)  # with dropout: streams differ


@pytest.mark.parametrize("change", ["width", "activation"])
def test_a_layer_that_differs_is_not_among_them(change: str) -> None:
    def block(width: int, activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), activation, nn.Linear(width, 6))

    other = block(5, nn.ReLU()) if change == "width" else block(7, nn.Tanh())
    model = nn.Sequential(block(7, nn.ReLU()), block(7, nn.ReLU()), other)
    groups = cr.case(model, torch.randn(2, 6)).trace.repeats
    assert groups[0] == ("0", "1") and not any("2" in g for g in groups)
