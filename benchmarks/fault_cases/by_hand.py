"""Fixes that are for the training loop or the data, applied as the sentence of the finding says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.fault_cases.table import Setup, blobs


def zeroed(setup: Setup, finding: Any) -> Setup:
    """optimizer.zero_grad() in every step."""
    assert "zero_grad" in finding.fix
    setup.step = None
    return setup


def clipped(setup: Setup, finding: Any) -> Setup:
    """clip_grad_norm_ with the limit that the finding names."""
    match = re.search(r"clip_grad_norm_\(parameters, ([\d.e+-]+)\)", finding.fix)
    assert match is not None and setup.optimizer is not None
    limit, optimizer = float(match[1]), setup.optimizer

    def step() -> float:
        optimizer.zero_grad()
        loss = setup.forward()
        loss.backward()
        nn.utils.clip_grad_norm_(setup.model.parameters(), limit)
        optimizer.step()
        return float(loss.detach())

    setup.step = step
    return setup


def labelled(setup: Setup, finding: Any) -> Setup:
    """Labels that count: padding alone is masked."""
    assert "mask padding only" in finding.fix
    x, _ = setup.batch
    y = torch.arange(len(x)) % 10
    y[:8] = -100
    setup.batch = (x, y)
    return setup


def loaded(setup: Setup, finding: Any) -> Setup:
    """A loader that returns different samples."""
    assert "loader" in finding.fix
    setup.batch = blobs()
    return setup


BY_HAND: dict[str, Callable[[Setup, Any], Setup]] = {"F37": zeroed, "F62": clipped, "F52": labelled, "F56": loaded}
