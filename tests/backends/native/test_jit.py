"""Machine code: the cache of objects, other processors, and memory over many engines."""

from __future__ import annotations

import gc
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chainrule.backends.native import jit
from chainrule.backends.native.program import emit
from chainrule.verbs.native import native_engine, shared


def trained(width: int = 6) -> tuple[Any, np.ndarray]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    x, y = torch.randn(12, 3), torch.randn(12, 2)
    shared._COMPILED.clear()
    engine = native_engine(model, (x[:4], y[:4]), nn.MSELoss(), torch.optim.Adam(model.parameters()))
    return engine, engine.run((x, y), None, 4, np.full(3, 0.01))


def test_a_second_process_finds_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    first, losses = trained()
    again, same = trained()
    assert not first.first.cached and again.first.cached
    assert np.array_equal(losses, same)
    (entry,) = (tmp_path / "native").glob("*.o")
    assert not list((tmp_path / "native").glob("*.part"))
    assert (tmp_path / "native").stat().st_mode & 0o077 == 0
    trained(7)
    assert len(list((tmp_path / "native").glob("*.o"))) == 2
    assert entry.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_damaged_entries_are_rebuilt(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    _, losses = trained()
    (entry,) = (tmp_path / "native").glob("*.o")
    body = entry.read_bytes()
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        flipped = body[:-100] + bytes([body[-100] ^ 1]) + body[-99:]
        entry.write_bytes({"cut": body[: len(body) // 2], "flipped": flipped, "empty": b""}[damage])
    engine, same = trained()
    assert not engine.first.cached
    assert np.array_equal(losses, same)
    if damage != "folder":
        assert entry.read_bytes() == body


def test_a_directory_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", str(tmp_path))
    (tmp_path / "native").mkdir()
    (tmp_path / "native").chmod(0o777)
    assert jit.cache_directory() is None
    trained()
    assert not list((tmp_path / "native").iterdir())
    monkeypatch.setenv("CHAINRULE_CACHE", "")
    assert jit.cache_directory() is None


TARGETS = {
    "avx2": (jit.Target("x86_64-unknown-linux-gnu", "x86-64-v3", "", 32, 16), r"vfmadd\w+ps.*%ymm"),
    "avx512": (jit.Target("x86_64-unknown-linux-gnu", "x86-64-v4", "", 32, 32), r"vfmadd\w+ps.*%ymm"),
    "neon": (jit.Target("aarch64-unknown-linux-gnu", "generic", "+neon", 16, 32), r"fmla\s+v\d+\.4s"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_one_emitter_for_every_processor(name: str) -> None:
    target, product = TARGETS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 5))
    example = torch.randn(10, 10), torch.randn(10, 5)
    engine = native_engine(model, example, nn.MSELoss(), torch.optim.Adam(model.parameters()))
    traced = engine.traced
    text, _, _, _ = emit(traced.graph, traced.batch, traced.rule.rates, None, (), target)
    assert f"<{target.bytes // 4} x float>" in text
    code = jit.assembly(text, target.triple, target.cpu, target.features)
    assert len(re.findall(product, code)) > 50
    assert not re.search(r"\b(tanhf?|expf?)\b", code)  # no call of the C library


def resident() -> int:
    """KiB of this process now (its high-water mark would hide what earlier tests took and gave back)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_engines_leave_no_memory_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINRULE_CACHE", "")
    torch.manual_seed(0)
    x, y = torch.randn(12, 3), torch.randn(12, 2)

    def fits(count: int) -> None:
        for _ in range(count):
            model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
            engine = native_engine(model, (x[:4], y[:4]), nn.MSELoss(), torch.optim.Adam(model.parameters()))
            engine.run((x, y), None, 4, np.full(3, 0.01))
            engine.store()

    fits(300)
    before = resident()
    fits(3000)
    after = resident()
    assert after - before < 4096, f"{after - before} KiB more after 3,000 fits"  # 1.4 bytes per parameter and fit
