"""LaTeX as we print it and as textbooks write it, read in the names of a formula."""

from __future__ import annotations

import pytest

import chainrule as cr
from benchmarks.derive import derive
from chainrule.errors import ChainruleError, FormulaError
from chainrule.frontends.latex import is_latex, parse_latex
from chainrule.interpreters.simplify import equal
from chainrule.verbs.agreement import agreement
from chainrule.verbs.expression import Expression
from tests.problems import PROBLEMS, Problem

LINEAR = {"x": "n", "A": "m,n", "b": "m"}
SQUARES = "sum((A @ x - b)^2)"
TOY = "f0 = β0 + ω0*x; h1 = sin(f0); l = (h1 - y)^2"
VECTOR = {"x": "n"}
LAYER = {"beta": "m", "Omega": "m,n", "h": "n"}
RESIDUAL = {"g": "n", "x": "n", "W1": "m,n", "W2": "n,m"}

RIGHT = [
    (SQUARES, "x", r"\frac{\partial l}{\partial x} = 2 \mathbf{A}^T(\mathbf{A}\mathbf{x}-\mathbf{b})", LINEAR),
    (SQUARES, "x", r"2A^\top\left(Ax-b\right)", LINEAR),
    (
        SQUARES,
        "x",
        r"$\begin{aligned} \ell' &= 2A^{T}\left[Ax - b\right] \\ &= 2A^{\top}Ax - 2 A^\top b.\end{aligned}$",
        LINEAR,
    ),
    (SQUARES, "x", r"2\sum_i A_{ij}(\sum_{k=1}^{n} A_{ik}x_k - b_i)", LINEAR),
    ("y = sigmoid(x)", "x", r"\text{sig}[x](1-\text{sig}[x])", {}),
    ("y = sigmoid(x)", "x", r"\frac{\exp[-x]}{(1+\exp[-x])^2}", {}),
    ("y = sigmoid(x)", "x", r"\frac{e^{-x}}{\left(1+e^{-x}\right)^{2}}", {}),
    ("y = relu(z)", "z", r"\mathbb{I}[z > 0]", {}),
    ("f = beta + Omega @ h", "h", r"\boldsymbol{\Omega}^T", LAYER),
    ("f = beta + Omega @ h; L = l[f]", "Omega", r"\frac{\partial l}{\partial \mathbf{f}} \mathbf{h}^T", LAYER),
    (TOY, "ω0", r"2(h_1-y)\cos[f_0]x", {}),
    (TOY, "ω0", r"2 x \cos[\beta_{0}+\omega_{0}\cdot x]\left(\sin f_0 - y\right)", {}),
    ("logdet(X)", "X", r"\mathbf{X}^{-T}", {"X": "n,n"}),
    ("logdet(X)", "X", r"\left(X^{-1}\right)^{\top}", {"X": "n,n"}),
    ("tr(X @ X @ X)", "X", r"3 \left(X^{2}\right)^T", {"X": "n,n"}),
    ("det(X)", "X", r"\det(\mathbf{X})\mathbf{X}^{-T}", {"X": "n,n"}),
    ("norm(x)", "x", r"\frac{\mathbf{x}}{\lVert \mathbf{x} \rVert_2}", VECTOR),
    ("norm(x)", "x", r"\frac{x}{\sqrt{x^Tx}}", VECTOR),
    ("norm1(x)", "x", r"\frac{x_i}{|x_i|}", VECTOR),
    ("softmax(x)", "x", r"p = \frac{\exp(x)}{\sum_i \exp(x_i)} \\ \mathrm{diag}(p) - p p^\top", VECTOR),
    ("norm(x)^2", "x", r"\mathbf{I} x + \mathbf{x}", VECTOR),
    ("y = sin(x)^2", "x", r"2\sin x\cos x", {}),
    ("y = sin(x)^2", "x", r"\sin 2x", {}),
    ("y = tanh(x)", "x", r"1-\tanh^2(x)", {}),
    ("y = log(x)", "x", r"\frac{\mathrm{d}y}{\mathrm{d}x} = x^{-1}", {}),
    ("y = 1e-3*x", "x", r"1.0 \times 10^{-3}", {}),
    (
        "g' @ (x + W2 @ relu(W1 @ x))",
        "x",
        r"\mathbf{g} + \mathbf{W}_1^T\left(\mathbb{I}[\mathbf{W}_1\mathbf{x} > 0] \odot (\mathbf{W}_2^T\mathbf{g})\right)",
        RESIDUAL,
    ),
    (
        "h1 = tanh(W @ x); l = c' @ h1",
        "W",
        r"\delta = c \odot (1 - h_1 \odot h_1) \\ \frac{\partial l}{\partial W} = \delta x^T",
        {"W": "m,n", "x": "n", "c": "m"},
    ),
    # Problem 7.1: a[...] was declared as an activation.
    ("y = k*a[w*x + u*a[v*x]]", "k", r"a[w \cdot x + u a[v \cdot x]]", {"a": "relu"}),
    ("y = k*a[w*a[v*x]]", "v", r"k w \mathbb{I}[w a[vx] > 0] \mathbb{I}[vx > 0] x", {"a": "relu"}),
    # A line that begins with a sign goes on with the sum of the line before.
    ("y = sin(x) + exp(x)", "x", r"\cos x \\ \quad + \exp[x]", {}),
]


@pytest.mark.parametrize("formula, wrt, claim, shapes", RIGHT)
def test_right_answers_as_textbooks_write_them(formula: str, wrt: str, claim: str, shapes: dict):
    c = cr.check(formula, wrt=wrt, claim=claim, shapes=shapes)
    assert c.holds, str(c)


@pytest.mark.parametrize("problem", [pytest.param(p, id=p.id) for p in PROBLEMS if not p.missing])
def test_what_we_print_reads_back(problem: Problem):
    derived = derive(problem, "direct")
    printed = derived[problem.wrt]
    node = cr.formula(
        printed.latex, where=derived
    ).node  # the program's names, and those that the answer is written with
    assert node.shape == printed.shape
    back = Expression(node, printed.definitions)
    assert equal(node, printed.node) or agreement(back.full, printed.full).same


@pytest.mark.parametrize(
    "claim, kind",
    [
        (r"A^\top(Ax - b)", "missing factor"),
        (r"-2A^\top(Ax - b)", "sign"),
        (r"$2A(Ax - b)$", "missing transpose"),
        (r"2(Ax-b)A^\top", "wrong order"),
        (r"2A^{\top}Ax", "forgotten path"),
        (r"2\left(Ax-b\right)", "missing inner derivative"),
    ],
)
def test_slips_in_latex(claim: str, kind: str):
    c = cr.check(SQUARES, wrt="x", claim=claim, shapes=LINEAR)
    assert not c.holds and c.slip_kind == kind, str(c)


@pytest.mark.parametrize(
    "claim, message, column",
    [
        (r"2 \mathbf{A", "'}' is expected", 12),
        (r"\frac{x}", "a value is missing", 8),
        (r"\sum_{j\neq i} x_j", "a condition under a sum", 8),
        (r"\prod x", "not read", 1),
        (r"\begin{pmatrix}1\end{pmatrix}", "not read", 7),
        (r"\mathbf{q}", "'q'", 9),
        (r"\left(x", "unbalanced", 6),
        (r"x_{ij}", "2 indices", 2),
        (r"1 + \foo x", "not read", 5),
        (r"\frac{\partial y}{\partial x}", "unknown functions only", 1),
        (r"\mathbf{I}", "which size", 1),
        (r"\sum_i x_j", "a sum over 'i'", 1),
        (r"\sin", "without an argument", 1),
        (r"\lVert x", "not closed", 1),
    ],
)
def test_errors_show_the_place(claim: str, message: str, column: int):
    with pytest.raises(FormulaError) as caught:
        cr.check("norm(x)", wrt="x", claim=claim, shapes=VECTOR)
    assert message in str(caught.value) and caught.value.column == column
    assert "^" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["\\" * 50, r"\left" * 40, "{" * 3000 + r"\alpha", r"\frac" * 20, "_{^{_{", r"x^\top" + "'" * 99]
)
def test_whatever_the_text_the_error_is_ours(text: str):
    try:
        parse_latex(text, VECTOR).program()
    except ChainruleError:
        return


def test_formulas_may_be_latex_too():
    e = cr.formula(r"\mathbf{A}^\top \mathbf{x}", shapes={"A": "m,n", "x": "m"})
    assert e.text == "A' @ x" and e.shape == cr.formula("A' @ x", shapes={"A": "m,n", "x": "m"}).shape
    assert is_latex(r"\exp(x)") and not is_latex("x_1^2 * A'")
