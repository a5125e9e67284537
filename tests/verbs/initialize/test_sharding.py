"""The same bits for everyone: whole, sharded along any dimensions of any mesh, wrapped, or materialised from meta."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import chainrule as cr
from chainrule.verbs.initialize.held import held


def network() -> nn.Module:
    torch.manual_seed(0)
    body: list[nn.Module] = []
    for k in range(9):  # a chain that auto makes mirrored
        body += [nn.Linear(12 if k == 0 else 18, 18), nn.GELU()]
    return nn.Sequential(*body, nn.Linear(18, 7))


def batch() -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 12, generator=generator), torch.randint(0, 7, (16,), generator=generator)


def start(model: nn.Module, scheme: str) -> None:
    cr.initialize_(model, batch(), nn.CrossEntropyLoss(), scheme=scheme, seed=3)


@contextmanager
def rank_of(rank: int, world: int) -> Iterator[None]:
    """This process as one of several, without the others: what is local needs no communication."""
    from torch.distributed.tensor import debug
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        debug._clear_sharding_prop_cache()  # it holds meshes, in which this process has its old rank


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(18, 12), (7, 18), (5, 3), (1, 9), (6, 5, 3)])
@pytest.mark.parametrize(
    ("mesh", "placements"),
    [((2,), [Shard(0)]), ((4,), [Shard(1)]), ((2, 2), [Shard(0), Shard(1)]), ((2, 2), [Shard(0), Shard(0)]),
     ((2, 2), [Replicate(), Shard(1)])],
)  # fmt: skip
def test_shards_hold_what_torch_gives_them(shape: tuple[int, ...], mesh: tuple[int, ...], placements: Any) -> None:
    # The indices of the shard against torch's own distribution of the tensor that holds them.
    whole = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    world = int(torch.tensor(mesh).prod())
    for rank in range(world):
        with rank_of(rank, world):
            of = init_device_mesh("cpu", mesh)
            tensor = distribute_tensor(whole, of, placements, src_data_rank=None)
            here = held("w", tensor)
            assert torch.equal(here.of(whole), tensor.to_local())
            full, part = torch.empty(shape), here.draw("normal", 5, 1.0)
            from chainrule.verbs.initialize.generator import fill

            flat = full.reshape(-1)
            fill(flat, "normal", 5)
            assert torch.equal(part, here.of(flat.reshape(shape)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", ["he", "orthogonal"])
def test_a_sharded_model_gets_the_bits_of_the_whole(scheme: str) -> None:
    whole = network()
    cr.initialize_(whole, scheme=scheme, seed=3)
    for rank in range(4):
        with rank_of(rank, 4):
            of = init_device_mesh("cpu", (2, 2))
            model = network()
            for module in model.modules():
                for name, p in list(module._parameters.items()):
                    if p is not None:
                        placements = [Shard(0), Shard(1)] if p.dim() == 2 else [Replicate(), Shard(0)]
                        sharded = distribute_tensor(p.detach(), of, placements, src_data_rank=None)
                        module._parameters[name] = nn.Parameter(sharded)
            cr.initialize_(model, scheme=scheme, seed=3)
            for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
                assert isinstance(p.data, DTensor)
                assert torch.equal(p.data.to_local(), held(name, p).of(q.detach())), name


@pytest.mark.parametrize("held_before", [float("nan"), 3.0])
@pytest.mark.parametrize("scheme", ["he", "auto"])
def test_meta_then_materialised(scheme: str, held_before: float) -> None:
    whole = network()
    start(whole, scheme)
    with torch.device("meta"):
        model = network()
    model.to_empty(device="cpu")
    with torch.no_grad():  # whatever the memory held
        for p in model.parameters():
            p.data.fill_(held_before).view(-1)[::2].mul_(1.1)
    start(model, scheme)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_plan_on_meta_is_the_plan_with_storage() -> None:
    # Named schemes need no numbers at all; nothing is written, and nothing fails.
    with torch.device("meta"):
        model = network()
    r = cr.initialize_(model, scheme="he")
    assert r["0.weight"].std == cr.initialize_(network(), scheme="he")["0.weight"].std
    assert all(p.is_meta for p in model.parameters())


def test_wrappers_do_not_change_the_numbers() -> None:
    whole = network()
    start(whole, "auto")
    inner = network()
    start(torch.compile(inner), "auto")  # not run, only wrapped
    assert all(torch.equal(p, q) for p, q in zip(inner.parameters(), whole.parameters(), strict=True))


# ---- real processes ----------------------------------------------------------------------------------------
def _process(rank: int, world: int, mode: str, scheme: str, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/{mode}-{scheme}")
    model = network()
    if mode == "fsdp":
        from torch.distributed.fsdp import fully_shard

        of = init_device_mesh("cpu", (world,))
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=of)
        fully_shard(model, mesh=of)
    elif mode == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        of = init_device_mesh("cpu", (world,))
        for module in model.modules():
            for name, p in list(module._parameters.items()):
                if p is not None:
                    dim = min(int(mode), p.dim() - 1)
                    module._parameters[name] = nn.Parameter(distribute_tensor(p.detach(), of, [Shard(dim)]))
    start(model, scheme)
    full = {
        n.removeprefix("module."): (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for n, p in model.named_parameters()
    }
    if rank == 0:
        torch.save(full, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("world", "mode"), [(2, "0"), (4, "1"), (2, "fsdp"), (2, "ddp")])
@pytest.mark.parametrize("scheme", ["auto", "orthogonal"])
def test_real_processes_agree_with_one(world: int, mode: str, scheme: str, tmp_path: Path) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    import test_sharding  # the name under which the processes find it

    whole = network()
    start(whole, scheme)
    torch.multiprocessing.spawn(test_sharding._process, args=(world, mode, scheme, str(tmp_path)), nprocs=world)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert all(torch.equal(found[n], p) for n, p in whole.named_parameters())
