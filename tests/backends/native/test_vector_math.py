"""The functions of the native back end against higher precision, in units in the last place, and at special values."""

from __future__ import annotations

import ctypes
import math

import mpmath
import numpy as np
import pytest

from chainrule.backends.native import jit
from chainrule.backends.native import vector_math as vm
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.values import Affine

DTYPES = {"f32": np.float32, "f64": np.float64}


def compiled(name: str, kind: str):
    """The function on whole arrays (of a multiple of 8 elements)."""
    target = jit.host()
    lanes = target.bytes // (4 if kind == "f32" else 8)
    e = Emitter(lanes)

    def body() -> None:
        def turn(var, _):
            at = Affine(((var, 1),), 0, 1)
            e.store(getattr(vm, name)(e, e.load("%x", kind, at)), "%y", at)
            return []

        e.loop("%n", turn, step=lanes)

    e.function("f", "ptr %x, ptr %y, i64 %n", body)
    engine = jit.loaded(jit.compiled(e.module(), target), target)
    function = jit.function(engine, "f", 3)

    def run(x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, DTYPES[kind])
        y = np.empty_like(x)
        function(x.ctypes.data, y.ctypes.data, ctypes.c_void_p(len(x)))
        assert engine is not None
        return y

    return run


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The value in longer precision than the dtype's."""
    functions = {"sigmoid": lambda t: 1 / (1 + mpmath.exp(-t))}
    f = functions.get(name) or getattr(mpmath, name)
    with mpmath.workprec(120):
        return np.array([f(mpmath.mpf(float(t))) for t in x], dtype=object)


RANGES = {
    "exp": [(-87, 88), (-1, 1), (-1e-6, 1e-6)],
    "expm1": [(-17, 80), (-1, 1), (-1e-5, 1e-5)],
    "log": [(1e-30, 1e30), (0.5, 2), (0.99, 1.01)],
    "log1p": [(-0.9, 10), (-1e-4, 1e-4), (1, 1e6)],
    "tanh": [(-10, 10), (-1, 1), (-1e-4, 1e-4)],
    "sigmoid": [(-80, 80), (-3, 3)],
    "erf": [(-6, 6), (-1.2, 1.2), (-1e-3, 1e-3)],
    "sin": [(-3, 3), (-8000, 8000)],
    "cos": [(-3, 3), (-8000, 8000)],
}


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", sorted(vm.ULP))
def test_error_is_within_the_stated_bound(name: str, kind: str) -> None:
    generator = np.random.default_rng(0)
    run = compiled(name, kind)
    digits = 24 if kind == "f32" else 53
    worst = 0.0
    for low, high in RANGES[name]:
        if low > 0 and high / low > 1e6:
            x = np.exp(generator.uniform(math.log(low), math.log(high), 2048))
        else:
            x = generator.uniform(low, high, 2048)
        x = x.astype(DTYPES[kind])
        for got, want in zip(run(x), exact(name, x), strict=True):
            size = mpmath.frexp(want)[1]
            if size < -120:  # where the result itself is rounded to zero or near it
                continue
            worst = max(worst, float(abs(mpmath.mpf(float(got)) - want) / mpmath.ldexp(1, int(size) - digits)))
    # Half a unit is the best possible; the bound is one of vector_math's documented numbers.
    assert worst <= vm.ULP[name][0 if kind == "f32" else 1], worst


SPECIAL = {
    "exp": {-math.inf: 0.0, math.inf: math.inf, 0.0: 1.0, 1e5: math.inf, -1e5: 0.0},
    "expm1": {-math.inf: -1.0, math.inf: math.inf, 0.0: 0.0, 1e5: math.inf},
    "log": {0.0: -math.inf, math.inf: math.inf, 1.0: 0.0, -1.0: math.nan},
    "log1p": {-1.0: -math.inf, math.inf: math.inf, 0.0: 0.0, -2.0: math.nan, 1e-30: 1e-30},
    "tanh": {-math.inf: -1.0, math.inf: 1.0, 0.0: 0.0, 50.0: 1.0},
    "sigmoid": {-math.inf: 0.0, math.inf: 1.0, 0.0: 0.5},
    "erf": {-math.inf: -1.0, math.inf: 1.0, 0.0: 0.0},
    "sin": {0.0: 0.0},
    "cos": {0.0: 1.0},
}


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", sorted(vm.ULP))
def test_special_values(name: str, kind: str) -> None:
    cases = SPECIAL[name] | {math.nan: math.nan}
    x = np.array([*cases, *[1.0] * (-len(cases) % 8)], DTYPES[kind])
    got = compiled(name, kind)(x)[: len(cases)]
    np.testing.assert_array_equal(got, np.array(list(cases.values()), DTYPES[kind]))
