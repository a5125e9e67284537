"""Multiplications of a chain in forward, reverse and the cheapest order, against counts made by other means."""

from __future__ import annotations

import json
from itertools import pairwise, permutations

import numpy as np
import pytest
from click.testing import CliRunner

import chainrule as cr
from chainrule.cli import cli
from chainrule.ir import Dim
from chainrule.verbs.bracketing import Chain, Pattern, best_order, chain_of, forward_order, reverse_order

# ---- matrix chains -----------------------------------------------------------------------------------------
TEXTBOOK = [30, 35, 15, 5, 10, 20, 25]  # Cormen et al., Introduction to Algorithms, 15.2: 15,125 multiplications


def dense_chain(sizes: list[int]) -> Chain:
    """A single path of dense matrices."""
    names = [f"v{k}" for k in range(len(sizes))]
    edges = {
        (names[k], names[k + 1]): Pattern((sizes[k], sizes[k + 1]), (0, 1), 1, False) for k in range(len(sizes) - 1)
    }
    return Chain(edges, names[1:-1])


def fewest(sizes: list[int]) -> int:
    """The matrix-chain recursion."""
    if len(sizes) == 2:
        return 0
    return min(
        fewest(sizes[: k + 1]) + fewest(sizes[k:]) + sizes[0] * sizes[k] * sizes[-1] for k in range(1, len(sizes) - 1)
    )


def test_a_textbook_chain():
    chain = dense_chain(TEXTBOOK)
    assert chain.cost(best_order(chain)) == 15125 == fewest(TEXTBOOK)
    # in the textbook's order of factors, multiplying from one end and from the other
    left = sum(30 * a * b for a, b in pairwise(TEXTBOOK[1:]))
    right = sum(25 * a * b for a, b in pairwise(TEXTBOOK[:-1]))
    assert (chain.cost(forward_order(chain)), chain.cost(reverse_order(chain))) == (left, right)


@pytest.mark.parametrize("length", [3, 8, 12])  # every order tried; a matrix chain
def test_the_best_order_of_a_path_is_the_best(length: int):
    generator = np.random.default_rng(length)
    for _ in range(5):
        sizes = [int(s) for s in generator.integers(1, 40, length)]
        chain = dense_chain(sizes)
        assert chain.cost(best_order(chain)) == fewest(sizes)


def test_the_best_order_of_a_graph_is_the_best_of_all():
    source = "u = A @ x; v = tanh(u); w = v*v; s = sum(v) + sum(w); p = b*s; z = C @ p; y = exp(z)"
    shapes = {"A": "6,9", "x": "9", "b": "7", "C": "8,7"}
    d = cr.derive(source, wrt="x", shapes=shapes)
    chain = chain_of(d.program, ["x"])
    every = [chain.cost(order) for order in permutations(chain.inner)]
    assert d.counts["best"] == min(every) < min(d.counts["forward"], d.counts["reverse"])


def test_a_long_program_is_never_worse_than_forward_and_reverse():
    better = 0
    for seed in range(6):
        generator = np.random.default_rng(seed)
        sizes = [int(s) for s in generator.integers(1, 9, 22)]
        edges = {
            (f"v{k}", f"v{m}"): Pattern((sizes[k], sizes[m]), (0, 1), 1, False)
            for m in range(1, 22)
            for k in {m - 1, int(generator.integers(0, m))}
        }
        chain = Chain(edges, [f"v{k}" for k in range(1, 21)])
        both = chain.cost(forward_order(chain)), chain.cost(reverse_order(chain))
        assert chain.cost(best_order(chain)) <= min(both)
        better += chain.cost(best_order(chain)) < min(both)
    assert better >= 3, better


# ---- what is counted ---------------------------------------------------------------------------------------
M, N = Dim("m"), Dim("n")


@pytest.mark.parametrize(
    "source, shapes, counts",
    [
        # a diagonal times a dense matrix is n*m, never n*n*m; a vector times a matrix is n*m
        ("s = A @ x; y = tanh(s)", {"A": "m,n", "x": "n"}, (M * N, M * N)),
        ("s = A @ x; t = tanh(s); y = v' @ t", {"A": "m,n", "x": "n", "v": "m"}, (M * N + M * N, M + M * N)),
        # sums, shifts and signs multiply nothing
        ("s = A @ x; t = s + b; y = sum(t)", {"A": "m,n", "x": "n", "b": "m"}, (0, 0)),
        ("s = -x; y = exp(s)", {}, (0, 0)),
        ("s = sin(x); t = 2*s; y = exp(t)", {}, (2, 2)),
        # an outer product: d(A x)/dA is an identity times x
        ("s = A @ x; y = sum(exp(s))", {"A": "m,n", "x": "n"}, (M * N, M * N)),
    ],
)
def test_counts_by_hand(source: str, shapes: dict, counts: tuple):
    d = cr.derive(source, wrt="A" if "exp(s)" in source and "A" in source else "x", shapes=shapes)
    assert (d.counts["forward"], d.counts["reverse"]) == counts


def test_problem_7_12_takes_two_and_7_13_three():
    source = "f1 = exp(x); f2 = f1^2; f3 = f1 + f2; f4 = exp(f3); f5 = sin(f3); y = f4 + f5"
    for mode in ("reverse", "forward", "direct", "best"):
        assert dict(cr.derive(source, wrt="x", mode=mode).counts) == {"forward": 3, "reverse": 2, "best": 2}


def test_problem_7_13_one_pass_per_parameter_or_one():
    """The network of figure 7.8 has 2,285 parameters and one loss."""
    source = "h1 = relu(b0 + W0 @ x); h2 = relu(b1 + W1 @ h1); f = b2 + W2 @ h2; l = sum((f - y)^2)"
    shapes = {"x": "10", "b0": "40", "W0": "40,10", "b1": "40", "W1": "40,40", "b2": "5", "W2": "5,40", "y": "5"}
    d = cr.derive(source, shapes=shapes, wrt="b0, W0, b1, W1, b2, W2")
    assert d.passes == {"forward": 2285, "reverse": 1}
    assert d.counts["reverse"] == d.counts["best"] < d.counts["forward"] / 10
    assert "passes: forward 2,285, reverse 1" in str(d)


def test_forward_wins_with_one_variable_and_many_outputs():
    source, shapes = "u = w*x; h = tanh(u); z = A @ h; f = exp(z)", {"w": "100", "A": "50,100"}
    d = cr.derive(source, shapes=shapes, wrt="x")
    assert d.passes == {"forward": 1, "reverse": 50}
    assert d.counts["forward"] == d.counts["best"] == 100 + 50 * 100 + 50 < d.counts["reverse"]


def test_several_variables_are_the_sum_over_them_going_forward():
    source, shapes = "u = A @ x; v = tanh(u); y = sum(v*v)", {"A": "m,n", "x": "n"}
    both, a, x = (cr.derive(source, wrt=w, shapes=shapes).counts["forward"] for w in ("A, x", "A", "x"))
    assert both == a + x


def test_a_formula_in_one_piece_is_counted_by_its_operations():
    shapes = {"v": "k", "A": "k,m", "B": "m,n", "x": "n"}
    d = cr.derive("f = v' @ tanh(A @ tanh(B @ x))", shapes=shapes, wrt="x", mode="direct")
    k = Dim("k")
    assert d.counts["reverse"] == k + k * M + M + M * N
    assert "multiplications: forward k*m*n + 2*k*n + m*n, reverse k*m + m*n + k + m" in str(d)
    assert "compared with k = 16, m = 16, n = 16" in str(d)


# ---- mode best ---------------------------------------------------------------------------------------------
PROGRAMS = [
    ("u = x*x; v = u + x; w = u*v; y = w + u", "x", {}),
    ("f1 = exp(x); f2 = f1^2; f3 = f1 + f2; f4 = exp(f3); f5 = sin(f3); y = f4 + f5", "x, f1, f3", {}),
    (
        "u = A @ x; v = tanh(u); s = sum(v); p = b*s; z = C @ p; y = exp(z)",
        "x, v, A",
        {"A": "3,2", "x": "2", "b": "3", "C": "2,3"},
    ),
    ("s = A @ x; p = softmax(s); y = A' @ p", "x", {"A": "3,2", "x": "2"}),
    ("r = A @ x - b; n = sqrt(r' @ r); y = n*x", "x, b", {"A": "3,2", "x": "2", "b": "3"}),
    ("Z = X @ W; H = tanh(Z); l = sum(H*H)", "W, X", {"X": "2,3", "W": "3,2"}),
    ("h = relu(f0); f1 = b + W @ h; q = stop_gradient(f1); y = sum(f1*q)", "f0, W", {"f0": "2", "b": "3", "W": "3,2"}),
    ("u = x - x; v = u*x; y = v + heaviside(x)", "x", {}),
]


@pytest.mark.parametrize("layout", ["denominator", "numerator"])
@pytest.mark.parametrize("source, wrt, shapes", PROGRAMS)
def test_best_gives_what_reverse_gives(source: str, wrt: str, shapes: dict, layout: str):
    best, reverse = (cr.derive(source, wrt=wrt, shapes=shapes, layout=layout, mode=m) for m in ("best", "reverse"))
    generator = np.random.default_rng(0)
    names = [i.params["name"] for i in best.program.leaves]
    arrays = {n: generator.uniform(0.3, 1.5, [int(s) for s in shapes.get(n, "").split(",") if s]) for n in names}
    for w in best.wrt:
        assert best[w].shape == reverse[w].shape
        # the same products in another order
        np.testing.assert_allclose(best[w].evaluate(**arrays), reverse[w].evaluate(**arrays), rtol=1e-12, atol=1e-12)
        total = sum(
            t.expression.evaluate(**arrays) for s in best.steps if (s.of, s.wrt) == (best.of, w) for t in s.terms
        )
        if w in best.program.leaves[0].params["name"]:
            np.testing.assert_allclose(total, best[w].evaluate(**arrays), rtol=1e-12, atol=1e-12)
    assert best.notes == reverse.notes


def test_the_steps_of_best_are_the_products_of_its_order():
    source, shapes = (
        "u = A @ x; v = tanh(u); s = sum(v); p = b*s; z = C @ p; y = exp(z)",
        {"A": "9,9", "x": "9", "b": "7", "C": "8,7"},
    )
    d = cr.derive(source, wrt="x", shapes=shapes, mode="best")
    symbols = [s.symbol for s in d.steps]
    assert symbols[-1] == "dy/dx" and "ds/dx" in symbols  # the narrow place in the middle is where both ends meet
    assert all(len(t.factors) == 2 for s in d.steps for t in s.terms)


def test_the_command_line_and_the_data_have_the_counts():
    arguments = ["derive", "s = A @ x; t = tanh(s); y = sum(t*t)", "--shape", "A=m,n", "--shape", "x=n", "--wrt", "x"]
    shown = CliRunner().invoke(cli, [*arguments, "--mode", "best"])
    assert "multiplications: forward 2*m*n, reverse m*n + m, best m*n + m" in shown.output
    data = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)["multiplications"]
    assert data["counts"] == {"forward": "2*m*n", "reverse": "m*n + m", "best": "m*n + m"}
    assert data["passes"] == {"forward": "n", "reverse": 1} and data["assumed"] == {"m": 16, "n": 16}
