"""``check``: verdicts, counterexamples, slips, and how equality was decided."""

from __future__ import annotations

import json

import pytest

import chainrule as cr
from chainrule.errors import ChainruleError, FormulaError, ShapeError

VEC = {"A": "m,n", "x": "n"}
RIGHT = [
    ("l = (f3 - y)^2", "f3", "2*(f3 - y)", {}),
    ("l = (f3 - y)^2", "f3", "2*f3 - 2*y", {}),
    ("y = sin(x)*cos(x)", "x", "cos(2*x)", {}),
    ("y = tanh(x)", "x", "1/cosh(x)^2", {}),
    ("y = log(1 + exp(x))", "x", "sigmoid(x)", {}),
    ("x' @ A @ x", "x", "A' @ x + A @ x", {"A": "n,n", "x": "n"}),
    ("sum((A @ x - b)^2)", "x", "2*A' @ (A @ x - b)", {**VEC, "b": "m"}),
    ("A @ x", "x", "A'", VEC),
    ("logdet(X)", "X", "inv(X)'", {"X": "n,n"}),
    ("f1 = exp(x); y = f1^2", "x", "2*f1*exp(x)", {}),
    ("y = sqrt(x^2 + 1)", "x", "x/y", {}),
]
WRONG = [
    ("l = (f3 - y)^2", "f3", "2*f3", {}, "forgotten path"),
    ("l = (f3 - y)^2", "f3", "2*(y - f3)", {}, "sign"),
    ("l = (f3 - y)^2", "f3", "f3 - y", {}, "missing factor"),
    ("l = 0.5*(f3 - y)^2", "f3", "2*(f3 - y)", {}, "missing factor"),
    ("A @ x", "x", "A", VEC, "missing transpose"),
    ("x' @ A @ x", "A", "x @ x' + A", {"A": "n,n", "x": "n"}, "a term too many"),
    ("x' @ A @ z", "A", "z @ x'", {"A": "n,n", "x": "n", "z": "n"}, "missing transpose"),
    ("y = relu(x)", "x", "1", {}, "missing inner derivative"),
    ("y = exp(x)", "x", "0", {}, "zero"),
]


@pytest.mark.parametrize("source, wrt, claim, shapes", RIGHT)
def test_right_claims_hold(source: str, wrt: str, claim: str, shapes: dict):
    c = cr.check(source, wrt=wrt, claim=claim, shapes=shapes)
    assert c.holds, str(c)
    assert c.counterexample is None and c.slip == "" and str(c).startswith("right:")


@pytest.mark.parametrize("source, wrt, claim, shapes, slip", WRONG)
def test_wrong_claims_come_with_the_right_answer_and_a_point(
    source: str, wrt: str, claim: str, shapes: dict, slip: str
):
    c = cr.check(source, wrt=wrt, claim=claim, shapes=shapes)
    assert not c.holds and c.slip_kind == slip, c.slip
    if c.difference is None:
        assert c.decided_by == "shapes" and c.claim.shape != c.correct.shape
    else:
        assert c.counterexample is not None and c.counterexample["first"] != c.counterexample["second"]
        assert set(c.counterexample) == {"at", "first", "second"}
    assert str(c).startswith("wrong:")


def test_the_issues_own_example():
    c = cr.check("l = (f3 - y)^2", wrt="f3", claim="2*f3")
    assert (c.correct.text, c.difference.text) == ("2 * (f3 - y)", "2 * y")
    at, first, second = (c.counterexample[k] for k in ("at", "first", "second"))
    assert first == pytest.approx(2 * at["f3"], abs=1e-3)
    assert second == pytest.approx(2 * (at["f3"] - at["y"]), abs=1e-3)


def test_algebra_decides_where_it_can():
    assert cr.check("y = x^2", wrt="x", claim="x + x").decided_by == "algebra"
    assert cr.check("y = tanh(x)", wrt="x", claim="1/cosh(x)^2").decided_by == "random points"


def test_the_claim_may_use_the_formulas_names():
    toy = "f1 = w*x; h = tanh(f1); y = h^2"
    assert cr.check(toy, wrt="w", claim="2*h*(1 - h^2)*x").holds
    assert cr.check(toy, wrt="f1", claim="2*h*(1 - h^2)").holds


def test_order_layout_and_cotangent():
    assert cr.check("x' @ A @ x", wrt="x", claim="A + A'", shapes={"A": "n,n", "x": "n"}, order=2).holds
    assert cr.check("A @ x", wrt="x", claim="A", shapes=VEC, layout="numerator").holds
    assert cr.check("A @ x", wrt="A", claim="g @ x'", shapes=VEC, cotangent="g").holds
    assert not cr.check("A @ x", wrt="A", claim="2*g @ x'", shapes=VEC, cotangent="g").holds


def test_to_dict_is_plain_data():
    plain = json.loads(json.dumps(cr.check("l = (f3 - y)^2", wrt="f3", claim="2*f3").to_dict()))
    assert plain["schema"] == "chainrule.check/1" and plain["holds"] is False
    assert plain["correct"] == "2 * (f3 - y)" and plain["difference"] == "2 * y"
    assert set(plain["counterexample"]["at"]) == {"f3", "y"}
    shapes = json.loads(json.dumps(cr.check("A @ x", wrt="x", claim="A", shapes=VEC).to_dict()))
    assert shapes["difference"] is None and shapes["slip_kind"] == "missing transpose"


def test_the_same_question_has_the_same_counterexample():
    first, second = (cr.check("y = sin(x)", wrt="x", claim="cos(x) + 1e-3") for _ in range(2))
    assert first.counterexample == second.counterexample


def test_a_small_difference_is_a_difference():
    assert not cr.check("y = sin(x)", wrt="x", claim="cos(x) + 1e-6").holds


def test_the_point_shows_a_small_difference():
    point = cr.check("y = sin(x)", wrt="x", claim="cos(x) + 1e-6").counterexample
    assert point is not None and point["first"] != point["second"]


@pytest.mark.parametrize("claim, holds", [("dl/df @ h'", True), ("2*dl/df @ h'", False), ("(Omega @ h) @ h'", False)])
def test_claims_about_unknown_functions(claim: str, holds: bool):
    shapes = {"beta": "m", "Omega": "m,n", "h": "n"}
    c = cr.check("f = beta + Omega @ h; L = l[f]", wrt="Omega", claim=claim, shapes=shapes)
    assert c.holds is holds
    assert holds or any(name.startswith("dl/d") for name in c.counterexample["at"])


def test_domains_are_respected():
    assert cr.check("y = log(x)", wrt="x", claim="1/x").holds
    assert cr.check("y = sqrt(x)", wrt="x", claim="1/(2*sqrt(x))").holds
    assert cr.check("y = x^p", wrt="x", claim="p*x^(p - 1)").holds


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"wrt": "x", "claim": "2*("}, FormulaError),
        ({"wrt": "q", "claim": "2"}, FormulaError),
        ({"wrt": "x, y", "claim": "2"}, ChainruleError),
        ({"wrt": "all", "claim": "2"}, ChainruleError),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict, error: type):
    with pytest.raises(error):
        cr.check("y = x^2", **arguments)


def test_a_claim_with_operands_that_do_not_fit_is_an_error_of_shapes():
    with pytest.raises(ShapeError):
        cr.check("A @ x", wrt="x", claim="A @ A @ x", shapes=VEC)


@pytest.mark.parametrize(
    "source, claim",
    [
        ("y = 1e-12*x", "2e-12"),
        ("y = 1e12*x^2", "2e12*x + 1"),
        ("y = sin(x)", "(1 + 1e-10)*cos(x)"),
        ("y = relu(x - 50)", "0"),
        ("y = where(x > 100, x^2, x)", "1"),
        ("y = where(x^3 + x > 54321, x^2, x)", "1"),
        ("y = exp(-x^2*1e6)", "0"),
        ("y = asin(x)", "1/sqrt(1 + x^2)"),
        ("y = sqrt(x - 100)", "(x - 100)^(-0.5)"),
    ],
)
def test_wrong_at_any_scale_is_wrong(source: str, claim: str):
    c = cr.check(source, wrt="x", claim=claim)
    assert not c.holds and c.counterexample["first"] != c.counterexample["second"]
    values = cr.derive(source, wrt="x").values(**c.counterexample["at"])
    assert all(abs(v) < float("inf") for v in values.values())  # the formula itself has a value there


@pytest.mark.parametrize(
    "source, claim",
    [
        ("y = log(x)", "1/abs(x)"),
        ("y = sqrt(x - 100)", "0.5*(x - 100)^(-0.5)"),
        ("y = 0.1*x + 0.2*x", "0.3"),
        ("y = 1 - cos(x)", "2*sin(x/2)*cos(x/2)"),
        ("y = exp(x)*exp(-x)", "0"),
        ("y = sin(x)^2 + cos(x)^2", "0"),
        ("y = log(1 + exp(x))", "1/(1 + exp(-x))"),
        ("y = sigmoid(x)", "1/(exp(x) + 2 + exp(-x))"),
    ],
)
def test_rounding_and_domains_make_no_claim_wrong(source: str, claim: str):
    c = cr.check(source, wrt="x", claim=claim)
    assert c.holds and not c.except_at, str(c)


@pytest.mark.parametrize(
    "source, wrt, claim, where",
    [
        ("y = relu(z)", "z", "[z >= 0]", "z = 0"),
        ("y = relu(z - 50)", "z", "[z >= 50]", "z = 50"),
        ("y = maximum(a, b)", "a", "[a > b]", "a = b"),
        ("y = relu(w*x + b)", "w", "x*[w*x + b >= 0]", "w * x + b = 0"),
        ("y = relu(z)", "z", "[z > 0]", ""),
        ("y = relu(x + 3)", "x", "[x > -3]", ""),
    ],
)
def test_a_kink_where_alone_a_claim_differs_is_named(source: str, wrt: str, claim: str, where: str):
    c = cr.check(source, wrt=wrt, claim=claim)
    assert c.holds and c.except_at == where == c.to_dict()["except_at"]
    assert (f"equal except at {where}" in str(c)) is bool(where)


@pytest.mark.parametrize(
    "source, claim, shapes, message",
    [
        ("y = sin(x)", "cos(z)", {}, "'z'"),
        ("y = sin(speed)", "cos(sped)", {}, "speed"),
        ("y = x", "0*x/0", {}, "division by zero"),
        ("y = 1/(x - x)", "0", {}, "division by zero"),
        ("y = x + log(0)", "1", {}, "not finite"),
        ("y = x^2", "2*x", {"x": "-1"}, "size -1"),
        ("y = x^2", "2*x", {"x": 0}, "size 0"),
        ("y = x^2", "2*x", {"x": "1.5"}, "not a size"),
        ("y = x^2", "2*x", {"z": 3}, "'z'"),
        ("y = speed^2", "2*speed", {"Speed": 3}, "instead:  speed"),
    ],
)
def test_slips_in_claims_and_shapes_are_refused(source: str, claim: str, shapes: dict, message: str):
    with pytest.raises(FormulaError) as caught:
        cr.check(source, wrt="speed" if "speed" in source else "x", claim=claim, shapes=shapes)
    assert message in str(caught.value)


def test_a_formula_without_a_domain_is_refused():
    with pytest.raises(ChainruleError, match="no point was found"):
        cr.check("y = sqrt(-1 - x^2)", wrt="x", claim="x")


def test_a_row_is_not_the_gradient():
    shapes = {"A": "n,n", "x": "n"}
    c = cr.check("x' @ A @ x", wrt="x", claim="(A @ x + A' @ x)'", shapes=shapes)
    assert not c.holds and c.slip_kind == "layout" and "claimed (1, n), correct (n)" in str(c)
    assert cr.check("x' @ A @ x", wrt="x", claim="(A @ x + A' @ x)'", shapes=shapes, layout="numerator").holds
