"""Moments of models against published and exact numbers: depth laws, fans, borders, norms, scores, audits.

Figures are exact formulas, or measured means over many draws; tolerances are stated with them (3 % where nothing is).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import chainrule as cr
from chainrule.errors import ModelError


def mlp(
    width: int, depth: int, activation: Callable[[], nn.Module], gain: float | None, head: bool = True
) -> nn.Module:
    """Square layers without values and without biases (with ``gain``: their laws are given by :func:`exact`)."""
    with torch.device("meta"):
        return _mlp(width, depth, activation, gain, head)


def _mlp(width: int, depth: int, activation: Callable[[], nn.Module], gain: float | None, head: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width, bias=gain is None), activation()]
    return nn.Sequential(*layers, *([nn.Linear(width, 10)] if head else []))


def exact(model: nn.Module, gain: float) -> dict[str, tuple[float, float]]:
    """Weights of exactly this variance over their fan, whatever the draw was."""
    return {f"{n}.weight": (0.0, gain**2 / m.in_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def unit(samples: int, width: int, device: str = "cpu") -> torch.Tensor:
    """Samples of mean square one each; without values, standard normal ones."""
    if device == "meta":
        return torch.zeros(samples, width, device="meta")
    x = torch.randn(samples, width, generator=torch.Generator().manual_seed(1))
    return x / x.pow(2).mean(1, keepdim=True).sqrt()


def labelled(samples: int, width: int, device: str = "meta") -> tuple[torch.Tensor, torch.Tensor]:
    return unit(samples, width, device), (torch.arange(samples) % 10).to(device)


# ---- depth laws --------------------------------------------------------------------------------------------
def test_he_keeps_the_mean_while_single_draws_spread():
    """Mean 1 after 50 ReLU layers; Var ln q is near 5 L / n = 0.49."""
    model = mlp(512, 50, nn.ReLU, math.sqrt(2))
    t = cr.moments(model, unit(1, 512, "meta"), weights=exact(model, math.sqrt(2)))
    row = t.calls("98")[0]
    assert row.second / 2 == pytest.approx(1, rel=0.03)
    low, high = row.band
    assert (math.log(high / low) / 2 / 1.645) ** 2 == pytest.approx(0.49, rel=0.25)


def test_torchs_default_lets_the_gradient_vanish():
    model = mlp(512, 20, nn.ReLU, None)
    weights = {n: (0.0, 1 / (3 * 512)) for n, _ in model.named_parameters()}
    t = cr.moments(model, labelled(8, 512), nn.CrossEntropyLoss(), weights=weights)
    assert t["38"].second == pytest.approx(7.8e-4, rel=0.15)
    ratio = t["0"].grad_second / t["38"].grad_second
    assert 1.64e-15 / 2 < ratio < 1.64e-15 * 2
    vanishing = [f for f in t.findings if f.kind == "vanishing" and f.way == "backward"]
    assert vanishing and vanishing[0].where in {str(k) for k in range(30, 41)} and "initialize_" in vanishing[0].fix


@pytest.mark.parametrize("depth, second", [(100, 0.00507), pytest.param(1000, 5.0e-4, marks=pytest.mark.slow)])
def test_tanh_with_xavier_decays_by_a_power_law(depth: int, second: float):
    model = mlp(64, depth, nn.Tanh, 1.0, head=False)
    t = cr.moments(model, unit(1, 64, "meta"), weights=exact(model, 1.0))
    assert t[str(2 * depth - 1)].second == pytest.approx(second, rel=0.03)
    assert any(f.kind == "vanishing" and f.way == "forward" for f in t.findings)


def test_tanh_with_five_thirds_explodes():
    model = mlp(256, 60, nn.Tanh, 5 / 3)
    t = cr.moments(model, labelled(4, 256), nn.CrossEntropyLoss(), weights=exact(model, 5 / 3))
    assert t["100"].second == pytest.approx(1.1785, rel=0.03)
    chi = (t["60"].grad_second / t["100"].grad_second) ** (1 / 20)
    assert chi == pytest.approx(1.2098, rel=0.03)
    assert any(f.kind == "exploding" and f.way == "backward" for f in t.findings)


def test_selu_with_three_quarters():
    model = mlp(1000, 100, nn.SELU, 0.75)
    t = cr.moments(model, labelled(2, 1000), nn.CrossEntropyLoss(), weights=exact(model, 0.75))
    row = t["199"]
    assert math.sqrt(row.second - row.mean**2) == pytest.approx(0.2024, rel=0.03)
    assert (t["140"].grad_second / t["180"].grad_second) ** (1 / 20) == pytest.approx(1.0036, rel=0.01)


def test_sigmoid_with_gain_one():
    model = mlp(256, 8, nn.Sigmoid, 1.0)
    t = cr.moments(model, labelled(4, 256), nn.CrossEntropyLoss(), weights=exact(model, 1.0))
    assert t["14"].second == pytest.approx(0.2647, rel=0.03)
    assert t["10"].grad_second / t["12"].grad_second == pytest.approx(0.0557, rel=0.03)


@pytest.mark.parametrize(
    "activation, expected", [(nn.GELU, (0.8504, 0.3269, 0.02926)), (nn.SiLU, (0.7116, 0.0993, 0.00357))]
)
def test_root_two_is_no_gain_for_gelu_and_silu(activation: type[nn.Module], expected: tuple[float, ...]):
    """Mean squares before the activation, from a first one of 1."""
    model = mlp(64, 11, activation, math.sqrt(2), head=False)
    weights = exact(model, math.sqrt(2)) | {"0.weight": (0.0, 1 / 64)}
    t = cr.moments(model, unit(1, 64, "meta"), weights=weights)
    for depth, second in zip((1, 5, 10), expected, strict=True):
        assert t[str(2 * depth)].second == pytest.approx(second, rel=0.03)


def test_two_samples_become_alike_under_relu():
    model = _mlp(64, 100, nn.ReLU, math.sqrt(2), head=False)
    x = torch.zeros(2, 64)
    x[0, :32], x[1, 32:] = math.sqrt(2), math.sqrt(2)  # orthogonal
    t = cr.moments(model, x, weights=exact(model, math.sqrt(2)))
    for depth, c in ((1, 0.3183), (10, 0.8715), (50, 0.98786), (100, 0.99642)):
        found = t.calls(str(2 * depth - 1))[0].samples
        assert found == pytest.approx(c, abs=0.002)


def test_batch_norm_makes_the_gradient_grow():
    """pi / (pi - 1) per layer of BatchNorm and ReLU, in training; in evaluation the same network is another."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(12):
        layers += [nn.Linear(256, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    t = cr.moments(model, labelled(128, 256, "cpu"), nn.CrossEntropyLoss())
    growth = (t["10"].grad_second / t["28"].grad_second) ** (1 / 6)
    assert growth == pytest.approx(math.pi / (math.pi - 1), rel=0.03)
    model.eval()
    other = cr.moments(model, labelled(128, 256, "cpu"), nn.CrossEntropyLoss())
    assert other["34"].second < 1e-6 < t["34"].second


# ---- fans --------------------------------------------------------------------------------------------------
def finding(t: object, kind: str, where: str) -> str:
    found = [f for f in t.findings if f.kind == kind and f.where == where]  # type: ignore[attr-defined]
    assert found, [str(f) for f in t.findings]  # type: ignore[attr-defined]
    return str(found[0])


def test_packed_attention_weights_are_drawn_for_another_fan():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 4, batch_first=True)
    x = torch.randn(2, 8, 64)
    t = cr.moments(nn.ModuleDict({"a": attention})["a"], (x, x, x))
    assert "in_proj_weight" in finding(t, "gain", "in_proj_weight")
    assert "n Var(w) = 0.5" in finding(t, "gain", "in_proj_weight") or "0.49" in finding(t, "gain", "in_proj_weight")


def test_transposed_convolution_at_its_default():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False)
    x = torch.randn(2, 64, 32, 32)
    t = cr.moments(nn.Sequential(layer), x, weights={"0.weight": (0.0, 1 / (3 * 32 * 16))})
    inside = ((32 - 1) * 2 + 1) / (2 * 32)  # of the two taps per side, one is outside in the border rows
    assert t["0"].second == pytest.approx(x.pow(2).mean().item() / 6 * inside**2, rel=0.03)
    assert "Var(w) = 1 / 256" in finding(t, "gain", "0.weight")


def test_depthwise_convolution_with_fan_out():
    layer = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    torch.manual_seed(0)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    t = cr.moments(nn.Sequential(layer), torch.randn(1, 64, 32, 32), weights={"0.weight": (0.0, 2 / (64 * 9))})
    coverage = (3 * 32 - 2) / (3 * 32)
    assert t["0"].second == pytest.approx(2 / 64 * coverage**2, rel=0.03)
    assert "9 inputs per output" in finding(t, "gain", "0.weight")


def test_zero_padding_eats_the_border():
    """Coverage of 3 x 3 windows on 8 x 8, propagated as a map: 0.840, 0.742, 0.664, ... 0.353 after 10 layers."""
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(10)))
    weights = {f"{k}.weight": (0.0, 1 / 144) for k in range(10)}
    x = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x / x.pow(2).mean(1, keepdim=True).sqrt()
    t = cr.moments(model, x, weights=weights)
    for k, second in ((0, 0.840), (1, 0.742), (2, 0.664), (9, 0.353)):
        assert t[str(k)].second == pytest.approx(second, rel=0.01)


def test_delta_orthogonal_kernels_keep_both_passes():
    model = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1, bias=False) for _ in range(100)))
    generator = torch.Generator().manual_seed(0)
    for layer in model:
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[:, :, 1, 1] = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    t = cr.moments(model, (torch.randn(2, 32, 8, 8), torch.randn(2, 32, 8, 8)), nn.MSELoss())
    assert t["99"].second / t["0"].second == pytest.approx(1, rel=0.03)
    free = cr.moments(
        nn.Sequential(*model, nn.Flatten(), nn.Linear(2048, 10)),
        (torch.randn(2, 32, 8, 8), torch.tensor([1, 2])),
        nn.CrossEntropyLoss(),
    )
    assert free["0"].grad_second / free["99"].grad_second == pytest.approx(1, rel=0.03)


def test_an_orthogonal_matrix_that_widens_loses_scale():
    layer = nn.Linear(64, 256, bias=False)
    nn.init.orthogonal_(layer.weight)
    t = cr.moments(nn.Sequential(layer), unit(4, 64))
    assert t["0"].second == pytest.approx(0.25, rel=0.01)
    assert "gain sqrt(out / in) = 2" in finding(t, "gain", "0.weight")


# ---- single values -----------------------------------------------------------------------------------------
class Function(nn.Module):
    """A function of a standard normal value: one linear layer before it."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(256, 256, bias=False), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer(x))


def of_normal(function: Callable[[torch.Tensor], torch.Tensor], samples: int = 4):
    return cr.moments(Function(function), unit(samples, 256), weights={"layer.weight": (0.0, 1 / 256)})[""]


def test_norms_of_relu():
    shape = (256,)
    layer = of_normal(lambda u: nn.functional.layer_norm(torch.relu(u), shape))
    rms = of_normal(lambda u: nn.functional.rms_norm(torch.relu(u), shape))
    assert layer.second == pytest.approx(1, rel=0.01) and layer.mean == pytest.approx(0, abs=1e-6)
    assert rms.second == pytest.approx(1, rel=0.01) and rms.mean == pytest.approx(0.564, rel=0.01)


@pytest.mark.parametrize("kernel, mean, second", [(2, 1.029, 1.551), (3, 1.485, 2.563)])
def test_largest_of_white_windows(kernel: int, mean: float, second: float):
    model = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.MaxPool2d(kernel))
    x = torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(0))
    x = x / x.pow(2).mean(1, keepdim=True).sqrt()
    row = cr.moments(model, x, weights={"0.weight": (0.0, 1 / 16)})["1"]
    # windows of 16 channels are not quite white: the sample's own correlations stay
    assert row.mean == pytest.approx(mean, rel=0.05) and row.second == pytest.approx(second, rel=0.06)


def test_pools_of_smooth_images_are_not_those_of_noise():
    """Neighbours of a smooth image are alike: a mean keeps their square, the largest hardly exceeds them."""
    grid = torch.linspace(0, 2 * math.pi, 24)
    x = torch.stack([torch.sin((k + 1) * grid[:, None] / 4 + grid[None, :] / 3) for k in range(8)])[None]
    x = x / x.pow(2).mean().sqrt()
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        model = nn.Sequential(nn.Conv2d(8, 96, 1, bias=False), pool)
        nn.init.normal_(model[0].weight, std=8**-0.5)
        predicted = cr.moments(model, x, weights={"0.weight": (0.0, 1 / 8)})["1"].second
        generator = torch.Generator().manual_seed(0)
        draws = []
        for _ in range(64):
            w = torch.randn(96, 8, 1, 1, generator=generator) / 8**0.5
            draws.append(pool(nn.functional.conv2d(x, w)).pow(2).mean().item())
        assert predicted == pytest.approx(np.mean(draws), rel=0.04)


def test_a_value_with_itself():
    assert of_normal(lambda u: u + u).second == pytest.approx(4, rel=0.001)
    assert of_normal(lambda u: u * u).second == pytest.approx(3, rel=0.001)
    assert of_normal(lambda u: u * torch.sigmoid(u)).second == pytest.approx(0.35578, rel=0.001)
    assert of_normal(lambda u: u - torch.relu(u)).second == pytest.approx(0.5, rel=0.001)


def test_dropout_after_relu():
    row = of_normal(lambda u: nn.functional.dropout(torch.relu(u), 0.5, training=True))
    assert row.second - row.mean**2 == pytest.approx(0.841, rel=0.01)


# ---- transformers ------------------------------------------------------------------------------------------
def test_copied_encoder_layers_and_loud_tied_heads_are_found():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    t = cr.moments(nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), torch.randn(2, 5, 32))
    assert any(f.kind == "duplicate" and "layers.1" in f.where for f in t.findings)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.layer = nn.Embedding(100, 768), nn.LayerNorm(768), nn.Linear(768, 768)
            self.head = nn.Linear(768, 100, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.layer(self.embed(x)))).flatten(0, 1)

    tokens = torch.randint(0, 100, (2, 8))
    t = cr.moments(Tied(), (tokens, tokens.flatten()), nn.CrossEntropyLoss())
    assert math.sqrt(t["head"].second) == pytest.approx(27.7, rel=0.05)
    assert "head" in finding(t, "logits", "head")


GPT2 = [0.00647, 0.0130, 0.0200, 0.0275]


def test_the_residual_stream_of_gpt2():
    """Layers 1, 2, 3, 4 and 11 of GPT-2 small, within 5 % of the mean of measured draws."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=5000, bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config).eval()
        tokens = torch.zeros((1, 64), dtype=torch.long)
    scaled = 0.02 / math.sqrt(24)
    weights = {
        n: (0.0, (scaled if n.endswith("c_proj.weight") else 0.02) ** 2)
        for n, p in model.named_parameters()
        if p.dim() > 1
    }
    t = cr.moments(model, {"input_ids": tokens}, weights=weights)
    found = [t[f"transformer.h.{k}"].second for k in range(12)]
    assert found[:4] == pytest.approx(GPT2, rel=0.05) and found[10] == pytest.approx(0.0797, rel=0.05)
    assert not [f for f in t.findings if f.kind == "residual"]
    for name in list(weights):
        if name.endswith("c_proj.weight"):
            weights[name] = (0.0, 0.02**2)
    loud = cr.moments(model, {"input_ids": tokens}, weights=weights)
    (found,) = [f for f in loud.findings if f.kind == "residual"]
    assert found.where.startswith("transformer.h.0") and "1 / sqrt(24)" in found.fix


def test_scores_of_an_untied_head_of_unit_variance():
    """T5's lm_head without its rescaling: the variance of the scores is the width."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(32, 256), nn.LayerNorm(256)
            self.lm_head = nn.Linear(256, 100, bias=False)
            nn.init.normal_(self.lm_head.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lm_head(self.norm(self.layer(x)))

    x, y = torch.randn(8, 32), torch.randint(0, 100, (8,))
    t = cr.moments(Head(), (x, y), nn.CrossEntropyLoss(), weights={"lm_head.weight": (0.0, 1.0)})
    assert t["lm_head"].second == pytest.approx(256, rel=0.03)
    assert "lm_head.weight" in finding(t, "logits", "lm_head")


def test_half_precision_overflows_at_a_layer_that_is_named():
    """Entries reach 4.5 * 2^(L/2) > 65504 at L near 28."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(40))).half()
    weights = {f"{k}.weight": (0.0, 2 / 64) for k in range(40)}
    t = cr.moments(model, unit(2, 64).half(), weights=weights)
    (found,) = [f for f in t.findings if f.kind == "overflow"]
    assert found.where in {"26", "27", "28"} and "float16" in found.measured


# ---- rows --------------------------------------------------------------------------------------------------
def test_rows_and_parameters_of_a_model():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(16, 3))
    t = cr.moments(model, (torch.randn(4, 16), torch.tensor([0, 1, 2, 0])), nn.CrossEntropyLoss())
    assert len(t.calls("0")) == 2 and t["0"] is t.calls("0")[-1] and t[""].second == t["3"].second
    assert t.parameter("3.weight").grad_second > 0 and t.parameter("0.weight").shape == (16, 16)
    plain = t.to_dict()
    assert {r["name"] for r in plain["parameters"]} >= {"0.weight", "0.bias", "3.weight", "3.bias"}
    with pytest.raises(ModelError, match="no parameter"):
        cr.moments(model, torch.randn(4, 16), weights={"9.weight": (0.0, 1.0)})


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        x = torch.zeros(4, 64)
    t = cr.moments(model, x)
    assert t["0"].second == pytest.approx(1, rel=1e-6) and t["2"].second == pytest.approx(0.5, rel=1e-6)


def test_attention_with_a_mask_and_dropout_step_by_step() -> None:
    """torch takes attention with dropout apart: a choice by "is every score -inf", which no row is."""
    torch.manual_seed(0)
    mask = torch.full((6, 6), -torch.inf).triu(1)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            attend = nn.functional.scaled_dot_product_attention
            return attend(self.q(x), self.k(x), self.v(x), attn_mask=mask, dropout_p=0.1)

    moments = cr.moments(Attention(), (torch.randn(4, 6, 16), torch.randn(4, 6, 16)), nn.MSELoss())
    assert all(row.second is not None and row.grad_second is not None for row in moments.rows)


# ---- what holds for wide layers only -----------------------------------------------------------------------
LAYER_LAWS = {"a": "normal(0, 1)", "W": "iid(0, 1)", "V": "iid(0, 1)", "x": "uniform(-1, 1)", "w": "normal(0, 1)"}
LAYER_SHAPES = {"a": "3", "W": "3,3", "V": "3,3", "x": "3", "c": "3"}
WIDE = [  # formula, kind of E[b^2], kind of E[b]: exact means that draws of three units agree
    ("b = W @ a", "exact", "exact"),
    ("b = V @ relu(W @ a)", "exact", "exact"),
    ("b = relu(W @ a)", "exact", "approximate"),
    ("b = abs(W @ a)", "exact", "approximate"),
    ("b = relu(V @ relu(W @ a))", "exact", "approximate"),
    ("b = (W @ a)^2", "approximate", "exact"),
    ("b = tanh(W @ a)", "approximate", "exact"),
    ("b = sigmoid(W @ a)", "approximate", "approximate"),
    ("h = W @ a; b = h*relu(h)", "approximate", "approximate"),
    ("h = W @ a; b = h*sigmoid(h)", "approximate", "approximate"),
    ("b = relu(W @ a) + 1", "approximate", "approximate"),
    ("b = relu(2 * (W @ a))", "exact", "approximate"),
    ("h = W @ a; b = h + V @ relu(h)", "exact", "exact"),
    ("h = W @ a; b = relu(h + V @ relu(h))", "approximate", "approximate"),
    ("b = relu(a + w*relu(a))", "approximate", "approximate"),
    ("b = relu(c' @ x)", "exact", "approximate"),
    ("b = relu(W @ c)", "exact", "approximate"),
    ("b = c' @ (w * c)", "approximate", "exact"),
    ("b = V @ (relu(W @ a) + 1)", "approximate", "exact"),
]


@pytest.mark.parametrize("source, second, mean", WIDE)
def test_what_holds_for_wide_layers_only_is_approximate(source: str, second: str, mean: str):
    """Exact numbers agree with draws of a narrow network; the others say which value is taken as normal."""
    read = {n for n in LAYER_SHAPES | LAYER_LAWS if re.search(rf"\b{n}\b", source)}
    laws = {n: law for n, law in LAYER_LAWS.items() if n in read}
    m = cr.moments(source, given=laws, shapes={n: s for n, s in LAYER_SHAPES.items() if n in read})
    b = m["b"]
    assert (b.kind, b.mean_kind) == (second, mean)
    for found in m.sampled(300):
        if found.name == "b":
            assert found.agrees or "exact" not in (second if found.power == 2 else mean)
    said = [line for line in m.steps if "as normal: exact for wide layers" in line]
    assert said or {second, mean} == {"exact"} or "w" in read


def test_the_exponential_of_a_normal_value():
    m = cr.moments("b = exp(a)", given={"a": "normal(m, v)"})
    assert (m["b"].mean.text, m["b"].second.text, m["b"].kind) == ("exp(m + v / 2)", "exp(2 * (m + v))", "exact")
    numeric = cr.moments("b = exp(a)", given={"a": "normal(0.3, 0.5)"})["b"]
    assert m["b"].second.evaluate(m=0.3, v=0.5) == pytest.approx(numeric.second.evaluate(), rel=1e-9)
    assert all(s.agrees for s in m.sampled(1000))
    assert "E[b] = unknown" in str(cr.moments("b = tanh(a)", given={"a": "normal(0, v)"})["b"])


def test_the_fourth_moment_of_a_narrow_layer():
    """3 s^4 v^2 n^2 is the limit of 3 s^4 v^2 n (n + 2): not exact, and the step says so."""
    m = cr.moments("h = W @ a; b = h^2", given={"a": "normal(0, v)", "W": "iid(0, s^2)"}, shapes={"a": "n", "W": "k,n"})
    assert (m["h"].kind, m["b"].kind, m["b"].mean_kind) == ("exact", "approximate", "exact")
    assert m.steps[-1].endswith("h is taken as normal: exact for wide layers")
    text = str(m["b"])
    assert "(approximate)   E[b] = s^2 * v * n (exact)" in text and text.endswith("(approximate)")
    off = {(s.name, s.power): s for s in m.sampled(6000)}
    assert off["b", 1].agrees and off["h", 2].agrees and not off["b", 2].agrees
    assert m.to_dict()["values"]["b"]["mean_kind"] == "exact"
