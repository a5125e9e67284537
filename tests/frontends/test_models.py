"""Whole models against autograd: bits of the forward pass and of buffers, gradients in two dtypes.

The models and the comparison are those of ``python -m benchmarks.models``.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chainrule as cr
from benchmarks import layers, models
from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.frontends.torch import trace

LAYERS = layers.layers()
# One of every kind in every run; all of them, and the families of the transformers library, where slow tests run.
SHORT = (
    "Softplus", "PReLU(3)", "Bilinear", "Conv2d strided", "ConvTranspose1d", "MaxPool2d", "BatchNorm2d", "GroupNorm",
    "Dropout2d", "Embedding", "EmbeddingBag offsets", "CrossEntropyLoss smoothed", "CTCLoss", "LSTM two", "GRU packed",
    "MultiheadAttention fast", "TransformerEncoder", "TransformerDecoderLayer", "weight_norm", "spectral_norm",
)  # fmt: skip


def assert_right(row: models.Row, tolerance: float = models.FLOAT64) -> None:
    assert not row.error
    assert row.bits
    assert row.buffers
    assert row.float64 <= tolerance
    assert row.float32 <= models.FLOAT32


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in LAYERS])
def test_layers(name: str) -> None:
    assert_right(models.measured(name, LAYERS[name]))


FAMILIES = ("gpt2", "llama", "bert", "t5", "vit", "resnet", "convnext", "whisper-encoder", "clip", "mamba")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_have_no_opaque_node(name: str) -> None:
    pytest.importorskip("transformers")
    from benchmarks import configurations

    row = models.measured(name, configurations.families()[name])
    # Mamba scans in float32 whatever its dtype is: both gradients have that rounding
    assert_right(row, models.ROUNDED if name == "mamba" else models.FLOAT64)
    assert not row.opaque


def test_attention_with_dropout_has_no_opaque_node() -> None:
    assert not models.measured("attention", LAYERS["MultiheadAttention fast"]).opaque


class Kept(nn.Module):
    """Writes a buffer by ``out=``, with several outputs where ``both``."""

    kept: torch.Tensor
    places: torch.Tensor

    def __init__(self, both: bool = False, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
        self.both = both
        self.register_buffer("kept", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("places", torch.zeros(3, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if self.both:
                torch.max(x * self.weight, 0, out=(self.kept, self.places))
            else:
                torch.mul(x[0], self.weight, out=self.kept)
        return (self.kept.clone() * x * self.weight).square().mean()


@pytest.mark.parametrize("both", [False, True])
def test_out_is_written(both: bool) -> None:
    row = models.measured("out", lambda: (Kept(both), torch.linspace(-1, 2, 12).reshape(4, 3)))
    assert_right(row)
    case = cr.case(Kept(both), torch.linspace(-1, 2, 12).double().reshape(4, 3), objective=models.objective)
    assert set(case.trace.updates) == ({"kept", "places"} if both else {"kept"})


def test_out_of_another_size_is_refused() -> None:
    case = cr.case(Kept(size=1), torch.ones(4, 3, dtype=torch.float64), objective=models.objective)
    with pytest.raises(UnsupportedOpError, match="changes the size"):
        _ = case.trace


def test_masks_are_combined() -> None:
    def joined(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = x > 0, x < 1
        return torch.where((a & b) | ~(a ^ b), m(x), 2 * x).square().mean()

    model, x = nn.Linear(3, 3).double(), torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(4, 3)
    case = cr.case(model, x, objective=joined)
    assert case.trace.bit_equal
    assert not case.trace.opaque
    with pytest.raises(UnsupportedOpError, match="bit by bit"):
        trace(lambda x: x.long() & x.long(), (x,))


def test_a_long_loop_is_refused_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.frontends.torch.meanings.LONGEST", 50)

    def looped(x: torch.Tensor) -> torch.Tensor:
        for _ in range(60):
            x = torch.tanh(x)
        return x

    with pytest.raises(UnsupportedOpError, match=r"test_models.py:\d+: the program makes more than 50 calls"):
        trace(looped, (torch.ones(2),))


def test_parameters_that_do_not_reach_the_loss_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.cut = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + self.cut(x).detach()

    case = cr.case(Half(), torch.ones(3, 2), objective=models.objective)
    assert case.trace.unreached == ("idle.weight", "idle.bias", "cut.weight", "cut.bias")
    assert cr.case(nn.Linear(2, 2), torch.ones(3, 2), objective=models.objective).trace.unreached == ()


def test_nothing_differentiable_is_refused() -> None:
    case = cr.case(nn.Linear(2, 2), torch.ones(3, 2), objective=lambda m, x: m(x).detach().sum())
    with pytest.raises(ModelError, match=r"no parameter reaches the loss"):
        _ = case.step
