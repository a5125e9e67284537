"""Derivations in index notation, in LaTeX that compiles, and in notebooks."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import chainrule as cr
from benchmarks.derive import derive, points
from chainrule.errors import ChainruleError
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.index_languages import index_text
from chainrule.interpreters.index_notation import index_letters
from chainrule.interpreters.mathml import mathml
from chainrule.ir import Node
from tests.index_lines import Line, free_letters
from tests.problems import PROBLEMS, Problem

SHAPES = {"beta": "m", "Omega": "m,n", "h": "n"}


def lines(*args, **options) -> list[str]:
    return cr.derive(*args, **options).text(notation="index").splitlines()


# ---- the book's lines --------------------------------------------------------------------------------------
def test_problem_7_6():
    assert "dz_i/dh_j = Omega_ij, hence dz/dh = Omega'" in lines("z = beta + Omega @ h", shapes=SHAPES, wrt="h")


def test_problem_7_9():
    found = lines("f = beta + Omega @ h; y = l(f)", shapes=SHAPES, wrt="Omega")
    assert "dy/dOmega_ij = dl/df_i * h_j, hence dy/dOmega = dl/df @ h'" in found
    assert "    df_i/dOmega_jk = delta_ij * h_k   (m x n x m)" in found


def test_layout_does_not_change_the_element():
    for layout in ("denominator", "numerator"):
        assert lines("f = inv(X)", shapes={"X": "n,n"}, wrt="X", layout=layout)[2] == (
            "df_ij/dX_kl = -inv(X)_ik * inv(X)_lj"
        )


def test_higher_orders_are_one_line():
    second = cr.derive("f = exp(A @ x)", shapes={"A": "m,n", "x": "n"}, wrt="x", order=2)
    assert second.text("index").splitlines()[0] == "d2f_i/dx_j dx_k = A_ij * A_ik * exp(sum_l A_il * x_l)"
    third = cr.derive("sum(x^4)", shapes={"x": "n"}, wrt="x", order=3)
    assert third.text("index").splitlines()[0] == "d3y/dx_i dx_j dx_k = 24 * delta_ij * delta_ik * x_i"


def test_large_factors_are_shown_by_their_element_in_matrix_notation_too():
    text = cr.derive("f = beta + Omega @ h; y = sum(f^2)", shapes=SHAPES, wrt="Omega").text()
    assert "    df_i/dOmega_jk = delta_ij * h_k   (m x n x m)" in text.splitlines()


def test_vector_jacobian_product():
    found = lines("f = beta + Omega @ h", shapes=SHAPES, wrt="Omega", cotangent="g")
    assert "df/dOmega_ij = g_i * h_j, hence df/dOmega = g @ h'" in found


def test_a_notation_that_does_not_exist():
    d = cr.derive("x^2", wrt="x")
    for show in (d.text, d.latex, d["x"].text_in, d["x"].latex_in):
        with pytest.raises(ChainruleError, match="notation"):
            show("tensor")


# ---- every step of every problem ---------------------------------------------------------------------------
ALL = [p for p in PROBLEMS if not p.missing]
STEPS = [p for p in ALL if p.id in ("V04", "M08", "M29", "M52", "T08", "T13")]


@pytest.mark.parametrize("problem", STEPS, ids=lambda p: p.id)
def test_every_step_has_the_values_of_its_closed_form(problem: Problem):
    derived = derive(problem)
    generator = np.random.default_rng(4)
    leaves = derived.program.variables
    sizes = {name: 2 + k for k, name in enumerate(sorted({str(s) for v in leaves.values() for s in v.shape}))}
    arrays = {
        name: generator.uniform(0.4, 1.5, tuple(sizes[str(s)] for s in leaf.shape)) for name, leaf in leaves.items()
    }
    for name in derived.program.order:
        node = cr.verbs.expression.Expression(derived.program.symbol[name], derived.program.definitions).full
        arrays[name] = np.asarray(evaluate([node], {v: arrays[n] for n, v in leaves.items()}, sizes)[0])
    shapes = {n: ",".join(map(str, s.shape)) for n, s in derived.program.symbol.items() if s.shape}
    printed = derived.text("index").splitlines()
    for step in derived.steps:
        line = next(
            part for part in printed if re.match(rf"d{step.of}(_\w+)?/d{step.wrt}(_\w+)? = ", part) and "d" in part
        )
        left, _, right = line.partition(" = ")
        right = right.partition(", hence ")[0].partition("   (")[0]
        value = np.asarray(
            evaluate([step.closed_form.full], {v: arrays[n] for n, v in leaves.items()}, sizes)[0], float
        )
        if derived.layout == "denominator" and step.order == 1:  # the line has F before X
            rank = value.ndim - derived.program.symbol[step.wrt].type.rank
            value = np.moveaxis(value, range(value.ndim - rank, value.ndim), range(rank))
        letters = free_letters(left)
        found = Line(right, arrays, sizes, shapes).evaluate(letters, value.shape)
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-12)


# ---- LaTeX and HTML ----------------------------------------------------------------------------------------
def rows(latex: str) -> list[str]:
    """The lines of an ``aligned`` environment."""
    body = latex.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    assert body != latex
    return [row.replace("&", "", 1) for row in body.split(" \\\\\n")]


class Tags(HTMLParser):
    """Checks that tags are closed in order, and counts them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("problem", ALL, ids=lambda p: p.id)
def test_problems(problem: Problem):
    derived = derive(problem)
    _element_is_right(derived[problem.wrt].full, problem)
    # mathml reads a small, strict LaTeX: balanced brackets, known commands, one exponent and one index at a time
    for notation in ("matrix", "index"):
        assert all(mathml(row) for row in rows(derived.latex(notation)))
    tags = Tags(derived._repr_html_()).count
    assert tags["tr"] == len(derived.steps) + len(derived.definitions) == tags["math"]
    Tags(derived[problem.wrt]._repr_html_())


def _element_is_right(node: Node, problem: Problem) -> None:
    found, sizes = next(points([node], problem, 1))
    arrays = {leaf.params["name"]: np.asarray(v, float) for leaf, v in found.items()}
    expected = np.asarray(evaluate([node], found, sizes)[0])
    letters = index_letters([node], node.type.rank)
    shapes = {leaf.params["name"]: ",".join(map(str, leaf.shape)) for leaf in found if leaf.shape}
    line = Line(index_text(node, letters), arrays, sizes, shapes)
    with np.errstate(divide="ignore", invalid="ignore"):  # T21 is nan at 0
        read = line.evaluate("".join(letters), expected.shape)
    np.testing.assert_allclose(read, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["V22", "V40", "M33", "M52", "T16"])
def test_latex_compiles(name: str):
    mathtext = pytest.importorskip("matplotlib.mathtext")
    parser = mathtext.MathTextParser("path")  # an implementation of TeX's mathematics that is not ours
    derived = derive(next(p for p in PROBLEMS if p.id == name))
    for notation in ("matrix", "index"):
        for row in rows(derived.latex(notation)):
            parser.parse(f"${row}$")


@pytest.mark.parametrize("source", ["(X')^2", "inv(X)'", "inv(X)^2", "inv(inv(X))", "(x_1^2)^3", "f3 * f_a_b^2"])
def test_no_exponent_is_doubled(source: str):
    mathtext = pytest.importorskip("matplotlib.mathtext")
    mathtext.MathTextParser("path").parse(f"${cr.formula(source, shapes={'X': 'n,n'} if 'X' in source else {}).latex}$")


def test_html_escapes_names():
    html = cr.derive("y = where(a < b, a, b)", wrt="a")._repr_html_()
    assert "&lt;" in html and Tags(html)
