"""Models as people write them, against autograd; ``python -m benchmarks.models --written`` prints the table."""

from __future__ import annotations

import warnings

import pytest

from benchmarks import models, written

MODELS = written.written()
# What is called as it is, and why: every other model has no opaque node.
OPAQUE = {
    "Rotary": {"complex numbers in between"},
    "Spectral": {"complex numbers in between"},
    "StateSpace": {"complex numbers in between"},
    "Quantised": {"autograd.Function Rounded"},
}


@pytest.mark.parametrize("name", MODELS)
def test_trains_as_eager_execution_does(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = models.measured(name, MODELS[name])
    assert not row.error
    assert row.bits
    assert row.buffers
    assert row.float64 <= models.FLOAT64
    assert row.float32 <= models.FLOAT32
    assert set(row.opaque) == OPAQUE.get(name, set())
