"""Run by test_distributed.py under torchrun: trains in two processes, rank 0 writes what came out."""

from __future__ import annotations

import os
import signal
import sys

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

import chainrule as cr


def parts() -> dict:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x[:, :2] * x[:, 2:])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return {"model": model, "data": data, "optimizer": optimizer, "x": x}


if __name__ == "__main__":
    kind, out = sys.argv[1:3]
    given = parts()
    accelerator = {
        "ddp": lambda: None,  # fit makes a plain one
        "save": lambda: None,
        "resume": lambda: None,
        "interrupt": lambda: None,
        "accumulate": lambda: Accelerator(cpu=True, gradient_accumulation_steps=2),
        "bf16": lambda: Accelerator(cpu=True, mixed_precision="bf16"),
        "fsdp2": lambda: Accelerator(cpu=True),
    }
    made = accelerator["fsdp2" if kind.startswith("fsdp2") else kind]()
    if kind.startswith("fsdp2"):
        mesh = init_device_mesh("cpu", (2,))
        for layer in (given["model"][0], given["model"]):
            fully_shard(layer, mesh=mesh)
        given["optimizer"] = torch.optim.SGD(given["model"].parameters(), 0.1, momentum=0.9)
    size = 3 if kind == "accumulate" else 6
    loader = DataLoader(given["data"], size, shuffle=False)
    scheduler = torch.optim.lr_scheduler.StepLR(given["optimizer"], 2, 0.5)
    options: dict = {"validation": (given["x"][:8], given["data"].tensors[1][:8])}
    if kind in ("save", "resume", "fsdp2 save", "fsdp2 resume"):
        options |= {"save_dir": out + ".run", "save_every": 0.0, "resume": True}
    stop = {"save": 3, "fsdp2 save": 3, "interrupt": 2}.get(kind)
    if kind == "interrupt":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    if kind == "interrupt" and int(os.environ["RANK"]) == 1:  # Ctrl-C reaches one process only
        options["callbacks"] = [lambda epoch, loss: epoch == stop and os.kill(os.getpid(), signal.SIGINT)]
    elif stop and kind != "interrupt":
        options["callbacks"] = [lambda epoch, loss: epoch == stop]
    h = cr.fit(
        given["model"],
        loader,
        nn.MSELoss(),
        given["optimizer"],
        epochs=6,
        scheduler=scheduler,
        accelerator=made,
        **options,
    )
    weights = given["model"].state_dict()
    weights = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in weights.items()}
    if os.environ["RANK"] == "0":
        torch.save({"loss": h.loss, "weights": weights, "reason": h.reason, "validation": h.validation,
                    "interrupted": h.interrupted, "resumed": h.resumed}, out)  # fmt: skip
    torch.distributed.destroy_process_group()
