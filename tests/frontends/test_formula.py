"""The formula language: what a text means, against NumPy, and what it says when it means nothing."""

from __future__ import annotations

import random
import re
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chainrule.errors import ChainruleError, FormulaError, ShapeError, UnsupportedOpError
from chainrule.frontends.formula import parse, parse_program
from chainrule.interpreters.differentiate import vjp
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.latex import latex
from chainrule.interpreters.text import text as printed
from chainrule.ir import SPELLINGS, Dim, check, constant, toposort, variable
from chainrule.ir.types import TensorType

RNG = np.random.default_rng(7)
VALUES = {
    "x": RNG.normal(size=3),
    "y": RNG.normal(size=3),
    "w": RNG.normal(size=2),
    "A": RNG.normal(size=(3, 3)) + 3 * np.eye(3),
    "B": RNG.normal(size=(2, 3)),
    "T": RNG.normal(size=(4, 2, 3)),
    "a": np.array(1.7),
    "b": np.array(0.6),
    "Ω": np.array(-0.8),
}
SHAPES = {"x": "n", "y": "n", "w": "m", "A": "n,n", "B": "m,n", "T": "k,m,n"}


def value_of(text: str, shapes: dict | None = SHAPES, given: dict | None = None):
    graph = parse(text, shapes, given=given)
    check(graph)
    assert all(node in graph.origins for node in graph.nodes)
    leaves = {node: VALUES[node.params["name"]] for node in graph.inputs}
    return evaluate(graph.outputs, leaves, {"n": 3, "m": 2, "k": 4})[0]


V = VALUES
x, y, w, A, B, T, a, b = (V[k] for k in ("x", "y", "w", "A", "B", "T", "a", "b"))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


MEANINGS = [
    # numbers and arithmetic
    ("1e-5 + .5 + 2. + 1.5E+2", 152.50001),
    ("a + b * a - b / a", a + b * a - b / a),
    ("a - b - a - b", a - b - a - b),
    ("a / b / a", a / b / a),
    ("a ⊙ b * a", a * b * a),
    ("a − b", a - b),
    ("Ω * a", V["Ω"] * a),
    ("a ^ b ^ 2", a ** (b**2)),
    ("a ** b ** 2", a ** (b**2)),
    ("-a ^ 2", -(a**2)),
    ("2 ^ -a", 2 ** (-a)),
    ("2 ^ -a * b", 2 ** (-a) * b),
    ("2 ^ -a ^ b", 2 ** (-(a**b))),
    ("-a * b + b", -(a * b) + b),
    ("a * -b * a + b", a * -b * a + b),
    ("a - -b", a + b),
    ("--a", a),
    ("(a + b) * (a - b)", (a + b) * (a - b)),
    ("a / (b / a)", a / (b / a)),
    ("x * A + 1", x * A + 1),
    # statements and comments
    ("f = a^2; g = f + 1\nh = f * g  # the product\n", a**2 * (a**2 + 1)),
    ("f = exp(a)\n\nf^2", np.exp(a) ** 2),
    ("f = (a +\n  b)", a + b),
    ("f = a; g = f; g + f", 2 * a),
    # functions, in both kinds of brackets
    ("exp[a] + exp(a)", 2 * np.exp(a)),
    ("sig[x] * ReLU[x] - Heaviside[x]", sigmoid(x) * np.maximum(x, 0) - (x >= 0)),
    ("sin[cos[tanh(a)]]", np.sin(np.cos(np.tanh(a)))),
    ("ln(a) - log(a)", 0.0),
    ("leaky_relu(x, 0.1) + leaky_relu(x, b)", np.where(x > 0, x, 0.1 * x) + np.where(x > 0, x, b * x)),
    ("leaky_relu(x)", np.where(x > 0, x, 0.01 * x)),
    ("maximum(x, y) + minimum(x, 0)", np.maximum(x, y) + np.minimum(x, 0)),
    ("norm(x) + norm1(x) + dot(x, y)", np.linalg.norm(x) + np.abs(x).sum() + x @ y),
    ("layer_norm(x, 1e-5)", (x - x.mean()) / np.sqrt(x.var() + 1e-5)),
    ("layer_norm(x, eps=0.1)", (x - x.mean()) / np.sqrt(x.var() + 0.1)),
    ("inv(A) @ x - solve(A, x)", np.zeros(3)),
    ("det(A) + logdet(A) + tr(A)", np.linalg.det(A) + np.linalg.slogdet(A)[1] + np.trace(A)),
    ("diag(x) @ y + diag(A)", x * y + np.diag(A)),
    ("outer(x, w)", np.outer(x, w)),
    ("kron(A, B)", np.kron(A, B)),
    ("transpose(B)", B.T),
    # axes
    ("sum(B)", B.sum()),
    ("sum(B, 0) + mean(B, axis=0)", B.sum(0) + B.mean(0)),
    ("sum(B, -1)", B.sum(-1)),
    ("mean(T, 0, 2)", T.mean((0, 2))),
    ("max(T, axis=(0, 2)) + min(T, 1)[0, :m]", T.max((0, 2)) + T.min(1)[0, :2]),
    ("softmax(B, 0) + softmax(B)", softmax(B, 0) + softmax(B)),
    ("logsumexp(x)", np.log(np.exp(x).sum())),
    # conditions
    ("[x > 0]", (x > 0).astype(float)),
    ("I[x > 0] + I(x <= 0)", np.ones(3)),
    ("x * [x >= 0] - [x == y] + [x != y]", x * (x >= 0) + 1),
    ("where(x > 0, x, 0.1 * x)", np.where(x > 0, x, 0.1 * x)),
    ("where(x < 0, 1, 0)", (x < 0).astype(float)),
    ("c = x > y; where(c, x, y) + [c]", np.maximum(x, y) + (x > y)),
    ("[a > 0 + 1]", 1.0),
    # vectors that stand
    ("x' @ y", x @ y),
    ("x @ y", x @ y),
    ("x @ w'", np.outer(x, w)),
    ("x' @ A", x @ A),
    ("x' @ A @ y", x @ A @ y),
    ("A @ x", A @ x),
    ("A' @ x", A.T @ x),
    ("A.T @ x - (x' @ A)'", np.zeros(3)),
    ("x''", x),
    ("r = x'; r @ y", x @ y),
    ("exp(x') @ y", np.exp(x) @ y),
    ("softmax(x') @ y", softmax(x) @ y),
    ("(x' + y') @ A", (x + y) @ A),
    ("(2 * x' - 1) @ y", (2 * x - 1) @ y),
    ("where(x' > 0, x', 0) @ y", np.where(x > 0, x, 0) @ y),
    ("x' * A", x * A),
    ("-x' @ y", -(x @ y)),
    ("a'", a),
    ("B' @ w @ y'", np.outer(B.T @ w, y)),
    ("x'[1:] @ y[1:]", x[1:] @ y[1:]),
    ("sum(x') + norm(x')", x.sum() + np.linalg.norm(x)),
    ("T @ x", T @ x),
    ("T'", np.swapaxes(T, -1, -2)),
    ("T @ A", T @ A),
    ("A' @ T'", A.T @ np.swapaxes(T, -1, -2)),
    ("w' @ T", w @ T),
    ("B @ A * 2 @ x", (B @ A * 2) @ x),
    # indices
    ("x[0] + x[-1]", x[0] + x[-1]),
    ("x[:, None] - x[None, :]", x[:, None] - x[None, :]),
    ("T[0]", T[0]),
    ("T[..., 1]", T[..., 1]),
    ("T[1, :, ::1]", T[1]),
    ("T[1, ..., None]", T[1][..., None]),
    ("(A @ x)[1:][0]", (A @ x)[1]),
    ("A'[0]", A.T[0]),
    ("exp(x)[0]", np.exp(x)[0]),
    ("x[:n - 1] + x[1:n]", x[:-1] + x[1:]),
    ("x[-2:]", x[-2:]),
    ("A[0][1]", A[0][1]),
    # sizes
    ("sum(x) / n", x.mean()),
    ("eye(n) @ x + ones(n)", x + 1),
    ("ones(m, n) * B", B),
    ("ones(2, 3) + eye(3)[:2]", np.ones((2, 3)) + np.eye(3)[:2]),
    ("reshape(B, m * n)", B.reshape(6)),
    ("reshape(B, n, m)", B.reshape(3, 2)),
    ("concat(x, y, 0)", np.concatenate([x, y])),
    ("pad(w, 1, 2)", np.pad(w, (1, 2))),
    # einsum
    ('einsum("ij,jk->ik", B, A)', B @ A),
    ("einsum('i,i->', x, y)", x @ y),
    ('einsum("i -> i", x)', x),
    ('einsum("kmn,n->km", T, x)', T @ x),
    ('einsum("ii->i", A)', np.diag(A)),
]


@pytest.mark.parametrize(("text", "expected"), MEANINGS, ids=[t for t, _ in MEANINGS])
def test_meaning(text, expected):
    np.testing.assert_allclose(value_of(text), expected, rtol=1e-13, atol=1e-13)


def test_slices_of_numbers_follow_numpy():
    shapes = {"z": "7,4"}
    z = RNG.normal(size=(7, 4))
    indices = "1:6:2 ::3 :-2 -3: 5:2 3 -1 :,1:3 2,None,::2 ...,0 None,...,None".split()
    for index in indices:
        graph = parse(f"z[{index}]", shapes)
        expected = eval(f"z[{index}]", {"z": z})
        np.testing.assert_array_equal(evaluate(graph.outputs, {graph.inputs[0]: z})[0], expected, index)
        assert graph.outputs[0].shape == expected.shape


# ---- the graph ---------------------------------------------------------------------------------------------
def test_inputs_outputs_names_origins():
    text = "f1 = exp(b * a)\nf2 = f1^2; f1 + f2 * c"
    graph = parse(text, {})
    assert [i.params["name"] for i in graph.inputs] == ["b", "a", "c"]
    assert graph.output_names == ("",)
    assert list(graph.names) == ["f1", "f2"]
    assert graph.names["f2"].inputs[0] is graph.names["f1"]
    assert graph.origins[graph.names["f1"]].position == text.index("exp")
    assert graph.origins[graph.names["f2"]].position == text.index("^")
    assert graph.origins[graph.inputs[1]].position == text.index("a)")
    named = parse("y = x")
    assert named.outputs == named.inputs and named.output_names == ("y",) and named.names == {"y": named.inputs[0]}


def test_statements():
    program = parse_program("f = x'; g = f @ x\ng^2", {"x": "n"})
    assert [(s.name, s.row, program.source[s.start : s.end]) for s in program.statements] == [
        ("f", True, "f = x'"),
        ("g", False, "g = f @ x"),
        ("", False, "g^2"),
    ]
    assert program.statements[1].node is program.graph.names["g"]


def test_first_origin_wins():
    graph = parse("exp(x) + exp(x)")
    assert graph.origins[graph.outputs[0].inputs[0]].position == 0


def test_equal_texts_are_equal_graphs():
    assert parse("y = exp[x]^2").outputs == parse("z = (exp(x))**2.0").outputs
    assert parse("-1 * x").outputs != parse("1 * x").outputs
    assert parse("-3").outputs[0].number == -3.0


def test_shapes_are_read():
    shapes = {"u": "", "v": 3, "w": (3,), "M": "D_1,D_2", "N": "D_1 D_2", "p": "2*n+1"}
    shapes |= {"q": ("n", 4, Dim("k")), "r": []}
    for name, shape in {
        "u": (),
        "v": (3,),
        "w": (3,),
        "M": (Dim("D_1"), Dim("D_2")),
        "N": (Dim("D_1"), Dim("D_2")),
        "p": (Dim("n") * 2 + 1,),
        "q": (Dim("n"), 4, Dim("k")),
        "r": (),
    }.items():
        assert parse(name, shapes).outputs[0].shape == shape


def test_dimensions_are_a_namespace_of_their_own():
    graph = parse("n * sum(x)", {"x": "n", "n": ""})
    assert [i.params["name"] for i in graph.inputs] == ["n", "x"]
    assert parse("n * sum(x)", {"x": "n"}).inputs == (variable("x", TensorType((Dim("n"),))),)
    assert parse("n = sum(x); n + 1", {"x": "n"}).outputs[0].inputs[0].op.name == "einsum"


def test_activations_stand_for_functions():
    shapes = {"a": "relu", "z": "n"}
    assert parse("a[z]", shapes).outputs == parse("relu(z)", shapes).outputs == parse("a(z)", shapes).outputs
    assert parse("a[z]", {"a": "leaky_relu", "z": "n"}).outputs == parse("leaky_relu(z)", shapes).outputs


def test_given_nodes():
    first = parse("f3 = exp(x); l(f3)")
    second = parse("2*f3 + dl/df3", given={**first.names, "loss": first.outputs[0]})
    assert second.inputs == first.inputs
    assert first.names["f3"] in toposort(second.outputs)
    assert second.outputs[0].inputs[1].op.name == "function"
    with pytest.raises(FormulaError, match="already defined"):
        parse("f3 = 2; f3 + 1", given=first.names)


def test_every_function_of_the_language_can_be_called():
    for name in SPELLINGS:
        with pytest.raises(FormulaError, match="argument"):
            parse(f"{name}()")


# ---- unknown functions -------------------------------------------------------------------------------------
N = variable("f", TensorType((Dim("n"),)))


def test_unknown_functions_and_their_derivatives():
    shapes = {"f": "n"}
    for text in ("l(f)", "l[f]"):
        graph = parse(text, shapes)
        (node,) = graph.outputs
        assert node.shape == () and node.inputs == (N,)
        (derivative,) = vjp([node], [constant(1.0)], [N])
        written = parse("g = l(f); 1 * dl/df", shapes).outputs[0]
        assert derivative is not None and derivative.shape == (Dim("n"),)
        assert derivative.inputs[-1] is written.inputs[-1]
        with pytest.raises(UnsupportedOpError, match="unknown"):
            evaluate([node], {N: np.ones(3)})


def test_written_derivatives():
    shapes = {"f": "n", "g": "m", "f2": ""}

    def part(text):
        return parse(f"z = l(f, g, f2); {text}", shapes).outputs[0]

    assert part("dl/df").params["wrt"] == (0,)
    assert part("dl/df2").params["wrt"] == (2,)
    assert part("d2l/df2").params["wrt"] == (0, 0)
    assert part("d2l/df22").params["wrt"] == (2, 2)
    assert part("d2l/dfdg").params["wrt"] == (0, 1)
    assert part("d2l/dgdf").shape == (Dim("m"), Dim("n"))
    assert part("d3l/dfdg2").params["wrt"] == (0, 1, 1)
    assert part("3 * dl/df").inputs[1].op.name == "function"
    assert parse("dl/d(f + 1) * l(f + 1)", shapes).outputs[0].inputs[0].params["wrt"] == (0,)


def test_derivatives_as_printed():
    graph = parse("f = A @ x; l(f)", {"A": "m,n", "x": "n"})
    f = graph.names["f"]
    (derivative,) = vjp(graph.outputs, [constant(1.0)], [f])
    assert derivative is not None
    partial = derivative.inputs[-1]
    assert printed(partial, {f: "f"}) == "dl/df" and printed(partial) == "dl/d(A @ x)"
    assert latex(partial, {f: "f"}) == r"\frac{\partial l}{\partial f}"
    assert parse("dl/df", given={"f": f, "y": graph.outputs[0]}).outputs == (partial,)
    assert parse("dl/d(A @ x)", {"A": "m,n", "x": "n"}, given={"y": graph.outputs[0]}).outputs == (partial,)
    second = parse("0 * l(f) + d2l/df2", {"f": 2}).outputs[0].inputs[1]
    assert printed(second) == "d2l/df2"
    assert latex(second) == r"\frac{\partial^{2} l}{\partial f^{2}}"


def test_without_a_call_it_is_a_division():
    assert parse("dl/df").outputs[0].op.name == "div"
    assert parse("dl = 2; dl/df * l(f)").outputs[0].inputs[0].op.name == "div"
    assert parse("dl/df * l(f)", {"df": ""}).outputs[0].inputs[0].op.name == "div"


def test_higher_derivatives_of_unknown_functions_commute():
    f, g = variable("f", TensorType((2,))), variable("g", TensorType((3,)))
    (node,) = parse("l(f, g)", {"f": 2, "g": 3}).outputs
    seed_f, seed_g = variable("u", TensorType((2,))), variable("v", TensorType((3,)))
    (wrt_f,) = vjp([node], [constant(1.0)], [f])
    (wrt_g,) = vjp([node], [constant(1.0)], [g])
    assert wrt_f is not None and wrt_g is not None
    (fg,) = vjp([wrt_f], [seed_f], [g])
    (gf,) = vjp([wrt_g], [seed_g], [f])
    assert fg is not None and gf is not None and fg.shape == (3,) and gf.shape == (2,)
    mixed = [n for n in toposort([fg, gf]) if n.op.name == "function" and n.params["wrt"] == (0, 1)]
    assert len(mixed) == 1 and mixed[0].shape == (2, 3)
    table = {mixed[0]: RNG.normal(size=(2, 3)), seed_f: RNG.normal(size=2), seed_g: RNG.normal(size=3)}
    values = evaluate([fg, gf], {**table, f: np.zeros(2), g: np.zeros(3)})
    np.testing.assert_allclose(values[0], table[seed_f] @ table[mixed[0]])
    np.testing.assert_allclose(values[1], table[mixed[0]] @ table[seed_g])


# ---- errors ------------------------------------------------------------------------------------------------
SYNTAX = [  # text, what the message says, column
    ("", "empty formula", 1),
    (" \n # nothing\n ; ", "empty formula", None),
    ("(a + b", "unbalanced '('", 1),
    ("exp(a + (b)", "unbalanced '('", 4),
    ("a + b)", "unbalanced ')'", 6),
    ("(a]", "closed by ']'", 1),
    ("(a; b)", "';' inside brackets", 1),
    ("a +", "nothing after the operator", 3),
    ("a + ; b", "nothing after the operator", 3),
    ("a * / b", "where a value is expected", 5),
    ("()", "empty brackets", 1),
    ("+a", "in front of a value", 1),
    ("a b", "next to each other", 3),
    ("2x", "followed by a name", 1),
    ("2(x)", "called as a function", 2),
    ("(a)(b)", "called as a function", 4),
    ("a = b = c", "a second time", 7),
    ("f(x) = 3", "not a name", 6),
    ("= 3", "'=' where a value is expected", 1),
    ("exp(a) = ", "not a name", 8),
    ("y = ", "where a value is expected", 5),
    ("a, b", "outside brackets", 2),
    ("a : b", "outside brackets", 3),
    ("a; b", "without a name", 1),
    ("1j", "complex", 1),
    ("2.5J * x", "complex", 1),
    ("0x1F", "decimal", 1),
    ("1.2.3", "malformed", 1),
    ("1e999", "too large", 1),
    ("x²", "'²'", 2),
    ("x₁", "'₁'", 2),
    ("a × b", "'×'", 3),
    ("a · b", "'·'", 3),
    ("a $ b", "'$'", 3),
    ("\\Omega", "not in the formula language", 1),
    ("x.shape", "'.'", 2),
    ("{a}", "'{'", 1),
    ("a\x00b", "not in the formula language", 2),
    ("a < b < c", "chained", 7),
    ("a > b", "comparison used as a number", 3),
    ("(a > b) * 2", "comparison used as a number", 4),
    ("c = a > b; c * 2", "comparison used as a number", 12),
    ("[a]", "number used as a condition", 2),
    ("where(a, b, 1)", "number used as a condition", 7),
    ("[1, 2]", "',' where ']' is expected", 3),
    ("exp", "is a function", 1),
    ("a + sum * 2", "is a function", 5),
    ("exp(a, b)", "takes 1 argument, not 2", 8),
    ("maximum(a)", "takes 2 arguments, not 1", 1),
    ("leaky_relu(a, b, b)", "takes 1 to 2 arguments, not 3", 18),
    ("sum(a, axes=0)", "no argument 'axes'", 8),
    ("sum(a, axis=0, axis=1)", "given twice", 16),
    ("sum(a, axis=b)", "whole number", 13),
    ("sum(axis=0, a)", "by position", 13),
    ("softmax(a, 0, 1)", "takes 1 to 2 arguments", 15),
    ("einsum(a, b)", "not in quotes", 8),
    ('exp("a")', "a string where", 5),
    ('"a', "not closed", 1),
    ("(a, b)", "several values in brackets", 1),
    ("None", "outside an index", 1),
    ("x[]", "an empty index", 3),
    ("f[a, :]", "a slice where", 6),
    ("sigmod(x)", "did you mean 'sigmoid'", 1),
    ("LayerNorm(x)", "did you mean 'layer_norm'", 1),
    ("a(3) + a", "called as a function elsewhere", 8),
    ("x = 1; x(3)", "is a variable", 8),
    ("x = 1; x = 2", "a second time", 8),
    ("y = x + 1; x = 2", "before it is assigned", 5),
    ("x = x + 1", "before it is assigned", 5),
    ("exp = 3", "is a function", 1),
    ("eye(a * 1.5)", "not a size", 9),
    ("eye(-3)", "negative size", 5),
    ("l(f) + dl/dg", "differentiated by", 8),
    ("l(f, f)", "one value twice", 1),
    ("l(f) + l(f, g)", "2 arguments here and 1 elsewhere", 8),
    ("l(dl/d(f + 1))", "differentiated by", 3),
    ("l(x=3)", "unknown function", 1),
]


@pytest.mark.parametrize(("text", "message", "column"), SYNTAX, ids=[repr(t) for t, _, _ in SYNTAX])
def test_malformed_formulas_point_at_their_place(text, message, column):
    with pytest.raises(FormulaError) as caught:
        parse(text)
    shown = str(caught.value)
    assert message in shown
    assert caught.value.column is not None and "^" in shown
    if column is not None:
        assert caught.value.column == column, shown
        line = shown.split("\n")
        assert line[2].index("^") == 4 + column - 1


SHAPE = [
    ("B @ w", "B (m x n) and w (m)", 3),
    ("x + w", "x (n) and w (m)", 3),
    ("x' + y", "x' (a row of n) and y (n)", 4),
    ("x' @ y'", "x @ y'", 4),
    ("x @ A", "x' @ A", 3),
    ("A @ x'", "without '", 3),
    ("a @ x", "* for a product", 3),
    ("x[3, 4]", "2 indices", 2),
    ("v[5]", "outside dimension 0 of size 3", 2),
    ("solve(A, x')", "row", 1),
    ("sum(x, 4)", "axis", 1),
    ("dot(x, w)", "x (n) and w (m)", 1),
    ('einsum("ij,jk->ik", A)', "einsum", 1),
    ('einsum("ij->ij", x)', "einsum", 1),
    ("tr(x)", "matrix", 1),
    ("w = x", "declared with another shape", 1),
    ("v[::0]", "step below 1", 2),
    ("softmax(a)", "softmax", 1),
    ("concat(x, y, z)", "concat", 1),
]


@pytest.mark.parametrize(("text", "message", "column"), SHAPE, ids=[t for t, _, _ in SHAPE])
def test_shape_errors_name_operands_and_place(text, message, column):
    with pytest.raises(ShapeError) as caught:
        parse(text, SHAPES | {"v": 3})
    shown = str(caught.value)
    assert message in shown and f"column {column}" in shown and "^" in shown


def test_near_names_are_suggested():
    with pytest.raises(FormulaError, match="did you mean 'Omega'"):
        parse("Omgea @ h", {"Omega": "m,n", "h": "n"})
    with pytest.raises(FormulaError, match="did you mean 'hidden'"):
        parse("hidden = exp(x); hiden + 1", {"x": "n"})
    with pytest.raises(FormulaError, match="did you mean 'batch'"):
        parse("eye(bacth)", {"x": "batch"})
    for deliberate in ("omega", "Omega2", "Omega_1", "dOmega", "W_k", "s"):
        parse(f"{deliberate} * sum(Omega) * sum(W_q)", {"Omega": "m,n", "W_q": "m,n"})
    parse("Omgea + Omega")  # nothing is declared: both are scalars


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": "n,,m"}, "not a shape"),
        ({"x": "n +"}, "nothing after"),
        ({"x": "exp(n)"}, "not a size"),
        ({"x": "1.5"}, "not a size"),
        ({"x": -1}, "not a shape"),
        ({"x": True}, "not a shape"),
        ({"x": None}, "not a shape"),
        ({"x": "n = 3"}, "not a shape"),
        ({"x": ("a,b",)}, "not a shape"),
        ({"exp": "n"}, "is a function"),
        ({"2x": "n"}, "not a name"),
        ({3: "n"}, "not a name"),
        ("x=n", "not a mapping"),
    ],
)
def test_malformed_shapes(shapes, message):
    with pytest.raises(FormulaError, match=re.escape(message)):
        parse("x + 1", shapes)


def test_other_refusals():
    for text in (None, b"x", 3):
        with pytest.raises(FormulaError, match="a formula is text"):
            parse(text)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FormulaError, match="is a power"):
        parse("A^T @ A", {"A": "n,n"})
    with pytest.raises(FormulaError, match="not clear"):
        parse("dl/df + l(f, g) + l(f, h)")


def test_division_by_zero_parses():
    assert parse("1 / 0").outputs[0].op.name == "div"


# ---- limits ------------------------------------------------------------------------------------------------
DEEP = 10_000


@pytest.mark.parametrize(
    "text",
    [
        "(" * DEEP + "x" + ")" * DEEP,
        "exp(" * DEEP + "x" + ")" * DEEP,
        "exp[" * DEEP + "x" + "]" * DEEP,
        "l(" * DEEP + "x" + ")" * DEEP,
        "-" * DEEP + "x",
        "x^" * DEEP + "x",
        "x" + "'" * DEEP,
        "[" * DEEP + "x > 0" + "] > 0" * (DEEP - 1) + "]",
        "eye(" + "-" * DEEP + "n)",
        "x+" * 100_000 + "x",
        "+".join(f"a{i % 50}*exp(b{i}^2)" for i in range(12_000)),
    ],
    ids=lambda text: f"{text[:8]}... of {len(text)}",
)
def test_depth_and_length_are_no_limit(text):
    begin = time.perf_counter()
    graph = parse(text)
    assert graph.outputs
    assert time.perf_counter() - begin < 30  # a few seconds; the margin is for a loaded machine


@pytest.mark.parametrize("text", ["(" * 10_000, "exp(" * 10_000 + "x", "[" * 9_999 + "]" * 10_000])
def test_deep_mistakes(text):
    with pytest.raises(FormulaError, match="unbalanced"):
        parse(text)


TOKENS = [
    *"x y A B T l f n a".split(),
    *"1 0 2.5 .5 1e-5 -1 1j 3".split(),
    *"+ - * / @ ^ ** ⊙ ' .T ( ) [ ] ( ) [ ] , ; : = == > <= != ... \n \" # −".split(" "),
    *'exp exp[ sum( sum(x, 0) softmax where where(x>0,x,0) I[ einsum einsum("ij,j->i",'.split(" "),
    *"None dl dl/df d2l/df2 eye( ones( axis= l( l[ d( reshape( concat( pad( inv solve(".split(),
    *"diag tr outer( kron layer_norm mean max norm".split(),
    *"× ² ₁ é 𝛀 \x00 \u2028 ½ ’ { $ \\ ? % & | ~ ! `".split(" "),
]


def soup(chooser: random.Random) -> str:
    return chooser.choice(["", " "]).join(chooser.choice(TOKENS) for _ in range(chooser.randint(1, 14)))


def outcome(text: str) -> bool:
    """Whether a text is a formula; anything but a ChainruleError is a failure of the test."""
    try:
        check(parse(text, SHAPES))
    except ChainruleError as error:
        assert str(error)
        if isinstance(error, FormulaError):
            assert error.column is not None
        return False
    return True


def test_token_soup():
    chooser = random.Random(5)
    accepted = sum(outcome(soup(chooser)) for _ in range(3000))
    assert accepted > 50  # some of it must be formulas, or the test tests nothing


@given(st.lists(st.sampled_from([*TOKENS, *SPELLINGS]), max_size=12).map(" ".join) | st.text(max_size=30))
@settings(max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
@example("x'\"")
@example("d99999999999999999999l/df*l(f)")
def test_nothing_but_our_errors_escapes(text):
    outcome(text)


# ---- random expressions against Python's own reading -------------------------------------------------------
NAMES = st.sampled_from(["a", "b", "1.5", "2"])


def expressions(inner):
    binary = st.tuples(inner, st.sampled_from([" + ", " - ", "*", "/", " ** "]), inner).map("".join)
    return binary | inner.map("({})".format) | inner.map("-{}".format) | inner.map("tanh({})".format)


@given(st.recursive(NAMES, expressions, max_leaves=12))
@settings(max_examples=300)
@example("2 ** -a ** b*b")
@example("-a ** 2 + --b")
def test_precedence_is_pythons(text):
    # Unary minus binds between + and * here and above * in Python, which is the same number.
    with np.errstate(all="ignore"):
        expected = eval(text, {"a": np.float64(a), "b": np.float64(b), "tanh": np.tanh})
        found = value_of(re.sub(r"(?<![\w.])(\d+)(?![\w.])", r"\1.0", text), {})
    if np.isrealobj(expected):
        np.testing.assert_allclose(found, expected, rtol=1e-9, equal_nan=True)
