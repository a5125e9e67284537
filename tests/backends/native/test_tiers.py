"""Quick and better machine code: the same bits, taken over in the middle of a run, refused where they differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from chainrule.backends.native import jit, search, tiers
from chainrule.backends.native.program import Program
from chainrule.errors import BackendError
from chainrule.verbs.native import native_engine, shared
from tests.verbs.native.test_random_networks import OPTIMIZERS, SETTINGS, cases, made


@pytest.fixture(autouse=True)
def nothing_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", "")


def engine_of(width: int) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """A model of a width that no other test has, so that it is compiled here."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
    data = torch.randn(40, 6), torch.randint(0, 3, (40,))
    optimizer = torch.optim.Adam(model.parameters())
    return native_engine(model, tuple(t[:8] for t in data), nn.CrossEntropyLoss(), optimizer), data


def trained(engine: Any, data: tuple[torch.Tensor, ...], calls: int) -> list[np.ndarray]:
    order = np.tile(np.arange(40), 2)
    return [engine.run(data, order, 8, np.full(10, 0.01)) for _ in range(calls)]


def test_better_code_takes_over_without_a_trace_in_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, data = engine_of(37)
    program: Program = engine.first
    assert program.improving is not None and program.improving.better is None
    monkeypatch.setattr(program.improving, "_pays", 0.0)
    first = trained(engine, data, 3)
    tiers.BACKGROUND.wait()
    assert program.improving.better is not None and program.improving.error is None
    rest = trained(engine, data, 3)
    monkeypatch.setattr(program.improving, "better", None)
    engine.load()
    assert all(np.array_equal(a, b) for a, b in zip([*first, *rest], trained(engine, data, 6), strict=True))


def test_a_long_call_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, data = engine_of(38)
    order = np.tile(np.arange(40), 100)
    monkeypatch.setattr(tiers, "_PIECE", 1e-5)
    pieces = engine.run(data, order, 8, np.full(500, 0.01))
    engine.load()
    monkeypatch.setattr(tiers, "_PIECE", 1e9)
    assert np.array_equal(pieces, engine.run(data, order, 8, np.full(500, 0.01)))


def test_better_code_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, data = engine_of(39)
    compiled = jit.compiled

    def wrong(text: str, target: jit.Target, quick: bool = False) -> bytes:
        return compiled(text if quick else text.replace("fadd", "fsub"), target, quick)

    monkeypatch.setattr(jit, "compiled", wrong)
    monkeypatch.setattr(engine.first.improving, "_pays", 0.0)
    trained(engine, data, 2)
    tiers.BACKGROUND.wait()
    with pytest.raises(BackendError, match="computes something else"):
        trained(engine, data, 1)


def test_what_was_compiled_in_a_hurry_is_kept_with_its_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    first, data = engine_of(41)
    key = first.first.key
    description, _ = jit.read(key) or ({}, b"")
    assert description["text"] > 0
    first.compiled.programs.clear()
    again, _ = engine_of(41)
    assert again.first.cached and again.first.improving is not None
    again.first.improving.improve()
    assert again.first.improving.error is None
    description, _ = jit.read(key) or ({}, b"")
    assert not description.get("text")
    again.compiled.programs.clear()
    last, _ = engine_of(41)
    assert last.first.cached and last.first.improving.text is None
    assert np.array_equal(trained(first, data, 1)[0], trained(last, data, 1)[0])


def test_blocks_are_searched_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    engine, data = engine_of(43)
    first = trained(engine, data, 2)
    asked: list[float] = []
    measured = search._measured

    def times(*given: Any) -> float:
        asked.append(measured(*given))
        return asked[-1] / len(asked)  # each later shape seems to be faster

    monkeypatch.setattr(search, "_measured", times)
    engine.settle()
    assert engine.first.improving.better is not None and len(asked) > 4
    engine.load()
    assert all(np.array_equal(a, b) for a, b in zip(first, trained(engine, data, 2), strict=True))
    engine.compiled.programs.clear()
    again, _ = engine_of(43)
    assert again.first.cached and again.first.improving is None
    assert np.array_equal(first[0], trained(again, data, 1)[0])


def check(case: dict[str, Any]) -> None:
    model, data, loss, dtype = made(case)
    model = model.to(dtype)
    example = tuple((t.to(dtype) if t.is_floating_point() else t)[: case["batch"]] for t in data)
    shared._COMPILED.clear()
    program = native_engine(model, example, loss, OPTIMIZERS[case["optimizer"]](model.parameters())).first
    assert program.improving is not None
    program.improving.improve()
    assert program.improving.error is None
    shape = [(1, 1), (6, 4), (3, 5), (12, 2), (2, 8), (5, 5)][case["seed"] % 6]
    text, _ = program.improving.search.write(blocks={position: shape for position in range(200)})
    program.improving._take_over(text)
    assert program.improving.error is None, shape


@settings(max_examples=6, **SETTINGS)
@given(cases())
def test_both_give_the_same_bits(case: dict[str, Any]) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=300, **SETTINGS)
@given(cases())
def test_both_give_the_same_bits_of_many(case: dict[str, Any]) -> None:
    check(case)
