"""``initialize_``: named schemes, what is written, what is left alone, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import chainrule as cr
from chainrule.errors import ModelError
from chainrule.verbs.initialize.schemes import SCHEMES
from tests.verbs.initialize.networks import data, mlp


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    return [n for n in a if not torch.equal(a[n], b[n])]


# ---- the schemes of the literature -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scheme", "variance"),
    [("he", 2 / 96), ("lecun", 1 / 96), ("xavier", 2 / (96 + 160)), ("torch-default", 1 / (3 * 96))],
)
def test_named_schemes_have_their_variance(scheme: str, variance: float) -> None:
    net = mlp(96, 160, 32)
    r = cr.initialize_(net, scheme=scheme)
    weight = net[0].weight.detach().double()
    # Four standard errors of a variance of 15360 elements, and the law's own statement exactly.
    assert math.isclose(r["0.weight"].std ** 2, variance, rel_tol=1e-12)
    assert abs(float(weight.var()) / variance - 1) < 4 * (2 / weight.numel()) ** 0.5
    if scheme != "torch-default":
        assert not net[0].bias.any()
    else:
        assert 0 < float(net[0].bias.detach().abs().max()) <= 96**-0.5


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s not in ("auto", "critical")])
def test_torch_modules_get_torch_fans(scheme: str) -> None:
    # fan_in as torch's documentation states it for layers whose shapes mislead: groups, transposed, packed.
    net = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(32, 32, 3, groups=32),
            "transposed": nn.ConvTranspose2d(64, 32, 4, 2, 1),
            "attention": nn.MultiheadAttention(32, 4),
        }
    )
    r = cr.initialize_(net, scheme=scheme)
    if scheme in ("he", "lecun"):
        factor = 2.0 if scheme == "he" else 1.0
        assert math.isclose(r["depthwise.weight"].std ** 2, factor / 9)
        assert math.isclose(r["transposed.weight"].std ** 2, factor / (64 * 16))
        assert math.isclose(r["attention.in_proj_weight"].std ** 2, factor / 32)
    if scheme == "xavier":
        assert math.isclose(r["attention.in_proj_weight"].std ** 2, 2 / 64)  # of one projection, not of three
    if scheme == "torch-default":
        # T11 of the literature: torch counts 32 * 16 inputs there.
        assert math.isclose(r["transposed.weight"].std ** 2, 1 / (3 * 32 * 16))
        assert math.isclose(32 * r["attention.in_proj_weight"].std ** 2, 0.5)


def test_orthogonal_keeps_the_mean_square_of_rectangles() -> None:
    for shape in ((64, 256), (256, 64), (128, 128)):
        net = nn.Sequential(nn.Linear(*shape, bias=False))
        cr.initialize_(net, scheme="orthogonal")
        weight = net[0].weight.detach().double()
        product = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        scale = max(1.0, shape[1] / shape[0])
        assert torch.allclose(product, scale * torch.eye(min(shape), dtype=torch.float64), atol=1e-5)
        x = torch.randn(4000, shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert abs(float((x @ weight.T).square().mean()) - 1) < 0.03


def test_mup_rates_follow_the_width() -> None:
    rates = {}
    for width in (64, 256):
        net = mlp(16, width, width, 4)
        r = cr.initialize_(net, scheme="mup")
        assert math.isclose(r["2.weight"].std, width**-0.5)
        assert math.isclose(r["4.weight"].std, 1 / width)
        groups = r.param_groups(1e-2)
        rates[width] = {id(p): g["lr"] for g in groups for p in g["params"]}
        assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
        assert rates[width][id(net[0].weight)] == rates[width][id(net[2].bias)] == 1e-2
        assert math.isclose(rates[width][id(net[2].weight)], 1e-2 * 64 / width)
        torch.optim.Adam(groups)


def test_mup_knows_tables_and_tied_heads() -> None:
    class Words(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.table, self.body, self.head = nn.Embedding(10, 32), nn.Linear(32, 32), nn.Linear(32, 10, bias=False)
            if tied:
                self.head.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.table(x)).relu())

    free, tied = (cr.initialize_(Words(t), scheme="mup") for t in (False, True))
    assert free["body.weight"].rate == tied["body.weight"].rate == 1 / 32 and free["table.weight"].rate == 1.0
    assert "output" in free["head.weight"].why and "hidden" in tied["body.weight"].why


def test_overrides_by_module_and_pattern() -> None:
    net = mlp(16, 32, 32, 4)
    r = cr.initialize_(
        net, data(), nn.CrossEntropyLoss(), scheme={"": "auto", "2": "orthogonal", "4": "zeros", "0.*": 0.5}
    )
    assert r["2.weight"].rule.startswith("orthogonal") and not net[4].weight.any()
    assert math.isclose(r["0.weight"].std, 0.5)


# ---- nothing else changes ----------------------------------------------------------------------------------
class Everything(nn.Module):
    """Tied, frozen, loaded, padded, with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16, padding_idx=3)
        self.body = nn.Linear(16, 16)
        self.norm = nn.BatchNorm1d(16)
        self.frozen = nn.Linear(16, 16)
        self.loaded = nn.Linear(16, 16)
        self.head = nn.Linear(16, 12, bias=False)
        self.head.weight = self.embed.weight
        for p in self.frozen.parameters():
            p.requires_grad_(False)
        for p in self.loaded.parameters():
            p._is_hf_initialized = True  # type: ignore[attr-defined]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.body(self.embed(tokens)).relu())
        return self.head(self.loaded(self.frozen(x).relu()).relu())


@pytest.mark.parametrize("scheme", ["auto", "he", "torch-default"])
def test_what_must_stay_stays(scheme: str) -> None:
    torch.manual_seed(0)
    net = Everything()
    net.train()
    tokens = torch.randint(0, 12, (8,))
    before = bits(net)
    random = torch.get_rng_state()
    cr.initialize_(net, (tokens, tokens), nn.CrossEntropyLoss(), scheme=scheme)
    after = bits(net)
    assert torch.equal(torch.get_rng_state(), random)
    assert set(same(before, after)) <= {"embed.weight", "head.weight", "body.weight", "body.bias"}
    assert "body.weight" in same(before, after)
    assert not net.embed.weight[3].any() and net.embed.weight[2].all()
    assert net.head.weight is net.embed.weight and net.training
    assert all(p.grad is None for p in net.parameters())


def test_a_bias_with_values_of_its_own_stays() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.steps = nn.Linear(16, 32), nn.Parameter(torch.linspace(-6.0, -3.0, 32))
            with torch.no_grad():
                self.proj.bias.copy_(torch.linspace(-6.0, -3.0, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.softplus(self.proj(x) + self.steps)

    net, x = Steps(), data()[0]
    r = cr.initialize_(net, x)
    assert r["proj.bias"].rule == r["steps"].rule == "kept" and "values of its own" in r["steps"].why


def test_only_and_dry_run() -> None:
    net = mlp(16, 32, 32, 4)
    before = bits(net)
    r = cr.initialize_(net, data(), nn.CrossEntropyLoss(), dry_run=True)
    assert not same(before, bits(net)) and not r.applied and r.after
    cr.initialize_(net, data(), nn.CrossEntropyLoss(), only="2")
    assert set(same(before, bits(net))) <= {"2.weight", "2.bias"}
    assert "2.weight" in same(before, bits(net))
    cr.initialize_(net, data(), nn.CrossEntropyLoss())
    assert r["2.weight"].std == cr.initialize_(net, data(), nn.CrossEntropyLoss(), dry_run=True)["2.weight"].std


def test_same_seed_same_bits_other_seed_others() -> None:
    net = mlp(16, 32, 32, 4)
    cr.initialize_(net, data(), nn.CrossEntropyLoss(), seed=5)
    first = bits(net)
    cr.initialize_(net, data(), nn.CrossEntropyLoss(), seed=5)
    assert not same(first, bits(net))
    cr.initialize_(net, data(), nn.CrossEntropyLoss(), seed=6)
    assert [n for n in same(first, bits(net)) if n.endswith("weight")] == ["0.weight", "2.weight", "4.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_draws_are_those_of_float32_cast(dtype: torch.dtype) -> None:
    a, b = mlp(16, 32, 4), mlp(16, 32, 4).to(dtype)
    for scheme in ("he", "orthogonal"):
        cr.initialize_(a, scheme=scheme)
        cr.initialize_(b, scheme=scheme)
        assert all(torch.equal(x.to(dtype), y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_layout_in_memory_does_not_matter() -> None:
    a, b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    cr.initialize_(a, scheme="he")
    cr.initialize_(b, scheme="he")
    assert torch.equal(a.weight, b.weight) and b.weight.is_contiguous(memory_format=torch.channels_last)


# ---- refusals ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda m: m, {"scheme": "kaimin"}, "there is no scheme 'kaimin'"),
        (lambda m: m, {"scheme": {"2": "glorot"}}, "there is no scheme 'glorot'"),
        (lambda m: m, {"scheme": "auto", "batch": None}, "needs an example"),
        (lambda m: m, {"scheme": "critical", "batch": None}, "needs an example"),
        (lambda m: m, {"only": "encoder"}, "matches no parameter"),
        (lambda m: m, {"scheme": {"zzz": "he"}}, r"scheme=\{'zzz': ...\} matches no parameter"),
        (lambda m: m, {"batch": (torch.ones(0, 16), torch.zeros(0).long())}, "the batch is empty"),
        (
            lambda m: m,
            {"batch": (torch.full((4, 16), math.nan), torch.zeros(4).long())},
            "tensor 0 of the batch is not",
        ),
        (lambda m: m, {"batch": (torch.full((4, 16), math.inf), torch.zeros(4).long())}, "64 of its 64 numbers"),
        (lambda m: m, {"only": 2}, "neither a name nor several"),
        (lambda m: m, {"seed": 1.5}, "the seed"),
        (lambda m: m, {"batch": (torch.ones(4, 3), torch.zeros(4))}, "raised RuntimeError"),
        (lambda m: m, {"refine": torch.ones(4, 3)}, "shapes cannot be multiplied"),
        (lambda m: m[2].weight.data.fill_(float("nan")), {}, "2.weight is not finite"),
        (lambda m: m[0].bias.data[3:4].fill_(float("inf")), {"scheme": "he"}, "0.bias is not finite: 1 of its 32"),
    ],
)
def test_bad_input_is_named_and_nothing_is_modified(change: Any, options: Any, says: str) -> None:
    net = mlp(16, 32, 32, 4)
    change(net)
    before, random = bits(net), torch.get_rng_state()
    options = {"batch": data(), "loss": nn.CrossEntropyLoss(), **options}
    with pytest.raises(ModelError, match=says):
        cr.initialize_(net, **options)
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before.values(), bits(net).values(), strict=True)
    )
    assert torch.equal(torch.get_rng_state(), random)


def test_zero_width_and_lazy_layers_are_refused() -> None:
    empty = nn.Linear(4, 4)
    empty.weight = nn.Parameter(torch.zeros(0, 4))
    with pytest.raises(ModelError, match=r"1\.weight is of zero width"):
        cr.initialize_(nn.Sequential(nn.Linear(4, 4), empty), scheme="he")
    with pytest.raises(ModelError, match="has no shape yet"):
        cr.initialize_(nn.Sequential(nn.LazyLinear(4)), scheme="he")
    with pytest.raises(ModelError, match="no model to initialize"):
        cr.initialize_([1, 2], scheme="he")


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Softplus])
def test_no_critical_point_is_said_and_gradients_flow(activation: type[nn.Module]) -> None:
    """Sigmoid and softplus have no critical point at small mean squares: planned as ``auto`` does, and true figures."""
    net, (x, y) = mlp(16, *[64] * 30, 4, activation=activation), data()
    r = cr.initialize_(net, (x, y), nn.CrossEntropyLoss(), scheme="critical")
    why = [p.why for p in r.parameters if p.name.endswith("weight")]
    assert not any("E[phi'^2] = 1 at" in w for w in why) and "no critical point" in why[5]
    nn.CrossEntropyLoss()(net(x), y).backward()
    norms = [float(m.weight.grad.norm()) for m in net if isinstance(m, nn.Linear)]
    assert 0.1 < norms[0] / norms[-2] < 10  # 7e-25 and 1.5e-8 where the gain only keeps the mean square
