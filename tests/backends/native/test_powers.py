"""Powers of the number of steps have the bits that multiplying on from step to step gives."""

from __future__ import annotations

import pytest

from chainrule.backends.native.optimizers import _product


@pytest.mark.parametrize("base", [0.0, 0.3, 0.9, 0.999, 0.99999, 1.0])
@pytest.mark.parametrize("count", [0, 1, 5, 4096, 4097, 30_000])
def test_one_by_one(base: float, count: int) -> None:
    value = 1.0
    for _ in range(count):
        value *= base
    assert _product(base, count) == value


def test_a_power_that_shrinks_no_more_ends_the_product() -> None:
    assert 0.0 < _product(0.9, 10**15) < 1e-320
    assert _product(0.5, 10**15) == 0.0
