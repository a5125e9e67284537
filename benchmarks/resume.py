"""``kill -9`` at random moments of a run with ``save_dir``: does it resume to the weights of the undisturbed run?

    python -m benchmarks.resume [runs]

Each run is killed one to three times at moments drawn over the time that the whole run takes, then resumed to its end.
A run that was at its end before any kill is drawn again, so every run of the table was killed at least once. Half of
the runs are native, half on torch; both with dropout and a DataLoader whose order comes from the global generator.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time

PROGRAM = """
import sys, time, hashlib, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import chainrule as cr

torch.set_num_threads(1)
torch.manual_seed(0)
drop = [nn.Dropout(0.1)]
model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), *drop, nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
x = torch.randn(1000, 8)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16, shuffle=True)
optimizer = torch.optim.Adam(model.parameters(), 0.01)
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
print("ready", flush=True)
start = time.perf_counter()
h = cr.fit(model, loader, nn.MSELoss(), optimizer, scheduler=scheduler, epochs=int(sys.argv[3]), backend=sys.argv[2],
           save_dir=sys.argv[1] or None, save_every=0.02, resume=bool(sys.argv[1]))
seconds = time.perf_counter() - start
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print(seconds, hashlib.sha256(weights).hexdigest(), h.step_loss[-1].hex(), len(h.step_loss), h.resumed)
"""
EPOCHS = {"native": "400", "torch": "16"}


def run(folder: str, backend: str, after: float | None = None) -> list[str]:
    """What the run printed at its end; nothing if it was killed."""
    command = [sys.executable, "-c", PROGRAM, folder, backend, EPOCHS[backend]]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    if after is not None:
        time.sleep(after)
        os.kill(child.pid, signal.SIGKILL)
    return child.communicate()[0].split()


def main() -> None:
    """Prints the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    generator = random.Random(0)
    right = {"native": 0, "torch": 0}
    kills = resumed = 0
    whole = {backend: run("", backend) for backend in right}
    for k in range(runs):
        backend = "native" if k % 2 else "torch"
        seconds, *expected = whole[backend]
        landed = 0
        while not landed:
            with tempfile.TemporaryDirectory() as folder:
                for _ in range(generator.randint(1, 3)):
                    landed += not run(folder, backend, generator.uniform(0, float(seconds)))
                if landed:
                    _, *found = run(folder, backend)
        kills += landed
        right[backend] += found[:3] == expected[:3]
        resumed += found[3] != "0"
    print(f"{kills} kills in {runs} runs, {resumed} of them resumed after an epoch or more")
    for backend, count in right.items():
        print(f"{backend}: {count} of {runs // 2 + (runs % 2 and backend == 'torch')} ended in the undisturbed bits")


if __name__ == "__main__":
    main()
