"""Vectors of other widths than this machine's best, and another processor under an emulator: the numbers of torch."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chainrule.backends.native import jit
from chainrule.backends.native import program as programs
from chainrule.verbs.native import shared
from tests.verbs.native.training import assert_same, rounding, trained_twice

NEON = jit.Target("aarch64-unknown-linux-gnu", "cortex-a72", "+neon", 16, 32)
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")

MAIN = """
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
void call(uint64_t *);
static uint64_t number(FILE *f) { uint64_t n; if (fread(&n, 8, 1, f) != 1) exit(2); return n; }
static void *block(FILE *f, uint64_t n) {
    void *p = aligned_alloc(64, (n + 127) / 64 * 64);
    if (n && fread(p, 1, n, f) != n) exit(3);
    return p;
}
int main(int argc, char **argv) {
    FILE *in = fopen(argv[1], "rb");
    uint64_t parts = number(in), size[16], steps = number(in);
    void *held[16];
    for (uint64_t k = 0; k < parts; k++) { size[k] = number(in); held[k] = block(in, size[k]); }
    /* arena, order, rates, losses, then the data */
    uint64_t given[7] = {(uint64_t)held[0], (uint64_t)(held + 4), (uint64_t)held[1], steps, (uint64_t)held[2],
                         (uint64_t)held[3], 0};
    call(given);
    FILE *out = fopen(argv[2], "wb");
    fwrite(held[0], 1, size[0], out);
    fwrite(held[3], 1, size[3], out);
    return fclose(out);
}
"""


class Emulated:
    """Machine code of another processor, called like that of this one: memory goes in and comes out by files."""

    def __init__(self, code: bytes, folder: Path, data: tuple[torch.Tensor, ...]) -> None:
        self.folder, self.data = folder, {t.data_ptr(): t for t in data}
        (folder / "main.c").write_text(MAIN)
        (folder / "code.o").write_bytes(code)
        command = [str(COMPILER), "-static", "-O1", "main.c", "code.o", "-lm", "-o", "run"]
        subprocess.run(command, cwd=folder, check=True)
        self.program: Any = None
        self.calls = 0

    def __call__(self, address: int) -> None:
        arena, data, order, steps, rates, losses, _ = (ctypes.c_uint64 * 7).from_address(address)
        batch, groups = self.program.batch, max(1, len(self.program.rates))
        size = batch[0].shape[0]

        def memory(start: int, count: int) -> Any:
            return (ctypes.c_char * count).from_address(start)

        room = memory(arena, self.program.layout.arena.size + 4096)
        found = memory(losses, 8 * steps)
        pointers = (ctypes.c_uint64 * len(batch)).from_address(data)
        parts = [bytes(room), bytes(memory(order, 8 * steps * size)), bytes(memory(rates, 8 * steps * groups))]
        parts += [bytes(found), *(self.data[p].numpy().tobytes() for p in pointers)]
        with open(self.folder / "in", "wb") as file:
            file.write(np.array([len(parts), steps], np.uint64).tobytes())
            for part in parts:
                file.write(np.uint64(len(part)).tobytes() + part)
        subprocess.run([str(EMULATOR), "./run", "in", "out"], cwd=self.folder, check=True, timeout=120)
        out = (self.folder / "out").read_bytes()
        room[:] = out[: len(room)]
        found[:] = out[len(room) :]
        self.calls += 1


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(45, 7), nn.GELU(), nn.Linear(7, 4),
    )  # fmt: skip


def dense() -> nn.Module:
    sizes = nn.Linear(6, 21), nn.LayerNorm(21), nn.Tanh(), nn.Linear(21, 16), nn.Softplus(), nn.Linear(16, 3)
    return nn.Sequential(*sizes)


def residual(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
    x, t = (points[:, k : k + 1].detach().requires_grad_(True) for k in range(2))
    u = model(torch.cat([x, t], 1))
    one = torch.ones_like(u)
    u_x = torch.autograd.grad(u, x, one, create_graph=True)[0]
    u_xx = torch.autograd.grad(u_x, x, one, create_graph=True)[0]
    return ((torch.autograd.grad(u, t, one, create_graph=True)[0] + torch.sin(u) - u_xx) ** 2).mean()


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "images": lambda: {
        "model": lenet(), "data": (torch.rand(24, 1, 10, 10), torch.randint(0, 4, (24,))),
        "loss": nn.CrossEntropyLoss(), "make": lambda p: torch.optim.Adam(p, 1e-3),
    },
    "dense": lambda: {
        "model": dense(), "data": (torch.randn(24, 6), torch.randn(24, 3)), "loss": nn.HuberLoss(),
        "make": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01),
    },
    "physics": lambda: {
        "model": nn.Sequential(nn.Linear(2, 18), nn.Tanh(), nn.Linear(18, 18), nn.Tanh(), nn.Linear(18, 1)),
        "data": (torch.randn(24, 2),), "loss": None, "objective": residual,
        "make": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5),
    },
}  # fmt: skip


def trained(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = CASES[name]()
    ours, torchs = trained_twice(
        given["model"], given["data"], given["loss"], given["make"], objective=given.get("objective"), batch=8,
        steps=5, dtype=dtype,
    )  # fmt: skip
    assert_same(ours, torchs, rounding(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [16, 32, 64])
def test_other_widths(width: int, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    host = jit.host()
    if width > 32 and "+avx512f" not in host.features:
        pytest.skip("a processor without vectors of 512 bits")
    monkeypatch.setattr(jit, "host", lambda: replace(host, bytes=width))
    monkeypatch.setenv("CHAINRULE_CACHE", "")
    monkeypatch.setattr(shared, "_COMPILED", OrderedDict())
    trained(name, dtype)


@pytest.mark.skipif(COMPILER is None or EMULATOR is None, reason="needs qemu-aarch64 and aarch64-linux-gnu-gcc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_neon_under_an_emulator(name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llvm = jit._llvm()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    made: list[Emulated] = []

    def build(graph: Any, batch: Any, rates: Any, fixed: Any = None, **_: Any) -> Any:
        text, layout, used, draws = programs.emit(graph, batch, rates, fixed, (), NEON)
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Emulated(jit.compiled(text, NEON), folder, data))
        program = programs.Program(graph, layout, made[-1], used, tuple(rates), draws, False, None, "")
        made[-1].program = program
        return program

    torch.manual_seed(0)
    given = CASES[name]()
    data = tuple(t.to(dtype) if t.is_floating_point() else t for t in given["data"])
    monkeypatch.setattr(shared, "build", build)
    monkeypatch.setattr(shared, "_COMPILED", OrderedDict())
    ours, torchs = trained_twice(
        given["model"], data, given["loss"], given["make"], objective=given.get("objective"), batch=8, steps=5,
        dtype=dtype,
    )  # fmt: skip
    assert made and made[0].calls == 2  # the first step, held against the torch back end, and the run
    assert_same(ours, torchs, rounding(dtype))
