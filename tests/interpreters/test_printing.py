"""Text and LaTeX: brackets by binding strength, names, sizes, numbers."""

from __future__ import annotations

import pytest

from chainrule.frontends.formula import parse
from chainrule.interpreters.latex import latex
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import constant, variable

SHAPES = {"x": "n", "y": "n", "A": "n,n", "B": "n,n", "T": "k,m,n"}

SAME = [  # printed as it was written
    "a + b - c", "a - (b - c)", "a - (b + c)", "a * b / c", "a / (b * c)", "a / b / c", "a * (b / c)", "(a + b) * c",
    "-a", "-(a + b)", "-a * b", "a * (-b)", "a - -b", "2^x1^3", "(2^a)^3", "(-a)^2", "-a^2", "a^-2", "a^-b", "2^-a",
    "a^(b * c)", "a^(b / c)", "a^(-b * c)", "a^(b + 1)", "(a * b)^c", "exp(a)^2", "sqrt(a + b)", "abs(-a)",
    "A @ x", "A' @ x", "(A + B) @ x", "A @ (x + y)", "x' @ y", "x @ y'", "(A @ B)'",
    "tr(A)", "diag(x)", "diag(A)", "sum(x)", "sum(A, 0)", "x * y", "A * B", "a * x", "x / a", "x^2",
    "[x > 0]", "a * [x > y]", "where(a > 0, b, c)", "max(x)", "softmax(x)", "logsumexp(A, 0)", "inv(A)", "solve(A, x)",
    "eye(n)", "ones(n)", "x * ones(m, n)", "T[0:1, :, :]", "x[1:]", "A[:, None]", "concat(x, y, 0)", "log_softmax(x)",
    "1e-05 * a", "0.1 * a", "100000 * a",
]  # fmt: skip


@pytest.mark.parametrize("source", SAME)
def test_text_is_as_written(source: str):
    node = parse(source, SHAPES).outputs[0]
    again = parse(text(node), SHAPES).outputs[0]
    assert simplify(again) is simplify(node)
    if "[0:1" not in source and source not in ("A[:, None]", "2^x1^3"):
        assert text(node) == source


@pytest.mark.parametrize(
    "source", ["A @ B @ x", "2 * A @ x", "x' @ A @ y", "A' @ B @ x", "a * b * x @ y'", "sum(A) * x"]
)
def test_text_of_one_contraction_is_one_product(source: str):
    node = simplify(parse(source, SHAPES).outputs[0])
    assert text(node) == source
    assert simplify(parse(text(node), SHAPES).outputs[0]) is node


@pytest.mark.parametrize(
    "source, expected",
    [
        ("a^2 / b", r"\frac{a^{2}}{b}"),
        ("a * b", "a b"),
        ("a * 2", r"a \cdot 2"),
        ("2 * a", "2 a"),
        ("x * y", r"x \odot y"),
        ("A' @ x", r"A^{\top} x"),
        ("A @ (x + y)", r"A \left(x + y\right)"),
        ("exp(a + b)", r"\exp\left(a + b\right)"),
        ("sqrt(a)", r"\sqrt{a}"),
        ("abs(a)", r"\left|a\right|"),
        ("a^(b + 1)", "a^{b + 1}"),
        ("(a + b)^2", r"\left(a + b\right)^{2}"),
        ("[x > 0]", r"\mathbb{I}\left[x > 0\right]"),
        ("inv(A)", "A^{-1}"),
        ("eye(n)", "I_{n}"),
        ("ones(m, n)", r"\mathbf{1}_{m \times n}"),
        ("sigma_1 * phi", r"\sigma_{1} \phi"),
        ("f3 + Omega", r"f_{3} + \Omega"),
        ("1e-05 * a", r"1 \times 10^{-5} a"),
        ("loss1", r"\mathrm{loss}_{1}"),
        ("erf(a) + softplus(b)", r"\operatorname{erf}\left(a\right) + \operatorname{softplus}\left(b\right)"),
        ("(a / b)^2", r"\left(\frac{a}{b}\right)^{2}"),
    ],
)
def test_latex(source: str, expected: str):
    assert latex(parse(source, SHAPES).outputs[0]) == expected


def test_names_stand_for_nodes():
    f = parse("exp(x1)").outputs[0]
    assert text(f * f + 1.0, {f: "f1"}) == "f1 * f1 + 1"
    assert text(f, {f: "f1"}) == "exp(x1)", "the root is written out"
    assert text(variable("dy/df") * (variable("a") + 1.0)) == "dy/df * (a + 1)"
    assert text(variable("a") / variable("dy/df")) == "a / (dy/df)"
    assert latex(variable("dy/df3")) == r"\frac{\partial y}{\partial f_{3}}"


@pytest.mark.parametrize(
    "value, expected",
    [
        (2.0, "2"),
        (0.5, "0.5"),
        (-1.0, "-1"),
        (1e-5, "1e-05"),
        (1e20, "1e+20"),
        (True, "1"),
        (1 / 3, "0.3333333333333333"),
    ],
)
def test_numbers(value: float, expected: str):
    assert text(constant(value)) == expected


def test_depth_is_no_limit():
    x = variable("x")
    node = x
    for _ in range(5_000):
        node = x + node
    assert text(node).count("x") == 5_001
    assert latex(node).count("x") == 5_001
