"""``moments``: formulas in closed form, against sampling and published numbers; networks against 1,024 redraws."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import chainrule as cr
from chainrule.errors import ChainruleError, FormulaError, ModelError
from chainrule.verbs.model_moments import gains, mean_of, measure, predict

LAYER = {"Omega": "m,n", "h": "n", "beta": "m", "Omega2": "k,m"}


# ---- formulas in closed form -------------------------------------------------------------------------------
def test_problem_7_14():
    m = cr.moments("b = relu(a)", given={"a": "symmetric(0, sigma^2)"})
    assert m["b"].second.text == "sigma^2 / 2" and m["b"].kind == "exact"
    assert m["b"].mean is None, "symmetry alone does not say it"
    assert "problem 7.14" in m.steps[-1] and "equally likely" in m.steps[-1]


CLOSED = [  # formula, laws, second moment, mean (None: not determined)
    ("b = relu(a)", {"a": "normal(0, v)"}, "v/2", "sqrt(v/(2*3.141592653589793))"),
    ("b = leaky_relu(a, alpha)", {"a": "symmetric(0, v)"}, "v*(1 + alpha^2)/2", None),
    ("b = abs(a)", {"a": "symmetric(0, v)"}, "v", None),
    ("b = a", {"a": "normal(mu, v)"}, "mu^2 + v", "mu"),
    ("b = a", {"a": "uniform(p, q)"}, "(p^2 + p*q + q^2)/3", "(p + q)/2"),
    ("b = relu(a)", {"a": "uniform(0-w, w)"}, "w^2/6", None),
    ("b = -a", {"a": "normal(mu, v)"}, "mu^2 + v", "-mu"),
    ("b = 2*a + c", {"a": "normal(mu, v)"}, "4*(mu^2 + v) + 4*mu*c + c^2", "2*mu + c"),
    ("b = a + c", {"a": "normal(p, v)", "c": "normal(q, w)"}, "(p + q)^2 + v + w", "p + q"),
    ("b = a - c", {"a": "normal(p, v)", "c": "normal(q, w)"}, "(p - q)^2 + v + w", "p - q"),
    ("b = a*c", {"a": "normal(p, v)", "c": "normal(q, w)"}, "(p^2 + v)*(q^2 + w)", "p*q"),
    ("b = a - a", {"a": "normal(p, v)"}, "0", "0"),
    ("b = a + a", {"a": "normal(p, v)"}, "4*(p^2 + v)", "2*p"),
    ("b = a*a", {"a": "normal(p, v)"}, "p^4 + 6*p^2*v + 3*v^2", "p^2 + v"),
    ("b = a^2", {"a": "normal(p, v)"}, "p^4 + 6*p^2*v + 3*v^2", "p^2 + v"),
    ("b = a/c", {"a": "normal(p, v)"}, "(p^2 + v)/c^2", "p/c"),
    ("f = Omega @ h", {"Omega": "iid(0, s^2)", "h": "normal(0, q)"}, "n*s^2*q", "0"),
    ("f = beta + Omega @ h", {"Omega": "iid(0, s^2)", "h": "symmetric(0, q)", "beta": "iid(0, t)"}, "n*s^2*q + t", "0"),
    ("f = Omega @ h", {"Omega": "iid(0, 2/n)", "h": "normal(0, q)"}, "2*q", "0"),
    ("f = Omega2 @ relu(Omega @ h)", {"Omega": "iid(0, 2/n)", "Omega2": "iid(0, 2/m)", "h": "normal(0, q)"}, "2*q", "0"),
    ("f = Omega2 @ leaky_relu(Omega @ h, a)", {"Omega": "iid(0, 1/n)", "Omega2": "iid(0, 2/(m*(1 + a^2)))", "h": "normal(0, q)"}, "q", "0"),
]  # fmt: skip


@pytest.mark.parametrize("source, given, second, mean", CLOSED)
def test_closed_forms(source: str, given: dict, second: str, mean: str | None):
    shapes = {
        k: v
        for k, v in LAYER.items()
        if k in source.replace("Omega2", "Omega2 ") and (k != "Omega" or "Omega @" in source)
    }
    shapes = {k: v for k, v in shapes.items() if re.search(rf"\b{k}\b", source)}
    quantity = cr.moments(source, given=given, shapes=shapes)[source[0]]
    assert quantity.kind == "exact"
    sizes = {"n": 3.0, "m": 4.0}
    for found, claim in ((quantity.second, second), (quantity.mean, mean)):
        assert (found is None) == (claim is None)
        if found is not None and claim is not None:
            expected = cr.formula(claim)
            values = {i.params["name"]: 0.3 + 0.2 * k for k, i in enumerate(expected.graph.inputs)} | {"n": 3, "m": 4}
            inputs = {i.params["name"] for i in expected.graph.inputs}
            right = expected.evaluate(**{k: sizes.get(k, v) for k, v in values.items() if k in inputs})
            assert found.evaluate(**values) == pytest.approx(right, rel=1e-9)


def test_the_linear_recursion_of_the_chapter():
    """E[f_k^2] = n s^2 / 2 E[f_(k-1)^2]: three layers halve and multiply, layer by layer."""
    shapes = {"W1": "n,n", "W2": "n,n", "W3": "n,n", "x": "n"}
    laws = {"x": "normal(0, 1)"} | {w: "iid(0, s^2)" for w in ("W1", "W2", "W3")}
    m = cr.moments("f1 = W1 @ x; f2 = W2 @ relu(f1); f3 = W3 @ relu(f2)", given=laws, shapes=shapes)
    for k, name in enumerate(("f1", "f2", "f3")):
        assert m[name].second.evaluate(n=10, s=0.7) == pytest.approx(10 * 0.49 * (10 * 0.49 / 2) ** k)
    assert sum("independent weights of mean zero" in line for line in m.steps) == 3


FANS = [  # forward and backward through one layer of a ReLU network: He both ways, and the compromise
    ("f = Omega @ relu(e)", "iid(0, 2/n)", {"e": "n"}, "q"),
    ("f = Omega' @ e * 1", "iid(0, 2/m)", {"e": "m"}, "2*q"),
    ("f = Omega @ relu(e)", "iid(0, 4/(m + n))", {"e": "n"}, "2*q*n/(m + n)"),
    ("f = Omega' @ e", "iid(0, 4/(m + n))", {"e": "m"}, "4*q*m/(m + n)"),
]


@pytest.mark.parametrize("source, law, shape, second", FANS)
def test_fan_in_fan_out_and_the_compromise(source: str, law: str, shape: dict, second: str):
    m = cr.moments(source, given={"Omega": law, "e": "normal(0, q)"}, shapes={"Omega": "m,n", **shape})
    values = {"q": 0.7, "m": 4.0, "n": 3.0}
    expected = cr.formula(second)
    names = {i.params["name"] for i in expected.graph.inputs}
    right = expected.evaluate(**{k: v for k, v in values.items() if k in names})
    used = {i.params["name"] for i in m["f"].second.graph.inputs} | {"m", "n"}
    assert m["f"].second.evaluate(**{k: v for k, v in values.items() if k in used}) == pytest.approx(right)
    assert all(s.agrees for s in m.sampled(800))


def test_sampling_finds_what_it_should():
    m = cr.moments("b = relu(a)*c", given={"a": "normal(0, v)", "c": "uniform(0, 2)"})
    found = m.sampled(3000)
    assert {(s.name, s.power) for s in found} == {("b", 1), ("b", 2)} and all(s.agrees for s in found)
    assert m.sampled(50) == m.sampled(50), "seeded"
    wrong = dataclasses.replace(found[1], predicted=found[1].predicted * 1.5)
    assert not wrong.agrees and "DIFFERS" in str(wrong)
    with pytest.raises(ChainruleError, match="formulas"):
        cr.moments(nn.Linear(2, 2), torch.randn(3, 2)).sampled()


# ---- quadrature --------------------------------------------------------------------------------------------
# Moments of phi(u), u ~ N(0, 1), from the notes on initialisation (section 4.2): mean, second moment.
TABLE = [
    ("relu(a)", 0.3989, 0.5),
    ("leaky_relu(a, 0.2)", 0.3192, 0.52),
    ("gelu(a)", 0.28209, 0.42522),
    ("silu(a)", 0.20662, 0.35578),
    ("elu(a, 1)", 0.16052, 0.64495),
    ("1.0507009873554805*elu(a, 1.6732632423543772)", 0.0, 1.0),
    ("tanh(a)", 0.0, 0.39429),
    ("sigmoid(a)", 0.5, 0.29338),
    ("softplus(a)", 0.80606, 0.92125),
    ("erf(a)", 0.0, 0.46456),
]


@pytest.mark.parametrize("source, mean, second", TABLE)
def test_quadrature_table(source: str, mean: float, second: float):
    quantity = cr.moments(f"b = {source}", given={"a": "normal(0, 1)"})["b"]
    assert quantity.kind == "exact"
    assert quantity.second.evaluate() == pytest.approx(second, abs=1e-4)
    assert quantity.mean.evaluate() == pytest.approx(mean, abs=1e-4)


SAMPLED = [*(source for source, _, _ in TABLE), "exp(a)", "sin(a)", "cos(a)", "maximum(a, 0.4)", "minimum(a, 0 - 1)", "abs(a)", "heaviside(a)", "sign(a)", "a^3"]  # fmt: skip


@pytest.mark.parametrize("law, mean, std", [("normal(0, 0.64)", 0.0, 0.8), ("normal(0.7, 1.44)", 0.7, 1.2)])
@pytest.mark.parametrize("source", SAMPLED)
def test_prediction_equals_sampling(source: str, law: str, mean: float, std: float):
    """400,000 seeded draws, four standard errors."""
    quantity = cr.moments(f"b = {source}", given={"a": law})["b"]
    program = cr.formula(source).graph
    draws = mean + std * np.random.default_rng(7).standard_normal(400_000)
    # A draw is a scalar input; the ops broadcast, so all draws are evaluated at once.
    values = evaluate_broadcast(program, draws)
    for found, power in ((quantity.second, 2), (quantity.mean, 1)):
        sample = values**power
        assert abs(sample.mean() - found.evaluate()) <= 4 * sample.std() / np.sqrt(draws.size) + 1e-12


def evaluate_broadcast(program, draws: np.ndarray) -> np.ndarray:
    table = {program.inputs[0]: draws}
    for node in program.nodes:
        if node not in table:
            table[node] = node.op.value(*(table[i] for i in node.inputs), **node.params)
    return np.asarray(table[program.outputs[0]], dtype=float)


# ---- what is not known is said -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "source, law",
    [
        ("b = tanh(a)", "symmetric(0, 1)"),
        ("b = a*sigmoid(a)", "normal(0, v)"),
        ("b = 1/a", "normal(0, 1)"),
        ("b = exp(a^2)", "normal(0, 1)"),
        ("b = log(a)", "normal(0, 1)"),
        ("b = sqrt(a)", "normal(3, 1)"),
        ("b = tanh(a)", "normal(0, v)"),
    ],
)
def test_unknown_is_unknown(source: str, law: str):
    quantity = cr.moments(source, given={"a": law})["b"]
    assert quantity.kind == "unknown" and quantity.second is None
    assert "unknown" in str(cr.moments(source, given={"a": law}))


def test_what_depends_twice_on_a_symbolic_law_is_unknown():
    for law in ("normal(0, v)", "symmetric(0, 1)"):
        m = cr.moments("b = a + relu(a)", given={"a": law})
        assert m["b"].kind == "unknown" and "depends on a twice" in m.steps[-1]


ONE_SOURCE = [  # formulas that read their variable more than once, or under another law
    ("a*relu(a)", "normal(0, 1)"),
    ("relu(a)^2", "normal(0, 1)"),
    ("relu(a) - relu(-a)", "normal(0, 1)"),
    ("exp(a) + a", "normal(0, 1)"),
    ("a*sigmoid(a)", "normal(0.4, 2)"),
    ("a*tanh(a)", "normal(0, 1)"),
    ("a + relu(a)", "normal(0.3, 1)"),
    ("where(a > 1, a, 0)", "normal(0, 1)"),
    ("maximum(0.3, a)", "normal(0, 1)"),
    ("maximum(a, 2 - a)", "normal(0, 1)"),
    ("relu(a)", "uniform(0, 1)"),
    ("log(a)", "uniform(1, 2)"),
    ("exp(a)", "uniform(1, 2)"),
    ("relu(2*a + 1)*a", "uniform(-1, 1)"),
    ("a + a", "uniform(1, 2)"),
]


@pytest.mark.parametrize("source, law", ONE_SOURCE)
def test_functions_of_one_variable_equal_sampling(source: str, law: str):
    quantity = cr.moments(f"b = {source}", given={"a": law})["b"]
    assert quantity.kind == "exact"
    generator, (p, q) = np.random.default_rng(3), map(float, law.split("(")[1][:-1].split(","))
    draws = (
        generator.uniform(p, q, 400_000) if "uniform" in law else p + np.sqrt(q) * generator.standard_normal(400_000)
    )
    values = evaluate_broadcast(cr.formula(source).graph, draws)
    for found, power in ((quantity.second, 2), (quantity.mean, 1)):
        sample = values**power
        assert abs(sample.mean() - found.evaluate()) <= 4 * sample.std() / np.sqrt(draws.size) + 1e-12


def test_a_weight_used_twice():
    m = cr.moments("s = W @ (W' @ x)", given={"W": "iid(0, 1)"}, shapes={"W": "3,4", "x": "3"})
    assert m["s"].kind == "unknown" and "depends on W twice" in m.steps[-1]


VECTORS = [
    ("x' @ x", "normal(0, 2)", "exact"),
    ("x' @ x", "normal(1, 2)", "exact"),
    ("sum(x)", "normal(1, 2)", "exact"),
    ("mean(x)", "uniform(0, 1)", "exact"),
    ("sum(relu(x))", "normal(0, 1)", "exact"),
    ("sum(x^2)", "normal(0, 2)", "exact"),
    ("max(x)", "normal(1, 1)", "probe"),
    ("logsumexp(x)", "normal(1, 1)", "probe"),
]


@pytest.mark.parametrize("source, law, kind", VECTORS)
def test_functions_of_independent_elements_equal_sampling(source: str, law: str, kind: str):
    quantity = cr.moments(f"b = {source}", given={"x": law}, shapes={"x": "5"})["b"]
    assert quantity.kind == kind
    generator, (p, q) = np.random.default_rng(5), map(float, law.split("(")[1][:-1].split(","))
    shape = (40_000, 5)
    draws = generator.uniform(p, q, shape) if "uniform" in law else p + np.sqrt(q) * generator.standard_normal(shape)
    functions = {
        "x' @ x": lambda x: (x * x).sum(1),
        "sum(x)": lambda x: x.sum(1),
        "mean(x)": lambda x: x.mean(1),
        "sum(relu(x))": lambda x: np.maximum(x, 0).sum(1),
        "sum(x^2)": lambda x: (x * x).sum(1),
        "max(x)": lambda x: x.max(1),
        "logsumexp(x)": lambda x: np.log(np.exp(x).sum(1)),
    }
    values = functions[source](draws)
    for found, power in ((quantity.second, 2), (quantity.mean, 1)):
        sample = values**power
        error = 4 * sample.std() / np.sqrt(len(draws)) + (0.005 * sample.mean() if kind == "probe" else 0)
        assert abs(sample.mean() - found.evaluate()) <= error


def test_repeated_elements_are_not_independent():
    b = cr.moments("b = sum(x + x')", given={"x": "normal(0, 1)"}, shapes={"x": "3,3"})["b"]
    assert b.second is not None and b.second.evaluate() == 36  # of twice the sum of nine
    b = cr.moments("b = sum((x + x')^2)", given={"x": "normal(0, 1)"}, shapes={"x": "3,3"})["b"]
    assert b.kind != "exact"


def test_what_iid_does_not_say_is_not_exact():
    shapes = {"W": "m,n", "c": "n"}
    m = cr.moments("y = (W @ c)^2", given={"W": "iid(0, s^2)"}, shapes=shapes)
    assert m["y"].mean_kind == "exact" and m["y"].kind == "approximate"  # a fourth moment
    assert "W @ c is taken as normal" in m.steps[-1]
    assert cr.moments("y = (W @ c)^2", given={"W": "normal(0, s^2)"}, shapes=shapes)["y"].kind == "exact"
    assert cr.moments("y = relu(W @ c)", given={"W": "iid(0, s^2)"}, shapes=shapes)["y"].kind == "exact"
    m = cr.moments("y = a^2", given={"a": "iid(0, s^2)"})
    assert m["y"].kind == "approximate" and "a is taken as normal" in m.steps[-1]
    assert cr.moments("y = (W @ c)^2 * (W @ c)", given={"W": "iid(0, s^2)"}, shapes=shapes)["y"].second is None


def test_a_squared_norm_is_a_sum_of_squares():
    y = cr.moments("y = norm(a)^2", given={"a": "normal(0, 1)"}, shapes={"a": "3"})["y"]
    assert y.mean is not None and y.second is not None and y.kind == "exact"
    assert (y.mean.evaluate(), y.second.evaluate()) == (3, 15)


def test_numbers_are_rounded():
    assert cr.moments("b = a^3", given={"a": "normal(0, 1)"})["b"].mean.text == "0"
    assert cr.moments("b = a", given={"a": "normal(0.1, 0.98)"})["b"].second.text == "0.99"


@pytest.mark.parametrize(
    "given, message",
    [
        ({"a": "gaussian(0, 1)"}, "not understood"),
        ({"a": "normal(0)"}, "not understood"),
        ({"q": "normal(0, 1)"}, "does not read"),
        ({"a": "normal(0, )"}, "not understood"),
        ({"a": "normal(0, -1)"}, "the variance of a is negative"),
        ({"a": "uniform(2, 1)"}, "above the upper"),
    ],
)
def test_laws_that_make_no_sense(given: dict, message: str):
    with pytest.raises(FormulaError, match=message):
        cr.moments("b = relu(a)", given=given)


def test_names_without_moments():
    with pytest.raises(ChainruleError, match="one of b"):
        _ = cr.moments("b = relu(a)", given={"a": "normal(0, 1)"})["c"]


def test_to_dict_is_plain_data():
    plain = json.loads(json.dumps(cr.moments("b = relu(a)", given={"a": "symmetric(0, sigma^2)"}).to_dict()))
    assert plain["schema"] == "chainrule.moments/1"
    assert plain["values"]["b"]["second"] == "sigma^2 / 2" and plain["values"]["b"]["mean"] is None


# ---- networks ----------------------------------------------------------------------------------------------
def network(activation: Callable[[], nn.Module], init: Callable[[nn.Linear], None] | None, sizes=(10, 40, 40, 5)):
    """A case of a small network and one batch, made without touching the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), activation()]
        model = nn.Sequential(*layers[:-1])
        for layer in model:
            if init is not None and isinstance(layer, nn.Linear):
                init(layer)
        return cr.case(model, (torch.randn(10, sizes[0]), torch.randn(10, sizes[-1])), nn.MSELoss())


def xavier(layer: nn.Linear) -> None:
    nn.init.xavier_normal_(layer.weight, gain=1.2)
    nn.init.zeros_(layer.bias)


def he_with_biases(layer: nn.Linear) -> None:
    nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(layer.bias, std=0.1)


def compared(case, seeds: int) -> dict[str, tuple[float, float]]:
    """way and name -> (predicted / measured, relative standard error of the measured mean)."""
    predicted, measured = predict(case), measure(case, seeds=seeds)
    found = {}
    for way in ("forward", "backward"):
        for name, squares in getattr(measured, way).items():
            if name == "loss" or name.startswith(("weight", "bias")):
                continue
            ratio = mean_of(getattr(predicted, way)[name].second) / squares.mean()
            found[f"{way} {name}"] = (ratio, squares.std() / np.sqrt(seeds) / squares.mean())
    return found


def test_the_example_is_predicted_within_five_percent():
    """Every layer of the chapter's example, both ways, against the mean of 1,024 seeds and its standard error."""
    found = compared(cr.examples.figure_7_8(), 1024)
    assert {"forward f_0", "forward h_3", "forward output", "backward f_0", "backward h_1", "backward x"} <= set(found)
    assert {name: ratio for name, (ratio, error) in found.items() if abs(ratio - 1) > 0.05 + error} == {}


@pytest.mark.parametrize(
    "activation, init", [(nn.Tanh, xavier), (nn.GELU, he_with_biases), (nn.ReLU, None)], ids=["tanh", "gelu", "default"]
)
def test_other_networks_are_predicted(activation, init):
    """Within 5 % and two standard errors: layers of 40 units are not infinitely wide, so tanh and gelu see a
    normal law only roughly, and a cotangent is slightly aligned with what it comes from (uniform weights, too, for
    torch's default)."""
    found = compared(network(activation, init), 512)
    # The alignment of a cotangent is averaged over the samples: seen at the data, whose lengths differ most.
    tolerance = {"backward x": 0.1}
    assert {n: r for n, (r, error) in found.items() if abs(r - 1) > tolerance.get(n, 0.05) + 2 * error} == {}


class WrittenSiLU(nn.Module):
    """silu as a product, whose factors are not independent."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


def test_an_activation_written_with_several_ops_is_that_activation():
    written, named = (cr.moments(network(a, he_with_biases)).rows for a in (WrittenSiLU, nn.SiLU))
    for a, b in zip(written, named, strict=True):
        assert (a.name, a.kind) == (b.name, b.kind)
        assert (a.mean, a.second, a.grad_second) == pytest.approx(
            (b.mean, b.second, b.grad_second), rel=1e-6, abs=1e-12
        )


def test_prediction_needs_no_forward_pass(monkeypatch: pytest.MonkeyPatch):
    case = network(nn.ReLU, xavier)
    _ = case.trace
    monkeypatch.setattr(nn.Linear, "forward", lambda *_: pytest.fail("the model was run"))
    rows = cr.moments(case).rows
    assert [r.name for r in rows] == ["0", "1", "2", "3", "4", ""]
    assert all(r.second > 0 and r.grad_second > 0 and r.kind in ("exact", "approximate") for r in rows)


def test_zeros_and_constants_are_what_they_are():
    rows = cr.moments(cr.examples.figure_7_8_zeros()).rows
    assert all(r.second == 0 for r in rows)
    assert rows[0].grad_second == 0 and rows[-1].grad_second > 0


def test_a_row_is_looked_up_by_module_name():
    t = cr.moments(cr.examples.figure_7_8())
    assert t["2"].module.startswith("Linear") and t["2"] is t.calls("2")[-1]
    assert t[""].name == ""
    low, high = t["2"].band
    assert low < t["2"].second < high
    assert json.dumps(t.to_dict()) and "nine draws of ten" in str(t)


def test_nine_draws_of_ten_lie_in_the_band():
    """Of one sample. The samples of a batch are taken as alike, so for a batch the band is wide: never too narrow."""
    whole = cr.examples.figure_7_8()
    for count, most in ((1, 0.95), (10, 1.0)):
        case = cr.case(whole.model, tuple(t[:count] for t in whole.batch), whole.loss)
        squares = measure(case, seeds=400).forward["f_2"]
        low, high = cr.moments(case)["2"].band
        assert 0.83 <= np.mean((low < squares) & (squares < high)) <= most


def test_gains_multiply_to_the_whole_chain():
    predicted = predict(cr.examples.figure_7_8()).backward
    parts = gains(predicted, [("h_3", "f_4"), ("f_2", "h_3"), ("h_1", "f_2"), ("f_0", "h_1")])
    (whole,) = gains(predicted, [("f_0", "f_4")])
    assert np.prod(parts) == pytest.approx(whole)


def test_a_model_needs_a_batch():
    with pytest.raises(ModelError, match="batch"):
        cr.moments(nn.Linear(2, 2))


def test_redraws_leave_the_model_alone():
    case = cr.examples.figure_7_8()
    before = {n: p.detach().clone() for n, p in case.model.named_parameters()}
    state = torch.get_rng_state()
    first, second = measure(case, seeds=3), measure(case, seeds=3)
    assert np.array_equal(first.forward["f_2"], second.forward["f_2"]), "seeded"
    assert all(torch.equal(before[n], p) for n, p in case.model.named_parameters())
    assert torch.equal(state, torch.get_rng_state())
