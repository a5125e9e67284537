"""Replicas (DDP) and sharded models (FSDP2) on two processes: the same findings and numbers as one process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
import chainrule as cr

how, rank, world, port, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
torch.manual_seed(0)
net = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.Sigmoid())), nn.Linear(16, 4))
x, y = torch.randn(32, 16), torch.arange(32) % 4
if how != "one":
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    x, y = x.chunk(world)[rank], y.chunk(world)[rank]
if how == "ddp":
    net = nn.parallel.DistributedDataParallel(net)
elif how == "fsdp2":
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (world,))
    for m in net:
        if isinstance(m, nn.Linear):
            fully_shard(m, mesh=mesh)
    fully_shard(net, mesh=mesh)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
with cr.monitor(net, optimizer, every=1) as m:
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
result = cr.diagnose(net, (x, y), F.cross_entropy, optimizer)
if rank == 0:
    first = m.history[0]
    said = {
        "monitor": [[f.kind, f.where] for f in m.findings],
        "diagnose": [[f.kind, f.where] for f in result.worst("warning")],
        "numbers": [first["grad_norm"], first["layers"]["0"]["backward"], first["updates"]["0.weight"]],
    }
    open(out, "w").write(json.dumps(said))
if how != "one":
    dist.destroy_process_group()
"""


def run(how: str, folder: Path) -> dict:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world, out = 1 if how == "one" else 2, folder / f"{how}.json"
    (folder / "worker.py").write_text(WORKER)
    commands = [
        [sys.executable, "-W", "ignore", folder / "worker.py", how, str(k), str(world), str(port), out]
        for k in range(world)
    ]
    processes = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    ends = [p.communicate(timeout=240) for p in processes]
    assert not any(p.returncode for p in processes), ends
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_say_the_same_as_one(how: str, tmp_path: Path) -> None:
    one, two = run("one", tmp_path), run(how, tmp_path)
    assert one["monitor"] == two["monitor"] == [["vanishing", "0 (step 0)"]]
    assert one["diagnose"] == two["diagnose"] == [["vanishing", "0"]]
    assert two["numbers"] == pytest.approx(one["numbers"], rel=1e-5)
