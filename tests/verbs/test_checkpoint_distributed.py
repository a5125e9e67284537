"""Two processes: the same plan on both, and gradients equal to those of the unplanned run."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import chainrule as cr


def made():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(6)))


def gradients(model, x):
    model.zero_grad()
    model(x).square().mean().backward()
    found = [p.grad for p in model.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g.clone() for g in found]


def wrapped(model, kind):
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def process(rank, kind, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        x = torch.randn(512, 64, generator=torch.Generator().manual_seed(rank))
        expected = gradients(wrapped(made(), kind), x)
        model = made()
        plan = cr.plan(model, x, budget=0.8)
        applied = plan.apply_(model)
        assert applied.modules
        digests = [None, None]
        dist.all_gather_object(digests, (applied.digest, plan.digest))
        assert digests[0] == digests[1]
        found = gradients(wrapped(model, kind), x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        if kind == "ddp":
            own = made()
            small = cr.checkpoint(own, x, budget=0.6)
            found = gradients(wrapped(small, kind), x)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, (kind, port), 2)
