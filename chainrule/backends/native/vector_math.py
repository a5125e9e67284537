"""exp, log, tanh, sigmoid, erf, sin, cos and what follows from them, on vectors of float32 or float64.

Each is a reduction of the argument to a small interval, a polynomial there and a reconstruction, with ``fma``
throughout and no branch. The bounds in :data:`ULP` are tested against a higher precision over the whole range.
LLVM has no vector versions of its own: its intrinsics call the scalar C function once per lane.

Sources: argument reductions by Cody and Waite 1980; atanh series for log, expm1 form of tanh: Muller, Elementary
Functions, 3rd ed., chapters 9 to 11. erfc beyond 1 by Chebyshev interpolation of ``exp(x^2) erfc(x)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.values import Operand, Value

# Largest error in units in the last place over the range that matters (float32, float64); tests hold them.
ULP = {
    "exp": (2, 2),
    "expm1": (3, 3),
    "log": (2, 2),
    "log1p": (3, 3),
    "tanh": (4, 4),
    "sigmoid": (4, 4),
    "erf": (4, 6),
    "sin": (2, 2),
    "cos": (2, 2),
}
# The stated bounds of sin and cos hold up to this size of the argument; beyond, the reduction loses digits as it grows.
TRIGONOMETRIC_RANGE = {"f32": 8192.0, "f64": 1.0e6}

_LN2 = {"f32": (0.693145751953125, 1.4286068203094172e-06), "f64": (0.6931471803691238, 1.9082149292705877e-10)}
_INT = {"f32": ("i32", 23, 127), "f64": ("i64", 52, 1023)}


def polynomial(e: Emitter, x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's rule, constant first in ``coefficients``."""
    y: Value = e.constant(coefficients[-1], x.kind, x.lanes)
    for c in reversed(coefficients[:-1]):
        y = e.fma(y, x, c)
    return y


# Added to a number of moderate size, this leaves it rounded to a whole number in the lowest bits.
_MAGIC = {"f32": 1.5 * 2.0**23, "f64": 1.5 * 2.0**52}


def _power_of_two(e: Emitter, n: Value) -> Value:
    """``2^n`` for a whole number in floating point, within the normal range."""
    integer, shift, bias = _INT[n.kind]
    low = e.shift("shl", e.bits(n + _MAGIC[n.kind], integer), shift)
    return e.bits(low + (bias << shift), n.kind)


def _reduced(e: Emitter, x: Value) -> tuple[Value, Value]:
    """(n, r) with ``x = n log 2 + r`` and ``|r| <= log(2) / 2``."""
    high, low = _LN2[x.kind]
    n = e.fma(x, 1 / math.log(2), _MAGIC[x.kind]) - _MAGIC[x.kind]
    return n, e.fma(n, -low, e.fma(n, -high, x))


def exp(e: Emitter, x: Value) -> Value:
    """e^x; overflows to infinity and underflows gradually to zero."""
    low, high = (-104.0, 89.0) if x.kind == "f32" else (-746.0, 710.0)
    clamped = e.where(x < low, low, e.where(x > high, high, x))
    n, r = _reduced(e, clamped)
    p = polynomial(e, r, [1 / math.factorial(k) for k in range(8 if x.kind == "f32" else 14)])
    half = e.call("floor", n * 0.5)  # in two steps, so that 2^n stays normal
    return p * _power_of_two(e, half) * _power_of_two(e, n - half)


def expm1(e: Emitter, x: Value) -> Value:
    """e^x - 1 without cancellation at 0."""
    low, high = (-20.0, 88.7) if x.kind == "f32" else (-40.0, 709.7)
    clamped = e.where(x < low, low, e.where(x > high, high, x))
    n, r = _reduced(e, clamped)
    p = _expm1_near_zero(e, r)
    half = e.call("floor", n * 0.5)
    first, second = _power_of_two(e, half), _power_of_two(e, n - half)
    # 2^n (p + 1) - 1 = 2^n p + (2^n - 1), and 2^n = first * second.
    scaled = e.fma(p * first, second, e.fma(first, second, -1.0))
    return e.where(x > high, x * math.inf, scaled)


def _expm1_near_zero(e: Emitter, r: Value) -> Value:
    terms = [1 / math.factorial(k) for k in range(2, 8 if r.kind == "f32" else 15)]
    return e.fma(r * r, polynomial(e, r, terms), r)


def tanh(e: Emitter, x: Value) -> Value:
    """tanh x = t / (t + 2) with ``t = e^(2x) - 1``, on ``|x|``; NaN passes through every line."""
    top = 9.5 if x.kind == "f32" else 20.0
    integer, shift, bias = _INT[x.kind]
    magic = _MAGIC[x.kind]
    magnitude = e.call("fabs", x)
    magnitude = e.where(magnitude > top, top, magnitude)
    moved = e.fma(magnitude, 2 / math.log(2), magic)
    n = moved - magic
    high, low = _LN2[x.kind]
    r = e.fma(n, -low, e.fma(n, -high, magnitude * 2.0))
    two = e.bits(e.shift("shl", e.bits(moved, integer), shift) + (bias << shift), x.kind)
    t = e.fma(_expm1_near_zero(e, r), two, two - 1.0)
    return e.call("copysign", t / (t + 2.0), x)


def sigmoid(e: Emitter, x: Value) -> Value:
    """1 / (1 + e^-x)."""
    return 1.0 / (exp(e, -x) + 1.0)


def log(e: Emitter, x: Value) -> Value:
    """Natural logarithm; -inf at 0, NaN below."""
    return _log_of(e, x, None)


def log1p(e: Emitter, x: Value) -> Value:
    """log(1 + x): what rounding ``1 + x`` loses is put back."""
    one = x + 1.0
    lost = e.where(e.call("fabs", x) < 1.0, x - (one - 1.0), 1.0 - (one - x))
    y = _log_of(e, one, e.where(one > 0.0, lost / one, 0.0))
    return e.where(e.compare("eq", x, math.inf), x, e.where(e.compare("eq", one, 1.0), x, y))


def _log_of(e: Emitter, x: Value, correction: Value | None) -> Value:
    integer, shift, _ = _INT[x.kind]
    tiny = 2.0**-126 if x.kind == "f32" else 2.0**-1022
    subnormal = x < tiny
    grow = 24 if x.kind == "f32" else 54
    y = e.where(subnormal, x * 2.0**grow, x)
    bits = e.bits(y, integer)
    # The exponent that brings the mantissa into [sqrt(1/2), sqrt(2)).
    root = (
        int(np.float32(math.sqrt(0.5)).view(np.int32))
        if x.kind == "f32"
        else int(np.float64(math.sqrt(0.5)).view(np.int64))
    )
    k = e.shift("ashr", bits - root, shift)
    m = e.bits(bits - e.shift("shl", k, shift), x.kind)
    k_float = e.convert(k, x.kind) - e.where(subnormal, float(grow), e.constant(0.0, x.kind))
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    count = 5 if x.kind == "f32" else 12
    series = polynomial(e, z, [2 / (2 * j + 3) for j in range(count)])
    half = f * f * 0.5
    # log(1 + f) = f - f^2/2 + s (f^2/2 + z series): the leading part is exact.
    rest = s * e.fma(z, series, half)
    high, low = _LN2[x.kind]
    tail = e.fma(k_float, low, rest)
    if correction is not None:
        tail = tail + correction
    y = e.fma(k_float, high, f - (half - tail))
    y = e.where(e.compare("eq", x, 0.0), -math.inf, e.where(e.compare("eq", x, math.inf), math.inf, y))
    return e.where(e.logic("or", x < 0.0, e.compare("ne", x, x)), math.nan, y)


@cache
def _erfc_fit(kind: str) -> tuple[float, ...]:
    """Coefficients of ``exp(x^2) erfc(x)`` on [1, 6.5] as a polynomial in ``t``, t in [-1, 1]."""
    degree = 11 if kind == "f32" else 24
    nodes = np.cos((np.arange(degree + 1) + 0.5) * math.pi / (degree + 1))
    values = [_scaled_erfc(_from_t(t)) for t in nodes]
    fitted = np.polynomial.chebyshev.Chebyshev.fit(nodes, values, degree, domain=[-1, 1])
    return tuple(float(c) for c in fitted.convert(kind=np.polynomial.Polynomial).coef)


def _from_t(t: float) -> float:
    # t = a / (x + 2) + b takes [1, 6.5] to [1, -1]: flat where erfc(x) exp(x^2) is flat.
    u = (t - _B) / _A
    return 1 / u - 2.0


_A = 2.0 / (1 / 3.0 - 1 / 8.5)
_B = 1.0 - _A / 3.0


def _scaled_erfc(x: float) -> float:
    """exp(x^2) erfc(x), by its continued fraction for large x."""
    if x < 3.0:
        return math.exp(x * x) * math.erfc(x)
    f = 0.0
    for k in range(120, 0, -1):
        f = k / 2 / (x + f)
    return 1 / (math.sqrt(math.pi) * (x + f))


def erf(e: Emitter, x: Value) -> Value:
    """The error function: its series below 1, ``1 - exp(-x^2) q(x)`` above."""
    magnitude = e.call("fabs", x)
    z = x * x
    count = 10 if x.kind == "f32" else 19
    series = [2 / math.sqrt(math.pi) * (-1) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(count)]
    small = x * polynomial(e, e.where(z > 1.0, 1.0, z), series)
    u = e.where(magnitude > 6.5, 6.5, magnitude)
    t = e.fma(_A / (u + 2.0), 1.0, _B)
    large = 1.0 - exp(e, -(u * u)) * polynomial(e, t, _erfc_fit(x.kind))
    y = e.where(magnitude < 1.0, small, e.call("copysign", large, x))
    return e.where(e.compare("ne", x, x), x, y)


_PI_2 = {
    "f32": (1.5703125, 4.837512969970703e-04, 7.549789948768648e-08),
    "f64": (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21),
}


def sin(e: Emitter, x: Value) -> Value:
    """Sine."""
    return _trigonometric(e, x, 0)


def cos(e: Emitter, x: Value) -> Value:
    """Cosine."""
    return _trigonometric(e, x, 1)


def _trigonometric(e: Emitter, x: Value, shift: int) -> Value:
    """sin(x + shift pi/2): reduction by pi/2 in three parts, then one of two polynomials.

    In float32 the reduction is made in float64.
    """
    if x.kind == "f32":
        wide = e.convert(x, "f64")
        n = e.call("rint", wide * (2 / math.pi))
        first, second, _ = _PI_2["f64"]
        r = e.convert(e.fma(n, -second, e.fma(n, -first, wide)), "f32")
        quadrant = e.convert(n, "i64") + shift
        low_bit = e.compare("ne", e.logic("and", quadrant, _one(e, quadrant, 1)), 0)
        high_bit = e.compare("ne", e.logic("and", quadrant, _one(e, quadrant, 2)), 0)
    else:
        n = e.call("rint", x * (2 / math.pi))
        first, second, third = _PI_2["f64"]
        r = e.fma(n, -third, e.fma(n, -second, e.fma(n, -first, x)))
        quadrant = e.convert(n, "i64") + shift
        low_bit = e.compare("ne", e.logic("and", quadrant, _one(e, quadrant, 1)), 0)
        high_bit = e.compare("ne", e.logic("and", quadrant, _one(e, quadrant, 2)), 0)
    z = r * r
    count = 5 if x.kind == "f32" else 9
    odd = [(-1) ** (k + 1) / math.factorial(2 * k + 3) for k in range(count)]
    even = [(-1) ** k / math.factorial(2 * k + 4) for k in range(count)]
    sine = e.fma(r * z, polynomial(e, z, odd), r)
    cosine = e.fma(z * z, polynomial(e, z, even), e.fma(z, -0.5, 1.0))
    y = e.where(low_bit, cosine, sine)
    y = e.where(high_bit, -y, y)
    return y


def _one(e: Emitter, like: Value, number: int) -> Value:
    return e.constant(number, like.kind, like.lanes)


def power(e: Emitter, a: Value, b: Operand) -> Value:
    """``a^b``: products for small whole exponents, roots for halves, else the C library's function per lane."""
    number = b.number if isinstance(b, Value) else b
    if number is not None and float(number).is_integer() and abs(number) <= 16:
        return _whole_power(e, a, int(number))
    if number == 0.5:
        return e.call("sqrt", a)
    if number == -0.5:
        return 1.0 / e.call("sqrt", a)
    if number is not None and float(number * 2).is_integer() and abs(number) <= 8:
        return e.call("sqrt", a) * _whole_power(e, a, math.floor(number))
    a, b = e.together(a, b)
    return e.call("pow", a, b)


def _whole_power(e: Emitter, a: Value, n: int) -> Value:
    if n < 0:
        return 1.0 / _whole_power(e, a, -n)
    if n == 0:
        return e.constant(1.0, a.kind, a.lanes)
    y: Value | None = None
    square = a
    while n:
        if n & 1:
            y = square if y is None else y * square
        n >>= 1
        if n:
            square = square * square
    assert y is not None
    return y
