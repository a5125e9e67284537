"""Short forms: what simplify must find, what it must leave alone, and what it may never lose."""

from __future__ import annotations

import numpy as np
import pytest

from chainrule.frontends.formula import parse
from chainrule.interpreters.simplify import equal, expand, simplify, simplify_all
from chainrule.interpreters.text import text
from chainrule.ir import OPS, Graph, TensorType, apply, check, constant, tree_size, variable

SHAPES = {"x": "n", "y": "n", "z": "n", "p": "n", "v": "m", "A": "n,n", "B": "n,n", "X": "m,n", "Y": "m,n", "D": "n,n"}

TABLE = [
    # constants, zeros and ones
    ("1*a + 0", "a"),
    ("a + 0*b", "a"),
    ("2^3 - 1", "7"),
    ("3/6", "0.5"),
    ("a^1 * b^0", "a"),
    ("-(-a)", "a"),
    ("0*x + x", "x"),
    ("sqrt(2)*a", "1.4142135623730951 * a"),
    # like terms
    ("x + x", "2 * x"),
    ("2*a + 3*a - 5*a", "0"),
    ("a*b - b*a", "0"),
    ("a + b - a", "b"),
    ("-(a - b)", "b - a"),
    ("2*(f3 - y1) - f3 + y1", "f3 - y1"),
    ("(a + b)^2 - a^2 - b^2", "2 * a * b"),
    # powers and quotients
    ("a*a*a", "a^3"),
    ("a^2*a^3", "a^5"),
    ("a^2/a", "a"),
    ("a/a", "1"),
    ("1/(1/a)", "a"),
    ("a/(b/c)", "a * c / b"),
    ("a/b + c/b", "(a + c) / b"),
    ("sqrt(a)^2", "a"),
    ("sqrt(a^2)", "sqrt(a^2)"),  # |a|, not a
    ("x^-0.5", "1 / sqrt(x)"),
    # inverse functions
    ("exp(log(a))", "a"),
    ("log(exp(a))", "a"),
    ("exp(a)/exp(a)", "1"),
    # common factors
    ("a*b + a*c*d", "a * (b + c * d)"),
    ("exp(a)*b + exp(a)*c", "exp(a) * (b + c)"),
    ("A @ x + A @ y", "A @ (x + y)"),
    ("x' @ A' + x' @ A", "(A + A') @ x"),
    ("A @ x - A' @ x", "(A - A') @ x"),
    # deltas and sums of ones
    ("eye(n) @ x", "x"),
    ("A @ eye(n) @ B", "A @ B"),
    ("tr(eye(n))", "n"),
    ("sum(ones(n))", "n"),
    ("ones(n)' @ x", "sum(x)"),
    ("diag(p) @ x", "p * x"),
    ("diag(p) @ A", "diag(p) @ A"),
    ("x' @ A @ y - (A' @ x)' @ y", "0"),
    # products are written for people
    ("A''", "A"),
    ("(A @ B)'", "B' @ A'"),
    ("(A + A')'", "A + A'"),
    ("x[:, None] * y[None, :]", "x @ y'"),
    ("sum(x[:, None] * y[None, :], 1)", "sum(y) * x"),
    ("sum(2*x)", "2 * sum(x)"),
    ("tr(A @ B')", "sum(A * B)"),
    ('einsum("ij,kj->ik", A, B)', "A @ B'"),
    # choices
    ("where(1 > 0, a, b)", "a"),
    ("where(a > 0, b, b)", "b"),
    # what is not a sum of products stays
    ("relu(a) - relu(a)", "0"),
    ("max(x) - max(x)", "0"),
    ("mean(x)", "mean(x)"),
]

GRADIENTS = [  # section 5 of the notes on derivations: formula, variable, its gradient as a person writes it
    ("(f3 - y1)^2", "f3", "2 * (f3 - y1)"),
    ("-(1 - t)*log(1 - sig(f)) - t*log(sig(f))", "f", "sigmoid(f) - t"),
    ("x' @ A @ x", "x", "(A + A') @ x"),
    ("v' @ X @ x", "X", "v @ x'"),
    ("sum((X @ x - v)^2)", "x", "2 * X' @ (X @ x - v)"),
    ("0.5*sum((X @ x - v)^2) + 0.5*lam*sum(x^2)", "x", "lam * x + X' @ (X @ x - v)"),
    ("logsumexp(z)", "z", "softmax(z)"),
    ("sum(exp(x))", "x", "exp(x)"),
    ("sqrt(1 + a^2) - 1", "a", "a / sqrt(1 + a^2)"),
    ("(a^2 + 1)^3", "a", "6 * a * (1 + a^2)^2"),
    ("sum(relu(A @ x))", "A", "[A @ x > 0] @ x'"),
    ("tr(X' @ X)", "X", "2 * X"),
    ("tr(A @ D)", "D", "A'"),
    ("tr(D @ D @ D)", "D", "3 * D' @ D'"),
    ("logdet(D)", "D", "inv(D)'"),
    ("det(D)", "D", "det(D) * inv(D)'"),
    ("sum(abs(X))", "X", "sign(X)"),
    ("norm(X)", "X", "X / norm(X)"),
]


def shortened(source: str) -> str:
    return text(simplify(parse(source, {k: v for k, v in SHAPES.items() if k in source}).outputs[0]))


@pytest.mark.parametrize("source, expected", TABLE)
def test_short_form(source: str, expected: str):
    assert shortened(source) == expected


@pytest.mark.parametrize("source, wrt, expected", GRADIENTS)
def test_gradient_as_a_person_writes_it(source: str, wrt: str, expected: str):
    from chainrule.interpreters.differentiate import gradient

    graph = parse(source, {k: v for k, v in SHAPES.items() if k in source})
    leaf = next(i for i in graph.inputs if i.params["name"] == wrt)
    (found,) = gradient(graph.outputs[0], [leaf])
    assert found is not None
    assert text(simplify(found)) == expected
    assert simplify(simplify(found)) is simplify(found)


# ---- what must not be lost ---------------------------------------------------------------------------------
def test_shape_and_dtype_are_kept():
    v = variable("v", TensorType((2, 3), "float32"))
    for node in (v * 0.0, v - v, v**0.0, v * 1.0 + 0.0, v / v):
        assert simplify(node).type == node.type


def test_names_and_origins_follow():
    graph = parse("f = x*1; g = f + 0; g*g")
    shorter = simplify(graph)
    check(shorter)
    assert shorter.names["f"] is shorter.names["g"] is graph.inputs[0]
    assert shorter.outputs[0] in shorter.origins


def test_even_roots_and_logarithms_keep_their_domain():
    for source in ("sqrt(a^2)", "(a*b)^0.5", "(a^2)^0.5"):
        node = parse(source).outputs[0]
        shorter = simplify(node)
        values = {n: -2.0 for n in Graph((), (node,)).nodes if "name" in n.params}
        from chainrule.interpreters.evaluate import evaluate

        assert np.array_equal(evaluate([node], values)[0], evaluate([shorter], values)[0])


def test_infinities_and_nans_are_left_alone():
    inf, nan = constant(float("inf")), constant(float("nan"))
    x = variable("x")
    for node in (x * inf, x + nan, inf - inf, nan):
        check(Graph((x,), (simplify(node),)))
    assert np.isnan(simplify(inf - inf).number) if simplify(inf - inf).number is not None else True


def test_exact_rewrites_keep_rounding():
    a, b, c = (variable(n) for n in "abc")
    node = (a + b) + c
    assert simplify(node, exact=True) is node
    assert simplify(a * 1.0 + b * 0.0, exact=True) is a + b * 0.0, "0 * inf is nan"
    assert simplify(a + 0.0, exact=True) is a + 0.0, "-0.0 + 0.0 is 0.0"
    assert simplify(a - 0.0, exact=True) is a
    assert simplify(-(-a), exact=True) is a


def test_deep_chains_are_no_limit():
    x = variable("x")
    node = x
    for _ in range(3_000):
        node = apply(OPS["sin"], node * 1.0)
    assert tree_size(simplify(node)) == 3_001


def test_many_at_once_share_their_work():
    a, b = variable("a"), variable("b")
    assert simplify_all([a + a, b * 1.0]) == [simplify(2.0 * a), b]


def test_expand_multiplies_out():
    assert text(expand(parse("(a + b)*(a - b)").outputs[0])) == "a^2 - b^2"


# ---- equality ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "a, b",
    [
        ("(a + b)^2", "a^2 + 2*a*b + b^2"),
        ("x' @ A @ x", "x' @ A' @ x"),
        ("tr(A @ B)", "tr(B @ A)"),
        ("sum((x - y)^2)", "x' @ x - 2*x' @ y + y' @ y"),
        ("(A @ B)'", "B' @ A'"),
        ("a/b - c/b", "(a - c)/b"),
    ],
)
def test_equal_by_algebra(a: str, b: str):
    nodes = [parse(s, {k: v for k, v in SHAPES.items() if k in s}).outputs[0] for s in (a, b)]
    assert equal(*nodes)


@pytest.mark.parametrize("a, b", [("a + b", "a - b"), ("x' @ A @ y", "x' @ A' @ y"), ("x @ y'", "y @ x'"), ("a", "x")])
def test_not_equal(a: str, b: str):
    nodes = [parse(s, {k: v for k, v in SHAPES.items() if k in s}).outputs[0] for s in (a, b)]
    assert not equal(*nodes)


def test_a_deep_nest_is_derived_and_named():
    # Deeper than the algebra walks: the chain rule's factors stay as they are, and nothing recurses over them.
    import chainrule as cr

    depth, value, expected = 250, 0.3, 1.0
    derived = cr.derive("sin(" * depth + "x" + ")" * depth, wrt="x")["x"]
    for _ in range(depth):
        expected, value = expected * np.cos(value), np.sin(value)
    assert np.isclose(derived.evaluate(x=0.3), expected, rtol=1e-12)
