"""Two processes on gloo give what one process gives on batches of twice the size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import chainrule as cr

pytest.importorskip("accelerate")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def two_processes(kind: str, out: Path) -> dict:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(
        [*command, str(HERE / "distributed_run.py"), kind, str(out)],
        env=environment, cwd=out.parent, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(out, weights_only=True)


def one_process(size: int = 12) -> tuple[cr.FitResult, dict]:
    sys.path.insert(0, str(HERE))
    try:
        from distributed_run import parts
    finally:
        sys.path.remove(str(HERE))
    given = parts()
    scheduler = torch.optim.lr_scheduler.StepLR(given["optimizer"], 2, 0.5)
    loader = torch.utils.data.DataLoader(given["data"], size)
    valid = (given["x"][:8], given["data"].tensors[1][:8])
    h = cr.fit(
        given["model"], loader, nn.MSELoss(), given["optimizer"], epochs=6, scheduler=scheduler, validation=valid
    )
    return h, given["model"].state_dict()


def agrees(found: dict, rtol: float = 1e-4) -> None:
    history, weights = one_process()
    assert found["loss"] == pytest.approx(history.loss, rel=rtol)
    assert found["validation"] == pytest.approx(history.validation, rel=rtol)
    for name, tensor in weights.items():
        torch.testing.assert_close(found["weights"][name], tensor, rtol=rtol, atol=rtol / 10)


def test_ddp(tmp_path: Path) -> None:
    found = two_processes("ddp", tmp_path / "out")
    assert "2 processes through Accelerate (ddp)" in found["reason"]
    agrees(found)


@pytest.mark.slow
def test_fsdp2(tmp_path: Path) -> None:
    found = two_processes("fsdp2", tmp_path / "out")
    assert "fsdp" in found["reason"]
    agrees(found)


@pytest.mark.slow
def test_gradient_accumulation(tmp_path: Path) -> None:
    """Two batches of three in two processes are one of twelve; the history has a loss per batch."""
    found = two_processes("accumulate", tmp_path / "out")
    assert "gradients of 2 batches a step" in found["reason"]
    agrees(found)


@pytest.mark.slow
def test_mixed_precision(tmp_path: Path) -> None:
    found = two_processes("bf16", tmp_path / "out")
    assert "bf16" in found["reason"]
    history, _ = one_process()
    assert found["loss"] == pytest.approx(history.loss, rel=0.05)  # bfloat16: 8 bits
    assert found["loss"] != pytest.approx(history.loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "fsdp2 "])
def test_saved_and_resumed(kind: str, tmp_path: Path) -> None:
    whole = two_processes(kind.strip() or "ddp", tmp_path / "whole")
    two_processes(f"{kind}save", tmp_path / "out")
    (tmp_path / "out").unlink()
    found = two_processes(f"{kind}resume", tmp_path / "out")
    assert found["resumed"] == 3 and found["loss"] == whole["loss"]
    assert all(torch.equal(found["weights"][k], v) for k, v in whole["weights"].items())


@pytest.mark.slow
def test_interrupting_one_process_ends_all(tmp_path: Path) -> None:
    found = two_processes("interrupt", tmp_path / "out")
    assert found["interrupted"] and len(found["loss"]) == 2
