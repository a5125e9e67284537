"""Activations against torch's autograd, SciPy's quadrature and numbers from the literature."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch import nn

import chainrule as cr
from chainrule.errors import ChainruleError, FormulaError, MissingExtraError, ModelError

X = np.array([-6.3, -2.1, -0.87, -0.2, 0.31, 0.9, 1.7, 4.4])

TORCH = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu(z, 0.1)": lambda x: F.leaky_relu(x, 0.1),
    "elu(z, 0.7)": lambda x: F.elu(x, 0.7),
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "heaviside": lambda x: (x >= 0).double() + 0 * x,
    "z*tanh(softplus(z))": F.mish,
    "z*maximum(0, minimum(6, z + 3))/6": F.hardswish,
    "z - tanh(z)": F.tanhshrink,
    "exp(-z^2)": lambda x: torch.exp(-x * x),
}


def slopes(function, x: np.ndarray) -> np.ndarray:
    leaf = torch.tensor(x, requires_grad=True)
    return torch.autograd.grad(function(leaf).sum(), leaf)[0].numpy()


@pytest.mark.parametrize("name", TORCH)
def test_derivative_limits_and_integrals_are_those_of_torch(name: str) -> None:
    a, function = cr.activation(name), TORCH[name]
    assert a.formula is not None and a.derivative is not None
    np.testing.assert_allclose([a.derivative.evaluate(z=x) for x in X], slopes(function, X), rtol=1e-10, atol=1e-13)
    values = function(torch.tensor(X)).numpy()
    if a.in_output is not None:
        got = [a.in_output.evaluate(h=h) for h in values]
        np.testing.assert_allclose(got, slopes(function, X), rtol=1e-9, atol=1e-12)
    dense = np.append(np.linspace(-30, 30, 600_001), 3 - 1e-11)  # hardswish is steepest left of its kink
    top = np.abs(slopes(function, dense)).max()
    assert a.sup_derivative == pytest.approx(top, rel=1e-9, abs=1e-12)

    def expectation(power: int, of) -> float:
        def integrand(z: float) -> float:
            return float(of(np.array([z]))[0]) ** power * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        pieces = [-12, -3, 0, 3, 12]  # kinks of all of them
        return sum(integrate.quad(integrand, p, q, epsabs=1e-10)[0] for p, q in itertools.pairwise(pieces))

    second = expectation(2, lambda z: function(torch.tensor(z)).numpy())
    slope2 = expectation(2, lambda z: slopes(function, z))
    assert a.gain == pytest.approx(second**-0.5, rel=1e-6)
    assert a.chi == pytest.approx(slope2 / second, rel=1e-6, abs=1e-12)
    assert a.kappa == pytest.approx(expectation(4, lambda z: function(torch.tensor(z)).numpy()) / second**2, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("sigmoid", "h*(1 - h)"),
        ("1/(1+exp(-z))", "h*(1 - h)"),
        ("tanh", "1 - h^2"),
        ("(exp(z) - exp(-z))/(exp(z) + exp(-z))", "1 - h^2"),
        ("3*tanh(z/2) + 1", "(9 - (h - 1)^2)/6"),
        ("exp", "h"),
        ("softplus", "1 - exp(-h)"),
        ("softplus(10*z)/10", "1 - exp(-10*h)"),
        ("relu", "[h > 0]"),
        ("z", "1"),
        ("sqrt", "1/(2*h)"),
        ("tan", "1 + h^2"),
        ("log", "exp(-h)"),
        ("1/z", "-h^2"),
        ("atan(z) - 2", "cos(h + 2)^2"),
        ("asin", "1/cos(h)"),
        ("sinh", "sqrt(1 + h^2)"),
        ("z/sqrt(1 + z^2)", "(1 - h^2)^1.5"),
        ("z/(1 + abs(z))", "(1 - abs(h))^2"),
        ("relu(z)^2", "2*sqrt(h)"),
        ("relu(tanh(z))", "[h > 0]*(1 - h^2)"),
        ("maximum(-1, minimum(1, z))", "[h > -1]*[h < 1]"),
    ],
)
def test_in_terms_of_the_output(name: str, form: str) -> None:
    a = cr.activation(name)
    assert a.in_output is not None, a.in_output_note
    expected = cr.formula(form)
    h = a.curve.value(np.array([0.11, 0.43, 0.92]))
    for value in h:
        assert a.in_output.evaluate(h=value) == pytest.approx(float(expected.evaluate(h=value)), rel=1e-9)
    assert a.in_output.size <= expected.size + 4


@pytest.mark.parametrize("name", ["silu", "gelu", "z^2", "cos", "tanh(z)^2"])
def test_no_function_of_the_output_has_a_witness(name: str) -> None:
    a = cr.activation(name)
    assert a.in_output is None
    first, second = (float(word.strip(",")) for word in a.in_output_note.replace("z = ", "").split()[:3:2])
    f, s = a.curve.value(np.array([first, second])), a.curve.slope(np.array([first, second]))
    assert f[0] == pytest.approx(f[1], abs=2e-3) and abs(s[0] - s[1]) > 0.01


@pytest.mark.parametrize(
    ("name", "value", "derivative"),
    [
        ("sigmoid", (0, 1), (0, 0)),
        ("atan", (-math.pi / 2, math.pi / 2), (0, 0)),
        ("relu", (0, math.inf), (0, 1)),
        ("elu(z, 2)", (-2, math.inf), (0, 1)),
        ("z*(sqrt(z^2 + 1) - z)", (-math.inf, 0.5), (math.inf, 0)),  # cancels in floats
        ("log(1 + exp(z)) - z", (math.inf, 0), (-1, 0)),
        ("1/log(z^2 + 2)", (0, 0), (0, 0)),  # slower than any power
        ("atan(log(z^2 + 1))", (math.pi / 2, math.pi / 2), (0, 0)),
        ("sin", (None, None), (None, None)),
        ("z + sin(z)^2", (-math.inf, math.inf), (None, None)),
        ("exp(-z)*sin(z)", (None, 0), (None, 0)),
        ("log", (None, math.inf), (None, 0)),
        ("exp(exp(z))", (1, math.inf), (0, math.inf)),
    ],
)
def test_limits(name: str, value: tuple, derivative: tuple) -> None:
    a = cr.activation(name)
    for found, expected in ((a.limits["value"], value), (a.limits["derivative"], derivative)):
        for got, right in zip(found.values(), expected, strict=True):
            assert got is None if right is None else got == pytest.approx(right, rel=1e-12, abs=1e-12)


def test_known_numbers() -> None:
    assert cr.activation("sigmoid").sup_derivative == pytest.approx(0.25) and cr.activation("sigmoid").sup_at == 0
    gelu, silu = cr.activation("gelu"), cr.activation("silu")
    assert gelu.sup_derivative == pytest.approx(0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi), rel=1e-12)
    assert gelu.sup_at == pytest.approx(math.sqrt(2), abs=1e-5)
    assert silu.sup_derivative == pytest.approx(1.0998393, abs=1e-7)
    assert cr.activation("relu").sup_at == (0, math.inf) and cr.activation("softplus").sup_at == math.inf
    assert cr.activation("sqrt").sup_derivative == math.inf
    selu = cr.activation(F.selu)  # Klambauer et al. 2017: mean 0, variance 1
    assert selu.mean == pytest.approx(0, abs=1e-9) and selu.gain == pytest.approx(1, abs=1e-9)
    assert selu.chi == pytest.approx(1.07157, abs=1e-5)
    assert cr.activation("relu").kappa == pytest.approx(6) and cr.activation("relu").gain == pytest.approx(2**0.5)


def test_saturation() -> None:
    sigmoid = cr.activation("sigmoid")
    edge = math.log((1 + math.sqrt(1 - 0.01)) / (1 - math.sqrt(1 - 0.01)))  # s(1 - s) = 1/400
    assert sigmoid.saturates_at == "both ends"
    assert sigmoid.saturates[0] == (-math.inf, pytest.approx(-edge)) and sigmoid.saturates[1][0] == pytest.approx(edge)
    relu = cr.activation("relu")
    assert relu.saturates == ((-math.inf, 0),) and "at all" in relu.verdict
    assert cr.activation("leaky_relu(z, 0.1)").saturates == ()
    assert cr.activation("leaky_relu(z, 0.005)").saturates_at == "-inf"
    dead = cr.activation("sign(z)*maximum(abs(z) - 0.5, 0)")  # soft threshold
    assert dead.saturates == ((pytest.approx(-0.5), pytest.approx(0.5)),) and dead.saturates_at == ""
    assert cr.activation("log").saturates == ((100, math.inf),)


@pytest.mark.parametrize("source", ["heaviside", "rect", "sign", "step", "[z > 2]", "3*rect(z/2) - 1", torch.round])
def test_derivative_zero_almost_everywhere(source) -> None:
    a = cr.activation(source)
    assert a.zero_derivative and "gradient descent cannot train through it" in str(a) and a.chi == 0
    assert a.kinks and all(k.jump for k in a.kinks)
    assert not cr.activation("relu").zero_derivative


def test_kinks_traits_and_poles() -> None:
    (kink,) = cr.activation("relu(z - 1/3)").kinks
    assert (kink.left, kink.right) == (0, 1) and kink.at == pytest.approx(1 / 3)
    (kink,) = cr.activation("abs").kinks
    assert (kink.at, kink.left, kink.right, kink.declared) == (0, -1, 1, 0)
    assert cr.activation("elu").kinks == ()  # both sides have slope 1
    assert [k.at for k in cr.activation("maximum(-1, minimum(1, z))").kinks] == [-1, 1]
    tanh, cos = cr.activation("tanh"), cr.activation("cos")
    assert (tanh.monotone, tanh.symmetry, tanh.zero_preserving) == ("increasing", "odd", True)
    assert (cos.monotone, cos.symmetry, cos.zero_preserving) == ("", "even", False)
    assert cr.activation("1/(z - 2)").poles == (2,) and cr.activation("tan").kinks == ()
    assert cr.activation("exp(exp(z))").poles == ()  # an overflow is no pole
    assert cr.activation("sqrt").domain == (0, math.inf) and cr.activation("sqrt").gain is None


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize(
    "function",
    [nn.GELU(), nn.ReLU(inplace=True), nn.Softplus(2.0), nn.PReLU(), F.mish, F.hardsigmoid, torch.special.i0,
     nn.Sequential(nn.Tanh(), nn.LeakyReLU(0.3))],
    ids=lambda f: getattr(f, "__name__", str(f)),
)  # fmt: skip
def test_torch_callables(function) -> None:
    before = [p.clone() for p in function.parameters()] if isinstance(function, nn.Module) else []
    a = cr.activation(function)
    double = function.double() if isinstance(function, nn.Module) else function
    np.testing.assert_allclose(a.curve.slope(X), slopes(lambda x: double(x.clone()), X), rtol=1e-7)  # torch rounds 1/6
    assert (a.derived_by == "algebra") == (a.derivative is not None)
    assert a.derivative is not None or "autograd" in a.note
    if before:
        after = [p.float() for p in function.parameters()]
        assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_a_surrogate_backward_is_named() -> None:
    a = cr.activation(Straight.apply)
    assert a.derived_by == "torch autograd" and "surrogate" in a.note and "zero almost everywhere" in a.note


def scaled(x):
    return x / x.abs().max()


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    "source",
    [scaled, lambda x: x.softmax(-1), nn.Dropout(), nn.LayerNorm(15), nn.RReLU(), torch.sum, Counting(), nn.PReLU(15),
     lambda x: x + torch.randn_like(x), lambda x: x * torch.arange(x.numel()).reshape(x.shape), lambda: 1, torch.softmax],
)  # fmt: skip
def test_what_is_not_elementwise_is_refused(source) -> None:
    state = torch.get_rng_state()
    with pytest.raises(ModelError) as error:
        cr.activation(source)
    assert error.value.given and error.value.required and error.value.instead
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "source",
    ["softmax", "sigmod", "z + y", "f(z)", "3", "", "maximum", "einsum", "leaky_relu(z, a)", "log(0)*z", 3, None],
)
def test_bad_text_is_refused(source) -> None:
    with pytest.raises(ChainruleError) as error:
        cr.activation(source)
    assert str(error.value)
    if source == "sigmod":
        assert isinstance(error.value, FormulaError) and error.value.instead == "sigmoid"


def test_result_is_plain_data_and_latex(tmp_path) -> None:
    a = cr.activation("elu(z, 0.5)")
    from chainrule.cli.arguments import plain

    data = json.loads(json.dumps(plain(a.to_dict()), allow_nan=False))
    assert data["limits"]["value"]["-inf"] == -0.5 and data["kinks"][0]["left"] == pytest.approx(0.5)
    assert a._repr_latex_().startswith("$$") and "f'(z)" in a._repr_latex_()
    with pytest.raises(AttributeError):
        a.gain = 2


def test_plot(tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    a = cr.activation("tanh")
    a.plot(str(tmp_path / "tanh.png"))
    assert (tmp_path / "tanh.png").read_bytes().startswith(b"\x89PNG")
    value, slope = cr.activation("tan").plot().axes[0].lines[:2]
    assert np.isnan(value.get_ydata()).any() and np.isnan(slope.get_ydata()).any()  # no line through a pole
    with pytest.raises(ChainruleError, match="cannot write"):
        a.plot(str(tmp_path / "none" / "tanh.png"))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError):
        a.plot()
