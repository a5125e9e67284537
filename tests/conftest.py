"""What holds for every test: one thread, no display, reproducible examples; and two lines of report."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# numpy and torch read these once, when they are imported (pytest and hypothesis import neither). A test's
# numbers and time then do not depend on the machine's cores, and xdist's processes do not compete for them.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Compiled code of these runs, not of the user's own; the commands that tests start inherit it.
os.environ.setdefault("CHAINRULE_CACHE", str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "chainrule"))
os.environ["MPLBACKEND"] = "Agg"
for _name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS"):  # what the terminal of whoever runs the tests prefers
    os.environ.pop(_name, None)

# Everyone who runs the suite sees the same examples; a search for new ones is asked for:
# HYPOTHESIS_PROFILE=explore pytest. No deadline: the first example pays for imports.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

ROOT = Path(__file__).resolve().parent.parent
LONG_FILE = 400  # lines; test_architecture.py refuses 500


@pytest.hookimpl(trylast=True)  # after -m has deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests without a CUDA device; torch is imported only if one was selected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name files that grow long, before they are too long."""
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.glob("chainrule/**/*.py")}
    long = [f"{p.relative_to(ROOT)} {n}" for p, n in sorted(lines.items()) if n > LONG_FILE]
    if long:
        terminalreporter.write_line(f"over {LONG_FILE} lines: {', '.join(long)}")
