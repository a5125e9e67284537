"""Assumptions about matrices: the derivative within a structure is that by the independent entries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from click.testing import CliRunner

import chainrule as cr
from chainrule.cli import cli
from chainrule.errors import ChainruleError, FormulaError, ShapeError
from chainrule.ir import STRUCTURES, Node
from chainrule.verbs.structured_values import moved_element, with_structure

N = 3
SHAPES = {"S": "n,n", "A": "n,n", "x": "n", "y": "n", "X": "n,k", "B": "k,k"}
FORMULAS = [
    "logdet(S)",
    "x' @ S @ y",
    "tr(inv(S) @ A)",
    "sum(exp(S / 5))",
    "det(S) + x' @ inv(S) @ x",
    "f = S @ x; sum(tanh(f))",
    "P = S @ A @ S'; q = tr(P)^2; q + sum(P)",
    "S @ x",
    "S @ A @ S",
]
KINDS = sorted(STRUCTURES)
MODES = ("direct", "reverse", "forward", "best")


def leaf_of(kind: str) -> Node:
    return cr.formula("S", {"S": "n,n"}, assume={"S": kind}).node


def point(kind: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    arrays = {
        name: generator.standard_normal([N if d == "n" else 2 for d in dims.split(",")]) / 2
        for name, dims in SHAPES.items()
    }
    arrays["S"] = with_structure(leaf_of(kind), arrays["S"]) + np.eye(N)
    return arrays


def directions(kind: str) -> Iterator[tuple[int, int, np.ndarray]]:
    """Each independent entry, with what moves when it does."""
    for i in range(N):
        for j in range(N):
            e = np.zeros((N, N))
            e[i, j] = 1.0
            if kind in ("symmetric", "positive definite"):
                e[j, i] = 1.0
            elif (kind == "diagonal" and i != j) or (kind[:5] == "lower" and j > i) or (kind[:5] == "upper" and i > j):
                continue
            yield i, j, e


def used(formula: str) -> dict[str, str]:
    return {
        k: v for k, v in SHAPES.items() if k in set(formula.translate(str.maketrans("()'@;=*/^+", " " * 10)).split())
    }


def by_entries(function, kind: str, at: np.ndarray, step: float) -> np.ndarray:
    """The derivative by the independent entries, in front."""
    moved = None
    for i, j, e in directions(kind):
        change = (function(at + step * e) - function(at - step * e)) / (2 * step)
        moved = np.zeros((N, N, *np.shape(change))) if moved is None else moved
        moved[i, j] = change
    assert moved is not None
    return moved


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_against_differences_along_the_structure(formula: str, kind: str):
    mode = MODES[(FORMULAS.index(formula) + KINDS.index(kind)) % len(MODES)]
    arrays = point(kind)
    value = cr.formula(formula, used(formula))
    expected = by_entries(lambda s: np.asarray(value.evaluate(**{**arrays, "S": s})), kind, arrays["S"], 1e-5)
    d = cr.derive(formula, wrt="S", shapes=used(formula), mode=mode, assume={"S": kind})
    found = d["S"].evaluate(**arrays, n=N)
    # Central differences with a step of 1e-5 are good to about 1e-9 of values of order one to a hundred.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formula", ["logdet(S)", "x' @ S @ S' @ y", "tr(S @ A @ S @ S)"])
def test_second_order(formula: str, kind: str):
    arrays = point(kind)
    value = cr.formula(formula, used(formula))

    def gradient(s: np.ndarray) -> np.ndarray:
        return by_entries(lambda t: np.asarray(value.evaluate(**{**arrays, "S": t})), kind, s, 1e-3)

    expected = np.moveaxis(by_entries(gradient, kind, arrays["S"], 1e-3), (0, 1), (2, 3))
    d = cr.derive(formula, wrt="S", shapes=used(formula), order=2, assume={"S": kind})
    # A difference of differences with a step of 1e-3: truncation of the order of 1e-6 times fourth derivatives.
    np.testing.assert_allclose(d["S"].evaluate(**arrays, n=N), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["denominator", "numerator"])
def test_layouts(layout: str):
    arrays = point("symmetric")
    expected = by_entries(lambda s: s @ arrays["x"], "symmetric", arrays["S"], 1e-3)
    expected = expected if layout == "denominator" else np.moveaxis(expected, 2, 0)
    d = cr.derive("S @ x", wrt="S", shapes=used("S @ x"), layout=layout, assume={"S": "symmetric"})
    np.testing.assert_allclose(d["S"].evaluate(**arrays, n=N), expected, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formula", ["x' @ S @ x", "x' @ inv(S) @ x + y' @ S' @ x", "sum((S' @ x)^2)"])
def test_of_what_is_known(formula: str, kind: str):
    arrays = point(kind)
    free = cr.derive(formula, wrt="x", shapes=used(formula))["x"]
    known = cr.derive(formula, wrt="x", shapes=used(formula), assume={"S": kind})["x"]
    assert known.size <= free.size
    np.testing.assert_allclose(known.evaluate(**arrays, n=N), free.evaluate(**arrays, n=N), rtol=1e-10)


# ---- form --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("formula", "wrt", "assume", "text"),
    [
        ("logdet(S)", "S", {}, "inv(S)'"),
        ("logdet(S)", "S", {"S": "symmetric"}, "2 * inv(S) - diag(diag(inv(S)))"),
        ("logdet(S)", "S", {"S": "positive definite"}, "2 * inv(S) - diag(diag(inv(S)))"),
        ("logdet(S)", "S", {"S": "lower triangular"}, "diag(diag(inv(S)))"),
        ("logdet(S)", "S", {"S": "diagonal"}, "inv(S)"),
        ("x' @ S @ x", "x", {"S": "symmetric"}, "2 * S @ x"),
        ("x' @ S @ x", "S", {"S": "symmetric"}, "2 * x @ x' - diag(x^2)"),
        ("x' @ S @ x", "S", {"S": "upper triangular"}, "triu(x @ x')"),
        ("x' @ S @ y", "S", {"S": "lower_triangular"}, "tril(x @ y')"),
        ("tr(S @ A)", "A", {"S": "diagonal"}, "S"),
    ],
)
def test_form(formula: str, wrt: str, assume: dict[str, str], text: str):
    d = cr.derive(formula, wrt=wrt, shapes=used(formula), assume=assume)
    assert d[wrt].text == text
    again = cr.formula(text, {k: v for k, v in SHAPES.items() if k in text}, assume=assume if "S" in text else {})
    assert again.simplified().node is d[wrt].node
    assert cr.formula(d[wrt].text, SHAPES, where=d).simplified().node is d[wrt].node


def test_the_output_says_what_was_assumed():
    d = cr.derive("x' @ S @ x", wrt="x,S", shapes=used("x S"), assume={"S": "symmetric"})
    assert "assuming S symmetric: the derivative is by its independent entries, G + G' - diag(diag(G))" in str(d)
    assert "assuming S symmetric" in d._repr_html_() and "assuming S symmetric" in d.text("index")
    assert d.assumptions == d.to_dict()["assumptions"] == {"S": "symmetric"}
    assert "assuming" not in str(cr.derive("x' @ S @ x", wrt="x", shapes=used("x S")))


def test_a_structured_matrix_is_another_node():
    free, known = (cr.formula("S", {"S": "n,n"}, assume=a) for a in ({}, {"S": "symmetric"}))
    assert free.node is not known.node
    assert cr.formula("S'", {"S": "n,n"}, assume={"S": "symmetric"}).simplified().node is known.node
    assert cr.formula("S'", {"S": "n,n"}).simplified().text == "S'"


# ---- check -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_check_draws_points_that_satisfy_the_assumption(kind: str):
    # right only within the structure, and not by algebra: tanh of an element and of the one that mirrors it
    claim = {"symmetric": "tanh(S')", "positive definite": "tanh(S')", "diagonal": "diag(diag(tanh(S)))"}
    claim |= {"lower triangular": "tanh(tril(S))", "upper triangular": "tanh(triu(S))"}
    options = {"wrt": "A", "shapes": used("S A"), "claim": claim[kind]}
    assert not cr.check("sum(A * tanh(S))", **options).holds
    found = cr.check("sum(A * tanh(S))", **options, assume={"S": kind})
    assert found.holds and f"assuming S {kind}" in str(found)


def test_check_tells_the_free_answer_from_the_structured_one():
    options = {"wrt": "S", "shapes": used("S"), "assume": {"S": "symmetric"}}
    assert cr.check("logdet(S)", **options, claim="2*inv(S) - diag(diag(inv(S)))").holds
    wrong = cr.check("logdet(S)", **options, claim="inv(S)")
    at = np.array(wrong.counterexample["at"]["S"])
    assert not wrong.holds and np.array_equal(at, at.T)


@pytest.mark.parametrize("kind", KINDS)
def test_values_keep_their_structure(kind: str):
    leaf = leaf_of(kind)
    generator = np.random.default_rng(2)
    value = with_structure(leaf, generator.standard_normal((4, 4)))
    for place in range(16):
        moved = moved_element(leaf, value, place, 0.7)
        if "symmetric" in STRUCTURES[kind]:
            assert np.array_equal(moved, moved.T)
        assert "lower" not in STRUCTURES[kind] or np.array_equal(moved, np.tril(moved))
        assert "upper" not in STRUCTURES[kind] or np.array_equal(moved, np.triu(moved))
    if kind == "positive definite":
        assert np.linalg.eigvalsh(value).min() > 0


@pytest.mark.parametrize(
    "formula, assume, text",
    [
        # the two forms of (X' C X)^-1 are one, since C' = C (Matrix Cookbook 125 and 126)
        ("tr(inv(X' @ C @ X) @ B)", {"C": "symmetric"}, "-C @ X @ inv(X' @ C @ X) @ (B + B') @ inv(X' @ C @ X)"),
        ("tr(X' @ D @ X @ inv(X' @ C @ X))", {"C": "symmetric", "D": "positive definite"}, None),
        ("logdet(X' @ C @ X)", {"C": "diagonal"}, "2 * C @ X @ inv(X' @ C @ X)"),
        ("logdet(X' @ inv(C) @ X)", {"C": "symmetric"}, "2 * inv(C) @ X @ inv(X' @ inv(C) @ X)"),
    ],
)
def test_a_product_around_a_symmetric_matrix_is_symmetric(formula: str, assume: dict[str, str], text: str | None):
    shapes = {"X": "n,k", "C": "n,n", "D": "n,n", "B": "k,k"}
    used = {name: shape for name, shape in shapes.items() if name in formula}
    answer = cr.derive(formula, wrt="X", shapes=used, assume=assume)["X"]
    short = "2 * (D - C @ X @ inv(X' @ C @ X) @ X' @ D) @ X @ inv(X' @ C @ X)"
    assert answer.text == (text or short)
    generator = np.random.default_rng(0)
    values = {name: np.diag(generator.uniform(1, 2, 4)) if name in "CD" else generator.standard_normal((4, 2))
              for name in used if name != "B"}  # fmt: skip
    if "B" in used:
        values["B"] = generator.standard_normal((2, 2))
    step, value = 1e-6 * generator.standard_normal((4, 2)), cr.formula(formula, shapes=used)
    up, down = (value.evaluate(**{**values, "X": values["X"] + s * step}) for s in (1, -1))
    assert np.isclose((up - down) / 2, np.sum(answer.evaluate(**values) * step), rtol=1e-6, atol=1e-12)


# ---- refusals ----------------------------------------------------------------------------------------------
def test_refusals():
    shapes = {"S": "n,n", "x": "n"}
    with pytest.raises(FormulaError, match="'T'"):
        cr.derive("x' @ S @ x", wrt="x", shapes=shapes, assume={"T": "symmetric"})
    with pytest.raises(ChainruleError, match="symmetric"):
        cr.derive("x' @ S @ x", wrt="x", shapes=shapes, assume={"S": "symetric"})
    with pytest.raises(ShapeError, match="square"):
        cr.derive("x' @ S @ x", wrt="x", shapes=shapes, assume={"x": "symmetric"})
    d = cr.derive("x' @ S @ x", wrt="x", shapes=shapes, assume={"S": "symmetric"})
    with pytest.raises(ShapeError, match="symmetric"):
        d["x"].evaluate(S=np.array([[1.0, 2.0], [3.0, 4.0]]), x=np.ones(2))
    with pytest.raises(ShapeError, match="symmetric"):
        d.values(S=np.array([[1.0, 2.0], [3.0, 4.0]]), x=np.ones(2))
    with pytest.raises(ChainruleError, match="assume"):
        d.code("numpy")


def test_command_line():
    arguments = ["logdet(S)", "--wrt", "S", "--shape", "S=n,n", "--assume", "S=symmetric"]
    shown = CliRunner().invoke(cli, ["derive", *arguments], prog_name="chainrule").output
    assert "dy/dS = 2 * inv(S) - diag(diag(inv(S)))" in shown and "assuming S symmetric" in shown
    assert CliRunner().invoke(cli, ["check", *arguments, "--claim", "inv(S)"], prog_name="chainrule").exit_code == 1
    indexed = CliRunner().invoke(cli, ["derive", *arguments, "--notation", "index"], prog_name="chainrule").output
    assert "dy/dS_ij = 2 * inv(S)_ij - delta_ij * inv(S)_ii, hence" in indexed
