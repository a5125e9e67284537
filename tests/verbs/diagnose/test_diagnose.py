"""``diagnose``: faults are named with their layer, and healthy networks are silent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chainrule as cr
from chainrule import examples
from chainrule.errors import ModelError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mlp(widths: list[int], activation: Callable[[], nn.Module] = nn.ReLU, init: Any = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    net = nn.Sequential(*layers[:-1])
    if init is not None:
        for layer in net:
            if isinstance(layer, nn.Linear):
                init(layer.weight)
                nn.init.zeros_(layer.bias)
    return net


def he(weight: torch.Tensor) -> None:
    nn.init.kaiming_normal_(weight)


def scaled(net: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(factor)
    return net


def regression(width: int = 10, out: int = 5, n: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, width), torch.randn(n, out)


def mse(net: nn.Module, width: int = 10, out: int = 5) -> Any:
    return cr.diagnose(net, regression(width, out), F.mse_loss)


class Listed(nn.Module):
    """Matrices in a ParameterList, without modules of their own."""

    def __init__(self, matrices: list[torch.Tensor], functional: bool = False) -> None:
        super().__init__()
        self.w, self.functional = nn.ParameterList(matrices), functional

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for k, w in enumerate(self.w):
            x = F.linear(x, w) if self.functional else x @ w
            x = torch.relu(x) if k < len(self.w) - 1 else x
        return x


def kinds(r: Any) -> list[str]:
    return [f.kind for f in r.findings]


# ---- vanishing and exploding -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("factor", "kind", "where"),
    [(1e-6, "vanishing", "0"), (1e-12, "vanishing", "0"), (1e4, "exploding", "4"), (1e8, "exploding", "4")],
)
def test_short_net_out_of_scale(factor: float, kind: str, where: str) -> None:
    case = examples.figure_7_8()
    scaled(case.model, factor)
    r = case.diagnosis
    assert kinds(r) == [kind] and r.findings[0].where == where, str(r)
    assert "std * sqrt(fan_in)" in str(r)


@pytest.mark.parametrize("layers", [2, 3, 6, 11])
@pytest.mark.parametrize("factor", [1e-6, 1e-12, 1e-25, 1e-35])
def test_underflow_is_vanishing(layers: int, factor: float) -> None:
    r = mse(scaled(mlp([10] + [40] * (layers - 1) + [5], init=he), factor))
    assert kinds(r) == ["vanishing"] and r.findings[0].where == "0", str(r)


def test_underflow_in_the_models_own_dtype_is_a_consequence() -> None:
    r = mse(scaled(mlp([10] + [40] * 10 + [5], init=he), 1e-12))
    assert "in float32 the gradient is exactly 0 at " in str(r)


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(("factor", "kind"), [(0.05, "vanishing"), (20.0, "exploding")])
def test_layers_need_no_modules(functional: bool, factor: float, kind: str) -> None:
    matrices = [factor * torch.randn(20, 20) * (2 / 20) ** 0.5 for _ in range(8)]
    r = mse(Listed(matrices, functional), 20, 20)
    assert kinds(r) == [kind] and r.findings[0].where == ("w.0" if kind == "vanishing" else "w.7"), str(r)
    assert "as the weights' variance predicts" in str(r)


def test_reused_weight_is_numbered() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(8):
                x = torch.tanh(self.layer(x))
            return x

    r = mse(scaled(Reused(), 0.02), 16, 16)
    assert kinds(r)[0] == "vanishing" and "layer (use 8)" in r.findings[0].measured, str(r)


def test_small_weights_are_put_on_the_variance() -> None:
    r = mse(mlp([64] * 30 + [5], nn.Tanh, lambda w: nn.init.normal_(w, 0, 0.02)), 64)
    assert kinds(r) == ["vanishing"] and "as the weights' variance predicts" in str(r)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_overflow_after_steady_growth_is_exploding(loss: str) -> None:
    net = scaled(mlp([16] + [64] * 29 + [5], init=he), 20.0)
    x = torch.randn(32, 16)
    r = (
        cr.diagnose(net, (x, torch.randn(32, 5)), F.mse_loss)
        if loss == "mse"
        else cr.diagnose(net, (x, torch.randint(5, (32,))), F.cross_entropy)
    )
    assert kinds(r) == ["exploding"], str(r)
    assert "per layer" in r.findings[0].measured
    assert r.findings[0].consequences[0].startswith("nonfinite at ")


def test_a_logarithm_of_nothing_is_not_exploding() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp([10, 20, 20, 20, 20, 5], init=he)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(torch.relu(self.net(x)))

    assert kinds(mse(Log())) == ["nonfinite"]


# ---- healthy -----------------------------------------------------------------------------------------------
class Residual(nn.Module):
    """x + alpha f(x), with f of two layers; normed in front or not."""

    def __init__(self, blocks: int, width: int, alpha: float | None, norm: bool, std: float | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, width), nn.Linear(width, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(blocks))
        self.blocks = nn.ModuleList(mlp([width, 4 * width, width], nn.GELU) for _ in range(blocks))
        self.alphas = nn.ParameterList(torch.tensor(1.0 if alpha is None else alpha) for _ in range(blocks))
        if std is not None:
            for p in self.blocks.parameters():
                nn.init.normal_(p, 0, std) if p.dim() > 1 else nn.init.zeros_(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for norm, block, alpha in zip(self.norms, self.blocks, self.alphas, strict=True):
            x = x + alpha * block(norm(x))
        return self.last(x)


class Lora(nn.Module):
    """A linear layer with a low-rank addition whose second factor is zero."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.base = nn.Linear(a, b)
        self.A, self.B = nn.Parameter(torch.randn(4, a) / a**0.5), nn.Parameter(torch.zeros(b, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (x @ self.A.t()) @ self.B.t()


def zero_head(net: nn.Sequential) -> nn.Sequential:
    nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[-1].bias)  # type: ignore[arg-type]
    return net


def small_head(net: nn.Sequential) -> nn.Sequential:
    nn.init.normal_(net[-1].weight, 0, 1e-5)  # type: ignore[arg-type]
    return net


def layer_norm_net(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(10, width)]
    for _ in range(depth):
        layers += [nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.Linear(width, 5))


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    **{f"default, {n} layers": lambda n=n: mlp([10] + [64] * (n - 1) + [5]) for n in (1, 2, 3, 4, 5)},
    "He 10": lambda: mlp([10] + [64] * 9 + [5], init=he),
    "He 30x256": lambda: mlp([10] + [256] * 29 + [5], init=he),
    "Xavier tanh": lambda: mlp([10] + [64] * 9 + [5], nn.Tanh, nn.init.xavier_normal_),
    "zero head": lambda: zero_head(mlp([10, 64, 64, 64, 64, 5], init=he)),
    "small head": lambda: small_head(mlp([10, 64, 5], init=he)),
    "lora": lambda: nn.Sequential(Lora(10, 32), nn.ReLU(), Lora(32, 32), nn.ReLU(), Lora(32, 5)),
    "lora behind a zero head": lambda: zero_head(
        nn.Sequential(Lora(10, 32), nn.ReLU(), Lora(32, 32), nn.Linear(32, 5))
    ),
    "rezero": lambda: Residual(8, 32, 0.0, norm=False),
    "residual": lambda: Residual(8, 32, None, norm=False),
    "pre-norm": lambda: Residual(8, 32, None, norm=True),
    "transformer-like": lambda: Residual(12, 64, None, norm=True, std=0.02),
    "layer norm": lambda: layer_norm_net(64, 10),
    "N(0, .02)": lambda: mlp([10, 768, 768, 5], nn.GELU, lambda w: nn.init.normal_(w, 0, 0.02)),
    "list": lambda: Listed([torch.randn(a, b) * (2 / a) ** 0.5 for a, b in ((10, 32), (32, 32), (32, 5))]),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_healthy(name: str, loss: str) -> None:
    x, y = regression()
    net = HEALTHY[name]()
    r = cr.diagnose(net, (x, y), F.mse_loss) if loss == "mse" else cr.diagnose(net, (x, y.argmax(1)), F.cross_entropy)
    assert r.ok, str(r)


# ---- symmetric ---------------------------------------------------------------------------------------------
def logistic(classes: int, width: int = 10) -> nn.Linear:
    net = nn.Linear(width, classes)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return net


@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_absent_classes_are_not_symmetric(classes: int, bias: bool) -> None:
    net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), logistic(classes, 16))
    if not bias:
        net[2].bias = None  # type: ignore[union-attr]
    labels = torch.tensor([0, 0, 1, 1])
    assert not cr.diagnose(net, (torch.randn(4, 10), labels), F.cross_entropy).findings
    assert not cr.diagnose(logistic(classes), (torch.randn(4, 10), labels), F.cross_entropy).findings


def test_zero_regression_head_with_equal_targets_is_not_symmetric() -> None:
    assert not cr.diagnose(logistic(3), (torch.randn(8, 10), torch.ones(8, 3)), F.mse_loss).findings
    assert not cr.diagnose(logistic(3), (torch.randn(8, 10), torch.ones(8, 3)), nn.BCEWithLogitsLoss()).findings


def test_output_units_that_stay_equal_are_found() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = logistic(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).sum(1, keepdim=True)

    r = cr.diagnose(Summed(), (torch.randn(8, 10), torch.randn(8, 1)), F.mse_loss)
    assert kinds(r) == ["symmetric"] and r.findings[0].where == "net", str(r)


def test_symmetric_names_and_movable() -> None:
    r = examples.figure_7_8_zeros().diagnosis
    assert "only 4.bias can ever move" in str(r) and r.findings[0].where == "0, 2"


def test_symmetric_list_entries_are_named() -> None:
    r = mse(Listed([torch.full((8, 8), 0.1), torch.full((8, 8), 0.1), torch.full((8, 8), 0.1)], True), 8, 8)
    assert kinds(r) == ["symmetric"] and r.findings[0].where == "w.0, w.1", str(r)


def test_no_parameter_can_move() -> None:
    r = mse(Listed([torch.zeros(8, 8) for _ in range(3)], functional=True), 8, 8)
    assert kinds(r) == ["symmetric"] and "no parameter can move" in str(r), str(r)


def test_late_movers_are_seen() -> None:
    # Zero weights with a constant bias: what moves first is the head; the others follow one layer per step.
    net = mlp([10] + [8] * 8 + [5], nn.Tanh, nn.init.zeros_)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.ones_(layer.bias)
    r = mse(net)
    assert kinds(r) == ["symmetric"] and "can ever move" not in str(r), str(r)


# ---- what is asked of the caller ---------------------------------------------------------------------------
class Forbidden(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was run")


def test_empty_batch() -> None:
    with pytest.raises(ModelError, match="empty"):
        cr.diagnose(Forbidden(), (torch.ones(0, 3), torch.ones(0, 2)), F.mse_loss)


def test_no_loss() -> None:
    with pytest.raises(ModelError, match="needs a loss"):
        cr.diagnose(Forbidden(), torch.ones(2, 3))


def test_notes() -> None:
    r = mse(nn.Linear(10, 5))
    assert r.ok and "one weight layer" in r.notes[0] and r.notes[0] in str(r)
    assert not examples.figure_7_8().diagnosis.notes
