"""Index notation: the printed line, read by an independent interpreter, has the values of the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import chainrule as cr
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.index_languages import index_latex, index_text
from chainrule.interpreters.index_notation import index_letters
from chainrule.interpreters.latex import latex
from chainrule.interpreters.mathml import mathml
from chainrule.interpreters.simplify import simplify
from tests.fuzz.graphs import SIZES, programs, values
from tests.index_lines import Line

CASES = [
    ("A @ x + b", {"A": "m,n", "x": "n", "b": "m"}, "sum_j A_ij * x_j + b_i"),
    ("A' @ (A @ x - b)", {"A": "m,n", "x": "n", "b": "m"}, "sum_j A_ji * (sum_k A_jk * x_k - b_j)"),
    ("inv(X) @ A", {"A": "n,n", "X": "n,n"}, "sum_k inv(X)_ik * A_kj"),
    ("diag(p) - p @ p'", {"p": "n"}, "delta_ij * p_i - p_i * p_j"),
    ("x / norm(x)", {"x": "n"}, "x_i / sqrt(sum_j x_j^2)"),
    ("max(A, 1)", {"A": "m,n"}, "max_j(A_ij)"),
    ("A[:, 0] * A[:, 1]", {"A": "m,n"}, "A_{i,0} * A_{i,1}"),
    ("x[1:] - x[:-1]", {"x": "n"}, "x_{i+1} - x_i"),
    ("conv1d(x, w)", {"x": "n", "w": "k"}, "sum_j w_j * x_{i+j}"),
    ("flip(x)", {"x": "n"}, "x_{n-1-i}"),
    ("sum((A @ x)^2)^3", {"A": "m,n", "x": "n"}, "(sum_i (sum_j A_ij * x_j)^2)^3"),
    ("exp(A @ x) * (A @ x)", {"A": "m,n", "x": "n"}, "exp(sum_k A_ik * x_k) * sum_j A_ij * x_j"),
    ("A / n + mean(A)", {"A": "m,n"}, "A_ij / n + sum_kl A_kl / (m * n)"),
    ("[x > 0] * softmax(A @ x)", {"A": "n,n", "x": "n"}, "[x_i > 0] * softmax(A @ x)_i"),
    ("X[:, None] - X[None, :]", {"X": "n,d"}, "X_ik - X_jk"),
    ("i * x_j + j", {"x_j": "n"}, "i * x_j_k + j"),  # names are no letters
    ("2 * x^-0.5 / 3", {"x": "n"}, "2 / (3 * sqrt(x_i))"),
    ("l(f) * f", {"f": "n"}, "l(f) * f_i"),
]


@pytest.mark.parametrize(("source", "shapes", "line"), CASES, ids=[c[0] for c in CASES])
def test_lines(source: str, shapes: Mapping[str, str], line: str):
    assert cr.formula(source, shapes).text_in("index") == line


def test_letters_are_fresh():
    node = cr.formula("k * A", {"A": "j,i"}).node
    assert index_letters([node], 2) == ("l", "m")
    many = index_letters([node], 60)
    assert len(set(many)) == 60 and not {"i", "j", "k"} & set(many)


def test_deep_nesting_stays_short_of_the_recursion_limit():
    source = "exp(" * 400 + "x" + ")" * 400
    line = cr.formula(source, {"x": "n"}).text_in("index")
    assert line.count("exp") == 400 and "_i" in line


# ---- against the values of the graph -----------------------------------------------------------------------
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(programs(most=6))
def test_random_graphs(graph):
    node = simplify(graph.outputs[0])  # as derivatives are; sum_j f(0) would not say how far j goes
    found = values(graph, 3)
    arrays = {leaf.params["name"]: v for leaf, v in found.items()}
    expected = np.asarray(evaluate([node], found, SIZES)[0])
    letters = index_letters([node], node.type.rank)
    shapes = {leaf.params["name"]: ",".join(map(str, leaf.shape)) for leaf in graph.inputs if leaf.shape}
    line = Line(index_text(node, letters), arrays, SIZES, shapes)
    try:
        read = line.evaluate("".join(letters), expected.shape)
    except (OverflowError, ZeroDivisionError, ValueError):  # Python's floats raise where NumPy's are inf or nan
        assert not np.all(np.isfinite(expected))
        return
    np.testing.assert_allclose(read, expected, rtol=1e-9, atol=1e-9)
    assert mathml(index_latex(node, letters)) and mathml(latex(node))
