"""Cold start of the command line: wall time of whole processes, beside an empty Python process.

Run: python -m benchmarks.start_up
"""

from __future__ import annotations

import os
import subprocess
import sys
from time import perf_counter

from benchmarks.timing import machine

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import chainrule": ["-c", "import chainrule"],
    "derive, scalar formula": ["-m", "chainrule", "derive", "y = exp(x)^2", "--wrt", "x"],
    "derive, matrix formula": [
        "-m",
        "chainrule",
        "derive",
        "f = x' @ A @ x",
        "--wrt",
        "x",
        "--shape",
        "x=n",
        "--shape",
        "A=n,n",
    ],
    "check": ["-m", "chainrule", "check", "l = (f - y)^2", "--wrt", "f", "--claim", "2*(f - y)"],
    "moments": ["-m", "chainrule", "moments", "b = relu(a)", "--given", "a=symmetric(0, sigma^2)"],
}


def main() -> None:
    """Prints the table."""
    best = dict.fromkeys(COMMANDS, float("inf"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(7):
        for name, arguments in COMMANDS.items():
            start = perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
            best[name] = min(best[name], perf_counter() - start)
    print(machine())
    print(f"{'command':28} {'s':>6} {'more than an empty process':>28}")
    for name, seconds in best.items():
        print(f"{name:28} {seconds:6.3f} {seconds - best['python -c pass']:28.3f}")


if __name__ == "__main__":
    main()
