"""Sizes: integers and polynomials of names, exact and canonical."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainrule.errors import ShapeError
from chainrule.ir import Dim, product
from chainrule.ir.dims import solve_for, substitute
from chainrule.ir.types import TensorType, broadcast_shapes, promote

n, m = Dim("n"), Dim("m")
sizes = st.recursive(
    st.one_of(st.integers(-3, 5), st.sampled_from((n, m))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: t[0] + t[2] if t[1] == "+" else t[0] - t[2] if t[1] == "-" else t[0] * t[2]
    ),
    max_leaves=6,
)


def test_a_result_without_names_is_an_int():
    assert type(n - n) is int and n - n == 0
    assert type((n + 2) - n) is int
    assert type(n * 0) is int


def test_equality_is_of_polynomials():
    assert (n + m) * (n - m) == n * n - m * m
    assert hash(n + 1) == hash(1 + n)
    assert n != m and n != 3 and n + 1 != n


@pytest.mark.parametrize(
    "size, text",
    [(n, "n"), (n + 1, "n + 1"), (1 - n, "-n + 1"), (2 * n * m - 3, "2*m*n - 3"), (-n, "-n"), (n * n, "n*n")],
)
def test_text(size, text: str):
    assert str(size) == text


@given(sizes, sizes, st.integers(2, 5), st.integers(2, 5))
def test_arithmetic_agrees_with_numbers(a, b, at_n: int, at_m: int):
    at = {"n": at_n, "m": at_m}
    x, y = substitute(a, at), substitute(b, at)
    assert isinstance(x, int) and isinstance(y, int)
    assert substitute(a + b, at) == x + y
    assert substitute(a - b, at) == x - y
    assert substitute(a * b, at) == x * y
    assert substitute(-a, at) == -x
    assert (a + b) - b == a


def test_product_of_a_shape():
    assert product(()) == 1
    assert product((2, n, 3)) == 6 * n
    assert product((n, 0)) == 0


def test_a_name_is_learnt_from_an_equation():
    known: dict[str, int] = {}
    assert solve_for(2 * n, 6, known) and known == {"n": 3}
    assert not solve_for(n, 4, known), "n is 3 already"
    assert solve_for(n + m, 5, known)


def test_a_dimension_has_a_name():
    with pytest.raises(ShapeError, match="needs a name"):
        Dim("")


# ---- types -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "shapes, result",
    [
        (((), ()), ()),
        (((n,), ()), (n,)),
        (((n, 1), (m,)), (n, m)),
        (((1, n), (m, 1)), (m, n)),
        (((2, 3), (3,)), (2, 3)),
        (((4, 1, n), (2, 1)), (4, 2, n)),
    ],
)
def test_broadcasting(shapes, result):
    assert broadcast_shapes(*shapes) == result


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((n,), (m,)), ((n,), (3,)), ((n, 2), (n,))])
def test_shapes_that_do_not_broadcast_are_both_named(shapes):
    with pytest.raises(ShapeError) as caught:
        broadcast_shapes(*shapes)
    assert all(" x ".join(map(str, s)) in str(caught.value) for s in shapes)


@pytest.mark.parametrize(
    "dtypes, result",
    [
        ((("float32", (2,)), ("float64", ())), "float32"),
        ((("int64", (2,)), ("float32", ())), "float32"),
        ((("bool", (2,)), ("int64", ())), "int64"),
        ((("float32", (2,)), ("float64", (2,))), "float64"),
        ((("float16", ()), ("float32", ())), "float32"),
    ],
)
def test_promotion_is_torchs(dtypes, result: str):
    assert promote(*(TensorType(shape, dtype) for dtype, shape in dtypes))[0] == result


def test_complex_is_refused_with_a_way_out():
    with pytest.raises(ShapeError, match="pair of real"):
        TensorType((2,), "complex64")


def test_bytes():
    assert TensorType((3, n), "float32").nbytes == 12 * n
    assert TensorType((), "bool").nbytes == 1
