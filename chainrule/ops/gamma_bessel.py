"""Gamma functions and modified Bessel functions, in NumPy by series that keep all digits."""

from __future__ import annotations

import math

import numpy as np

from chainrule.ir import OPS, Code, Node, Sample, apply, as_node, lowering
from chainrule.ops.arithmetic import compare, where
from chainrule.ops.families import elementwise, sum_nodes, unary, written_as_call
from chainrule.ops.special_functions import each_of

# ---- gamma functions ---------------------------------------------------------------------------------------
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)

_LGAMMA = "_lgamma = np.vectorize(math.lgamma, otypes=[float])\n"


def _polygamma(n: int, x: float) -> float:
    """The asymptotic series after moving x beyond 20 by the recurrence (DLMF 5.15.5, 5.15.8)."""
    total, sign = 0.0, (-1) ** (n + 1)
    while x < 20:
        total += (-1.0 / x) if n == 0 else sign * math.factorial(n) / x ** (n + 1)
        x += 1
    if n == 0:
        tail = math.log(x) - 0.5 / x
        return total + tail - sum(b / (2 * k * x ** (2 * k)) for k, b in enumerate(_BERNOULLI, 1))
    tail = math.factorial(n - 1) / x**n + math.factorial(n) / (2 * x ** (n + 1))
    tail += sum(
        b * math.factorial(2 * k + n - 1) / (math.factorial(2 * k) * x ** (2 * k + n))
        for k, b in enumerate(_BERNOULLI, 1)
    )
    return total + sign * tail


LGAMMA = unary(
    "lgamma",
    value=each_of(math.lgamma),
    derivative=lambda y, x: apply(DIGAMMA, x),
    domain="positive",
    moments=None,
    aten={"lgamma": None, "special_gammaln": None},
    code=Code("_lgamma({0})", jax="jax.scipy.special.gammaln({0})", helper=(_LGAMMA,)),
    source="log |Gamma(x)|",
)
DIGAMMA = unary(
    "digamma",
    value=each_of(lambda x: _polygamma(0, x)),
    derivative=lambda y, x: apply(POLYGAMMA, x, n=1),
    domain="positive",
    moments=None,
    aten={"digamma": None, "special_digamma": None, "special_psi": None},
    source="DLMF 5.2.2: the derivative of log Gamma",
)
POLYGAMMA = elementwise(
    "polygamma",
    arity=1,
    shape=lambda x, *, n: x,
    value=lambda x, *, n: each_of(lambda v: _polygamma(n, v))(x),
    derivative=lambda y, x, *, n: (apply(POLYGAMMA, x, n=n + 1),),
    names=(),
    moments=None,
    torch=lambda node, x: f"torch.special.polygamma({node.params['n']}, {x[0]})",
    aten={"polygamma": lambda n, x: polygamma(n, x), "special_polygamma": lambda n, x: polygamma(n, x)},
    samples=(Sample((np.array([0.4, 1.3, 2.7]),), {"n": 2}), Sample((np.array([0.4, 1.3, 2.7]),), {"n": 3})),
    family="kernel",
    **written_as_call("polygamma"),
    source="DLMF 5.15: derivatives of digamma",
)


def polygamma(n: int, x: Node) -> Node:
    """The n-th derivative of digamma."""
    return apply(DIGAMMA, x) if n == 0 else apply(POLYGAMMA, x, n=n)


@lowering("mvlgamma", "special_multigammaln")
def multivariate_lgamma(x: Node, p: int) -> Node:
    """``sum_j lgamma(x - j / 2) + p (p - 1) / 4 log pi``."""
    total = sum_nodes([apply(LGAMMA, x - j / 2) for j in range(p)])
    assert total is not None
    return total + p * (p - 1) / 4 * math.log(math.pi)


# ---- Bessel functions --------------------------------------------------------------------------------------
def _bessel(order: int, x: float) -> float:
    """The ascending series (DLMF 10.25.2)."""
    term = (x / 2) ** order
    total, k = 0.0, 0
    while True:
        total += term
        k += 1
        term *= (x / 2) ** 2 / (k * (k + order))
        if abs(term) <= 1e-17 * abs(total) or not term:
            return total


def _i1_derivative(y: Node, x: Node) -> Node:
    safe = where(compare("eq", x, 0.0), as_node(1.0, like=x), x)
    return where(compare("eq", x, 0.0), as_node(0.5, like=x), apply(I0, x) - y / safe)


def _i1e_derivative(y: Node, x: Node) -> Node:
    safe = where(compare("eq", x, 0.0), as_node(1.0, like=x), x)
    slope = apply(I0E, safe) - y * (apply(OPS["sign"], safe) + 1.0 / safe)
    return where(compare("eq", x, 0.0), as_node(0.5, like=x), slope)


I0 = unary(
    "i0",
    value=each_of(lambda x: _bessel(0, x)),
    derivative=lambda y, x: apply(I1, x),
    torch="torch.special.i0({0})",
    names=(),
    family="kernel",
    moments=None,
    aten={"i0": None, "special_i0": None},
    source="DLMF 10.25: the modified Bessel function of order 0",
)
I1 = unary(
    "i1",
    value=each_of(lambda x: _bessel(1, x)),
    derivative=_i1_derivative,
    torch="torch.special.i1({0})",
    names=(),
    family="kernel",
    moments=None,
    aten={"special_i1": None},
    source="DLMF 10.25: the modified Bessel function of order 1",
)
I0E = unary(
    "i0e",
    value=each_of(lambda x: math.exp(-abs(x)) * _bessel(0, x)),
    derivative=lambda y, x: apply(I1E, x) - apply(OPS["sign"], x) * y,
    torch="torch.special.i0e({0})",
    names=(),
    family="kernel",
    moments=None,
    aten={"special_i0e": None},
    source="exp(-|x|) I_0(x)",
)
I1E = unary(
    "i1e",
    value=each_of(lambda x: math.exp(-abs(x)) * _bessel(1, x)),
    derivative=_i1e_derivative,
    torch="torch.special.i1e({0})",
    names=(),
    family="kernel",
    moments=None,
    aten={"special_i1e": None},
    source="exp(-|x|) I_1(x)",
)
