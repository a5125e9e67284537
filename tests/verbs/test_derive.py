"""``derive`` on the chapter's problems 7.1 to 7.13, against answers written by hand, in every mode."""

from __future__ import annotations

import json

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import ChainruleError, FormulaError, ShapeError, UnsupportedOpError
from tests.op_contract import central

# ---- 7.1: the thirteen derivatives of a two-layer network ---------------------------------------------------
H1, H2 = "a[theta01 + theta11*x]", "a[theta02 + theta12*x]"
F1, F2 = f"psi01 + psi11*{H1} + psi21*{H2}", f"psi02 + psi12*{H1} + psi22*{H2}"
NETWORK = f"y = phi0 + phi1*a[{F1}] + phi2*a[{F2}]"
I1, I2 = f"I[{F1} > 0]", f"I[{F2} > 0]"
J1, J2 = "I[theta01 + theta11*x > 0]", "I[theta02 + theta12*x > 0]"
DERIVATIVES = {
    "phi0": "1",
    "phi1": f"a[{F1}]",
    "phi2": f"a[{F2}]",
    "psi01": f"phi1*{I1}",
    "psi11": f"phi1*{I1}*{H1}",
    "psi21": f"phi1*{I1}*{H2}",
    "psi02": f"phi2*{I2}",
    "psi12": f"phi2*{I2}*{H1}",
    "psi22": f"phi2*{I2}*{H2}",
    "theta01": f"phi1*psi11*{I1}*{J1} + phi2*psi12*{I2}*{J1}",
    "theta11": f"phi1*psi11*x*{I1}*{J1} + phi2*psi12*x*{I2}*{J1}",
    "theta02": f"phi1*psi21*{I1}*{J2} + phi2*psi22*{I2}*{J2}",
    "theta12": f"phi1*psi21*x*{I1}*{J2} + phi2*psi22*x*{I2}*{J2}",
}


@pytest.mark.parametrize("wrt", DERIVATIVES)
def test_problem_7_1(wrt: str):
    relu = {"a": "relu"}
    found = cr.derive(NETWORK, shapes=relu, wrt=wrt, mode="direct")[wrt]
    assert found.equals(cr.formula(DERIVATIVES[wrt], relu), exact=True), found.text
    assert cr.check(NETWORK, wrt=wrt, claim=DERIVATIVES[wrt], shapes=relu).decided_by == "algebra"


def test_problem_7_1_in_every_mode():
    for mode in ("reverse", "forward"):
        d = cr.derive(NETWORK, shapes={"a": "relu"}, wrt="theta12", mode=mode)
        assert d["theta12"].equals(cr.formula(DERIVATIVES["theta12"], {"a": "relu"}))


# ---- 7.2: the toy chain ------------------------------------------------------------------------------------
TOY = "f0 = b0 + w0*x; h1 = sin(f0); f1 = b1 + w1*h1; h2 = exp(f1); f2 = b2 + w2*h2; h3 = cos(f2); f3 = b3 + w3*h3; l = (f3 - y)^2"
CHAIN = {
    "f3": "2*(f3 - y)",
    "h3": "2*(f3 - y)*w3",
    "f2": "-sin(f2)*w3*2*(f3 - y)",
    "h2": "w2*(-sin(f2))*w3*2*(f3 - y)",
    "f1": "exp(f1)*w2*(-sin(f2))*w3*2*(f3 - y)",
    "h1": "w1*exp(f1)*w2*(-sin(f2))*w3*2*(f3 - y)",
    "f0": "cos(f0)*w1*exp(f1)*w2*(-sin(f2))*w3*2*(f3 - y)",
}


@pytest.mark.parametrize("wrt", CHAIN)
def test_problem_7_2(wrt: str):
    verdict = cr.check(TOY, wrt=wrt, claim=CHAIN[wrt])
    assert verdict.holds and verdict.decided_by == "algebra", str(verdict)


def test_problem_7_2_visits_the_chain_from_the_loss_back():
    d = cr.derive(TOY, wrt="f0")
    assert [s.wrt for s in d.steps] == ["f3", "h3", "f2", "h2", "f1", "h1", "f0"]
    assert [f.symbol for f in d.steps[-1].factors] == ["dl/dh1", "dh1/df0"]
    assert d.steps[-1].factors[1].expression.text == "cos(f0)"


# ---- 7.3: sizes --------------------------------------------------------------------------------------------
NET = "h1 = a[f0]; f1 = beta1 + Omega1 @ h1; h2 = a[f1]; f2 = beta2 + Omega2 @ h2; h3 = a[f2]; f3 = beta3 + Omega3 @ h3; li = l[f3]"
NET_SHAPES = {
    "a": "relu", "f0": "D_1", "beta1": "D_2", "Omega1": "D_2,D_1", "beta2": "D_3", "Omega2": "D_3,D_2",
    "beta3": "D_f", "Omega3": "D_f,D_3",
}  # fmt: skip


def test_problem_7_3():
    d = cr.derive(NET, shapes=NET_SHAPES, wrt="f0")
    local = {s.wrt: tuple(map(str, s.factors[0].shape)) for s in d.steps[1:]}
    assert local == {
        "h3": ("D_3", "D_f"),
        "f2": ("D_3", "D_3"),
        "h2": ("D_2", "D_3"),
        "f1": ("D_2", "D_2"),
        "h1": ("D_1", "D_2"),
        "f0": ("D_1", "D_1"),
    }
    assert tuple(map(str, d["f0"].shape)) == ("D_1",)
    assert all(len(s.factors[1].shape) == 1 for s in d.steps[1:])


# ---- 7.4, 7.5: losses --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "loss, wrt, text",
    [
        ("l = (y - f)^2", "f", "2 * (f - y)"),
        ("l = -(1 - y)*log(1 - sig[f]) - y*log(sig[f])", "f", "sigmoid(f) - y"),
        ("l = log(1 + exp(f)) - y*f", "f", None),
    ],
)
def test_problems_7_4_and_7_5(loss: str, wrt: str, text: str | None):
    found = cr.derive(loss, wrt=wrt, mode="direct")[wrt]
    assert text is None or found.text == text
    assert cr.check(loss, wrt=wrt, claim="2*(f - y)" if "^2" in loss else "sig[f] - y").holds


# ---- 7.6, 7.9: the linear layer ----------------------------------------------------------------------------
LAYER = {"beta": "m", "Omega": "m,n", "h": "n"}


def test_problem_7_6():
    d = cr.derive("z = beta + Omega @ h", shapes=LAYER, wrt="h")
    assert d["h"].text == "Omega'" and tuple(map(str, d["h"].shape)) == ("n", "m")
    assert "layout: denominator (the book's)" in str(d)
    other = cr.derive("z = beta + Omega @ h", shapes=LAYER, wrt="h", layout="numerator")
    assert other["h"].text == "Omega" and "layout: numerator" in str(other)


def test_problem_7_9():
    d = cr.derive("f = beta + Omega @ h; L = l[f]", shapes=LAYER, wrt="Omega, beta, h")
    assert d["Omega"].text == "dl/df @ h'"
    assert d["beta"].text == "dl/df"
    assert d["h"].text == "Omega' @ dl/df"
    product = cr.derive("f = beta + Omega @ h", shapes=LAYER, wrt="Omega", cotangent="g")
    assert product["Omega"].text == "g @ h'"


# ---- 7.10: leaky relu --------------------------------------------------------------------------------------
def test_problem_7_10():
    source = "h = leaky_relu(fp, alpha); f = beta + Omega @ h; L = l[f]"
    shapes = {"fp": "n", "beta": "m", "Omega": "m,n"}
    claim = "I[fp > 0] * (Omega' @ dl/df) + I[fp <= 0] * alpha * (Omega' @ dl/df)"
    assert cr.check(source, wrt="fp", claim=claim, shapes=shapes).holds
    shapes = {"fp": "n", "Omega": "m,n"}
    found = cr.derive("f = Omega @ leaky_relu(fp, alpha)", shapes=shapes, wrt="fp", cotangent="g")["fp"]
    values = {"Omega": [[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], "fp": [0.3, -0.7], "g": [1.0, 2.0, -1.0], "alpha": 0.1}
    back = np.array(values["Omega"]).T @ values["g"]
    assert np.allclose(found.evaluate(**values), np.where(np.array(values["fp"]) > 0, back, 0.1 * back))


# ---- 7.12, 7.13: an acyclic graph --------------------------------------------------------------------------
ACYCLIC = "f1 = exp[x]; f2 = f1^2; f3 = f1 + f2; f4 = exp[f3]; f5 = sin[f3]; y = f4 + f5"
REVERSE = {
    "f5": "1",
    "f4": "1",
    "f3": "cos[f3] + exp[f3]",
    "f2": "cos[f3] + exp[f3]",
    "f1": "(cos[f3] + exp[f3])*(1 + 2*f1)",
    "x": "(cos[f3] + exp[f3])*(1 + 2*f1)*exp[x]",
}
FORWARD = {
    "f1": "exp[x]",
    "f2": "2*f1*exp[x]",
    "f3": "exp[x]*(1 + 2*f1)",
    "f4": "exp[f3]*exp[x]*(1 + 2*f1)",
    "f5": "cos[f3]*exp[x]*(1 + 2*f1)",
    "y": "(exp[f3] + cos[f3])*exp[x]*(1 + 2*f1)",
}


def test_problem_7_12():
    d = cr.derive(ACYCLIC, wrt="x", mode="reverse")
    assert [(s.of, s.wrt) for s in d.steps] == [("y", w) for w in REVERSE]
    for step in d.steps:
        claim = cr.formula(ACYCLIC.rsplit(";", 1)[0] + f"; {REVERSE[step.wrt]}")
        assert step.closed_form.equals(claim), step
    paths = {s.wrt: [[f.symbol for f in t.factors] for t in s.terms] for s in d.steps}
    assert paths["f3"] == [["dy/df5", "df5/df3"], ["dy/df4", "df4/df3"]]
    assert len(paths["f1"]) == 2 and len(paths["x"]) == 1
    assert str(d.steps[2]) == "dy/df3 = dy/df5 * df5/df3 + dy/df4 * df4/df3 = cos(f3) + exp(f3)"


def test_problem_7_13():
    d = cr.derive(ACYCLIC, wrt="x", mode="forward")
    assert [(s.of, s.wrt) for s in d.steps] == [(of, "x") for of in FORWARD]
    for step in d.steps:
        claim = cr.formula(ACYCLIC.rsplit(";", 1)[0] + f"; {FORWARD[step.of]}")
        assert step.closed_form.equals(claim), step
    assert [len(s.terms) for s in d.steps] == [1, 1, 2, 1, 1, 2]


def test_a_single_formula_becomes_the_same_steps():
    """The function of 7.12 in one line is cut into its elementary operations."""
    one = cr.derive("y = exp(exp(x) + exp(x)^2) + sin(exp(x) + exp(x)^2)", wrt="x")
    six = cr.derive(ACYCLIC, wrt="x")
    assert [s.wrt for s in one.steps] == [s.wrt for s in six.steps]
    assert [s.closed_form.text for s in one.steps] == [s.closed_form.text for s in six.steps]
    assert [[len(t.factors) for t in s.terms] for s in one.steps] == [
        [len(t.factors) for t in s.terms] for s in six.steps
    ]


# ---- modes -------------------------------------------------------------------------------------------------
PROGRAMS = [
    (ACYCLIC, "x", {}),
    (TOY, "w0", {}),
    ("s = A @ x; t = tanh(s); y = sum(t*t)", "x", {"A": "m,n", "x": "n"}),
    ("s = A @ x; t = tanh(s); y = sum(t*t)", "A", {"A": "m,n", "x": "n"}),
    ("s = A @ x; p = softmax(s); y = A' @ p", "x", {"A": "m,n", "x": "n"}),
    ("r = A @ x - b; y = sqrt(r' @ r)", "x", {"A": "m,n", "x": "n", "b": "m"}),
    ("u = x*x; v = u + x; w = u*v; y = w + u", "x", {}),
]


@pytest.mark.parametrize("source, wrt, shapes", PROGRAMS)
def test_the_modes_agree(source: str, wrt: str, shapes: dict):
    found = [
        cr.derive(source, wrt=wrt, shapes=shapes, mode=mode)[wrt] for mode in ("direct", "reverse", "forward", "best")
    ]
    assert all(found[0].equals(other) for other in found[1:])
    sizes, generator = {"n": 3, "m": 2}, np.random.default_rng(1)
    program = cr.formula(source, shapes)
    names = [i.params["name"] for i in program.graph.inputs]
    arrays = {n: generator.standard_normal([sizes[s] for s in shapes.get(n, "").split(",") if s]) for n in names}
    expected = central(lambda x: program.evaluate(**arrays | {wrt: x}), np.asarray(arrays[wrt]))
    assert np.allclose(found[1].evaluate(**arrays), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", ["denominator", "numerator"])
@pytest.mark.parametrize("mode", ["direct", "reverse", "forward", "best"])
def test_layouts_of_a_chain_of_vectors(layout: str, mode: str):
    source, shapes = "s = A @ x; t = exp(s); y = B @ t", {"A": "m,n", "x": "n", "B": "k,m"}
    d = cr.derive(source, wrt="x", shapes=shapes, mode=mode, layout=layout)
    expected = {"denominator": ("n", "k"), "numerator": ("k", "n")}[layout]
    assert tuple(map(str, d["x"].shape)) == expected
    claim = {"denominator": "A' @ diag(exp(A @ x)) @ B'", "numerator": "B @ diag(exp(A @ x)) @ A"}[layout]
    assert d["x"].equals(cr.formula(claim, shapes))


# ---- order two ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "source, text",
    [
        ("f = x' @ A @ x", "A + A'"),
        ("f = sum(exp(x))", "diag(exp(x))"),
        ("f = logsumexp(x)", "diag(p) - p @ p'"),
    ],
)
def test_second_order(source: str, text: str):
    d = cr.derive(source, wrt="x", shapes={"x": "n", "A": "n,n"} if "A" in source else {"x": "n"}, order=2)
    assert d["x"].text == text and d.order == 2


def test_second_order_of_a_vector_is_output_first():
    second = cr.derive("f = x*x", wrt="x", shapes={"x": "n"}, order=2)["x"]
    found = second.evaluate(x=np.ones(2), n=2)
    assert found.shape == (2, 2, 2) and found[0, 0, 0] == 2 and found.sum() == 4


def test_second_order_of_a_scalar():
    assert cr.derive("y = x^3", wrt="x", order=2)["x"].text == "6 * x"


# ---- zeros say why -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "source, note",
    [
        ("f = a*2; y = x + 1", "does not depend on a"),
        ("y = a*0 + x", None),
        ("y = stop_gradient(a) * x", "stop_gradient"),
        ("y = heaviside(a)", "zero almost everywhere"),
        ("y = rect(a)", "zero almost everywhere"),
        ("y = a - a", "cancel"),
    ],
)
def test_a_zero_derivative_says_why(source: str, note: str | None):
    d = cr.derive(source, wrt="a")
    assert d["a"].evaluate() == 0
    assert note is None or (note in d.steps[-1].note and note in str(d))


# ---- the result --------------------------------------------------------------------------------------------
def test_factors_of_several_paths_point_to_terms():
    step = cr.derive(ACYCLIC, wrt="x").steps[2]
    with pytest.raises(ValueError, match=r"2 paths: see \.terms"):
        _ = step.factors
    assert [f.shape for t in step.terms for f in t.factors] == [()] * 4


def test_to_dict_is_the_public_schema():
    d = cr.derive(ACYCLIC, wrt="x")
    plain = json.loads(json.dumps(d.to_dict()))
    assert plain["schema"] == "chainrule.derive/1" and plain["of"] == "y" and plain["wrt"] == ["x"]
    assert set(plain["steps"][2]) >= {"of", "wrt", "terms", "closed_form", "shape", "value"}
    assert plain["steps"][2]["terms"][0][1] == {"symbol": "df5/df3", "expression": "cos(f3)", "shape": []}
    assert plain["derivatives"]["x"]["text"] == d["x"].text
    assert [s["wrt"] for s in plain["steps"]] == list(REVERSE)


def test_values_are_every_intermediate_and_derivative_in_order():
    values = cr.derive(ACYCLIC, wrt="x").values(x=0.3)
    assert list(values) == ["f1", "f2", "f3", "f4", "f5", "y", *(f"dy/d{w}" for w in REVERSE)]
    assert values["f1"] == np.exp(0.3)
    u = np.exp(0.3) + np.exp(0.6)
    assert values["dy/dx"] == pytest.approx((np.exp(u) + np.cos(u)) * (np.exp(0.3) + 2 * np.exp(0.6)))


def test_latex_has_a_line_per_step():
    shown = cr.derive(ACYCLIC, wrt="x").latex()
    assert shown.startswith(r"\begin{aligned}") and shown.count(r"\\") == 5
    assert r"\frac{\partial y}{\partial f_{3}}" in shown


def test_lines_lead_from_the_chain_rule_to_the_simplified_form():
    step = cr.derive(ACYCLIC, wrt="x").steps[4]
    rules = [rule for _, rule in step.lines]
    assert rules[0] == "chain rule, sum over paths" and rules[-1] == "common factors taken out"
    assert step.lines[-1][0] == step.closed_form.text


def test_evaluate_needs_the_leaves_only():
    d = cr.derive(TOY, wrt="w0")
    given = dict.fromkeys(("b0", "b1", "b2", "b3"), 0.1) | dict.fromkeys(("w0", "w1", "w2", "w3"), 0.5)
    assert np.isfinite(d["w0"].evaluate(x=0.2, y=1.0, **given))


def test_a_printed_answer_is_a_formula_again():
    for source, wrt, shapes in PROGRAMS:
        found = cr.derive(source, wrt=wrt, shapes=shapes, mode="direct")[wrt]
        assert cr.formula(found.text, shapes, where=found).simplified().node is found.simplified().node


def test_intermediates_may_be_the_variable():
    d = cr.derive(ACYCLIC, wrt="f3", mode="direct")
    assert d["f3"].text == "cos(f3) + exp(f3)"
    assert cr.derive(ACYCLIC, wrt="f3, x").wrt == ("f3", "x")


def test_an_expression_is_a_source():
    assert cr.derive(cr.formula("x^2"), wrt="x")["x"].text == "2 * x"


# ---- what is refused ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"wrt": "z1"}, FormulaError, "cannot derive by 'z1'"),
        ({"wrt": "x", "mode": "sideways"}, ChainruleError, "one of direct, forward, reverse, best"),
        ({"wrt": "x", "layout": "row"}, ChainruleError, "denominator, numerator"),
        ({"wrt": "x", "order": 4}, ChainruleError, "1, 2 or 3"),
        ({"wrt": "x", "mode": "forward", "cotangent": "g"}, ChainruleError, "reverse"),
        ({"wrt": "x,z,x"}, FormulaError, "'x' is twice in wrt"),
        ({"wrt": ""}, FormulaError, "cannot derive by ''"),
        ({"wrt": []}, ChainruleError, "nothing to derive by"),
        ({"wrt": 1}, FormulaError, "wrt is no name"),
        ({"wrt": ["x", 2]}, FormulaError, "wrt is no name"),
        ({"wrt": "x", "assume": "symmetric"}, ChainruleError, "assume is not a mapping"),
        ({"wrt": "x", "cotangent": "2g"}, FormulaError, "'2g' cannot name a cotangent"),
        ({"wrt": "x", "cotangent": "exp"}, FormulaError, "'exp' cannot name a cotangent"),
        ({"wrt": "x", "cotangent": "z"}, FormulaError, "the cotangent is called 'z'"),
        ({"wrt": "x", "cotangent": "y"}, FormulaError, "the cotangent is called 'y'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict, error: type, message: str):
    with pytest.raises(error, match=message) as raised:
        cr.derive("y = x^2 + z", **arguments)
    assert isinstance(raised.value, ChainruleError)
    assert all((raised.value.what, raised.value.given, raised.value.required, raised.value.instead))


@pytest.mark.parametrize("value", ["a", 1j, [[1.0], [2.0, 3.0]], None, {"x": 1}])
def test_values_that_are_no_real_numbers_are_refused(value: object):
    d = cr.derive("y = x^2", wrt="x")
    for evaluate in (d.values, d["x"].evaluate):
        with pytest.raises(ShapeError, match="'x'"):
            evaluate(x=value)


def test_a_near_name_is_suggested():
    with pytest.raises(FormulaError, match="alpha"):
        cr.derive("y = alpha^2", wrt="alpa")


def test_other_errors_keep_their_class():
    with pytest.raises(ShapeError):
        cr.derive("A @ B", shapes={"A": "m,n", "B": "m,n"}, wrt="A")
    with pytest.raises(FormulaError):
        cr.derive("y = (x", wrt="x")
    with pytest.raises(FormulaError):
        _ = cr.derive("y = x*z", wrt="x")["z"]
    with pytest.raises(UnsupportedOpError):
        cr.derive("y = l(x)", wrt="x")["x"].evaluate(x=1.0)


# ---- numbers, sizes, third derivatives ---------------------------------------------------------------------
def test_every_step_has_its_value_at_a_point():
    d = cr.derive(ACYCLIC, wrt="x", at={"x": 0.3})
    values = cr.derive(ACYCLIC, wrt="x").values(x=0.3)
    assert [s.value for s in d.steps] == [values[s.symbol] for s in d.steps]
    assert json.loads(json.dumps(d.to_dict()))["steps"][-1]["value"] == pytest.approx(values["dy/dx"])
    assert all(s.value is None for s in cr.derive(ACYCLIC, wrt="x").steps)
    with pytest.raises(ShapeError, match="no value for 'x'"):
        cr.derive(ACYCLIC, wrt="x", at={"z": 0.3})


def test_sizes_come_from_variables_that_the_derivative_has_lost():
    second = cr.derive("f = x*x", wrt="x", shapes={"x": "n"}, order=2)["x"]
    assert second.evaluate(x=np.ones(4)).shape == (4, 4, 4)
    u = cr.derive("u = A @ x; y = u + x", wrt="x", shapes={"A": "n,n", "x": "n"})["x"]
    assert u.simplified().evaluate(A=np.eye(3), x=np.ones(3)).shape == (3, 3)


@pytest.mark.parametrize("layout", ["denominator", "numerator"])
@pytest.mark.parametrize(
    "source, shapes",
    [
        ("f = x^4 * z", {}),
        ("f = exp(A @ x)", {"A": "2,3", "x": "3"}),
        ("f = logsumexp(A @ x)", {"A": "2,3", "x": "3"}),
        ("f = (x' @ A @ x)^2", {"A": "3,3", "x": "3"}),
        ("u = tanh(A @ x); f = sum(u*u)", {"A": "2,3", "x": "3"}),
    ],
)
def test_third_order_is_the_difference_of_the_second(source: str, shapes: dict, layout: str):
    generator = np.random.default_rng(3)
    names = [i.params["name"] for i in cr.formula(source, shapes).graph.inputs]
    arrays = {n: generator.standard_normal([int(s) for s in shapes.get(n, "").split(",") if s]) for n in names}
    d = cr.derive(source, wrt="x", shapes=shapes, order=3, layout=layout)
    second = cr.derive(source, wrt="x", shapes=shapes, order=2)["x"]
    expected = central(lambda x: second.evaluate(**arrays | {"x": x}), np.asarray(arrays["x"]))  # X + F + X + X
    rank = np.ndim(arrays["x"])
    expected = np.moveaxis(expected, range(rank), range(-rank, 0)) if rank else expected
    # central differences of order-one values with a step of about 1e-6
    assert np.allclose(d["x"].evaluate(**arrays), expected, rtol=1e-6, atol=1e-7)
    if source.count(";") == 0:
        assert cr.formula(d["x"].text, {k: v for k, v in shapes.items() if k in d["x"].text}, where=d["x"]).equals(
            d["x"]
        )


def test_a_third_derivative_of_too_many_indices_is_refused():
    with pytest.raises(ChainruleError, match="6 indices"):
        cr.derive("f = sum(X*X*X)", wrt="X", shapes={"X": "m,n"}, order=3)
