"""Faults found, layers named, fixes that work, and false alarms: diagnose on the table of ``fault_cases``.

    python -m benchmarks.faults [--seeds 3] [--only F01,H07] [--quick] [--questions] [--peer /path/to/python]

Each fault is built at several seeds and sizes (as it is; twice as deep; four times as wide), asserted to manifest in
training itself, and diagnosed. kind: the first finding has the right kind, and no second cause is claimed; place: it
names the layer or op; fix: the fix as code is applied to a fresh copy (statements run, edits made in the source and the
module loaded again) and the fault no longer manifests; by hand: the fix is for the training loop or the loader, and is
applied as its sentence says. ``--questions``: programs of people who asked why their network does not train, in
place of the tables. ``--peer``: an interpreter with torchtest2, which is then run on the same cases.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import types
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import chainrule as cr
from benchmarks.fault_cases.by_hand import BY_HAND
from benchmarks.fault_cases.questions import NUMBERED, named
from benchmarks.fault_cases.questions import TABLE as QUESTIONS
from benchmarks.fault_cases.sound import TABLE
from benchmarks.fault_cases.table import Fault, Setup, Size

FOLDER = Path(__file__).parent / "fault_cases" / "scripts"
# training script -> kind and place of what is planted in it; ``--sound`` leaves it out
SCRIPTS: dict[str, tuple[str, str]] = {
    "plain": ("loss_pairing", "softmax"),
    "amp": ("cut", "amp.py:22"),
    "accumulation": ("clipping", "the training loop"),
    "trainer": ("masked_labels", "cross_entropy"),
    "gan": ("cut", "gan.py:25"),
    "accelerated": ("unregistered", "hidden"),
    "forgetful": ("accumulating", "the training loop"),
    "two_models": ("not_in_optimizer", "decoder"),
    "regression": ("broadcast", "regression.py:20"),
    "logarithm": ("nonfinite", "logarithm.py:20"),
}
SEVERITIES = ("info", "warning", "error")


def sizes(seeds: int, quick: bool) -> list[Size]:
    """As it is at every seed, then deeper and wider ones."""
    plain = [Size(seed) for seed in range(seeds)]
    return plain if quick else [*plain, *(Size(s, 2, 1) for s in range(seeds)), *(Size(s, 1, 4) for s in range(seeds))]


def examined(setup: Setup) -> Any:
    """The diagnosis of a case."""
    return cr.diagnose(setup.model, setup.batch, setup.loss, setup.optimizer, training_step=setup.step)


def judged(fault: Fault, result: Any) -> tuple[bool, bool]:
    """Whether kind and place are right."""
    if not result.findings:
        return False, False
    top = result.findings[0]
    others = [f for f in result.findings[1:] if f.severity != "info"]
    severe = SEVERITIES.index(top.severity) >= SEVERITIES.index(fault.severity)
    kind = top.kind in fault.kinds and severe and not others
    return kind, any(part in f"{top.where} {top.source}" for part in fault.where)


def repaired(fault: Fault, size: Size, finding: Any) -> tuple[tuple[Fault, Setup] | None, str]:
    """A fresh copy with the fix made, and how it was made: code, edit or by hand."""
    if fault.name in BY_HAND:
        setup = fault.build(size)
        return (fault, BY_HAND[fault.name](setup, finding)), "by hand"
    if finding.patch is None:
        return None, "none"
    if finding.patch.edits:
        other = edited(fault, finding.patch.edits)
        return (other, other.build(size)), "edit"
    setup = fault.build(size)
    setup.loss, setup.batch = finding.patch.apply(setup.model, setup.optimizer, setup.loss, setup.batch)
    return (fault, setup), "code"


def edited(fault: Fault, edits: Any) -> Fault:
    """The same row of a table whose source has been changed."""
    path = Path(edits[0].segment.file)
    source = path.read_text()
    for edit in edits:
        assert Path(edit.segment.file) == path
        source = edit.applied(source)
    module = types.ModuleType("edited_faults")
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module.TABLE.faults[fault.name]


def faults(names: list[str], every: list[Size]) -> Counter[str]:
    """One line per fault; counts over all seeds and sizes."""
    counts: Counter[str] = Counter()
    print(f"\n{'fault':6}{'what':64}{'cases':>6}{'kind':>6}{'place':>6}{'fix':>6}  {'found'}")
    for name in names:
        fault, row, found = TABLE.faults[name], Counter(), Counter()
        for size in every:
            row["cases"] += 1
            if not fault.manifests(fault.build(size)):
                row["no fault"] += 1
                print(f"       {name} at {size} does not manifest")
                continue
            start = time.perf_counter()
            result = examined(fault.build(size))
            counts["seconds"] += time.perf_counter() - start  # type: ignore[assignment]
            kind, place = judged(fault, result)
            row["kind"] += kind
            row["place"] += place
            found[result.findings[0].kind if result.findings else "nothing"] += 1
            if result.findings:
                try:
                    made, how = repaired(fault, size, result.findings[0])
                    works = made is not None and not made[0].manifests(made[1])
                except Exception as error:
                    works, how = False, f"{type(error).__name__}: {error}"
                row["fix"] += works
                counts[f"fixed {how}"] += works
                if not works:
                    print(f"       {name} at {size}: fix ({how}) leaves the fault")
        counts.update({k: v for k, v in row.items()})
        kinds = ", ".join(f"{k}" if v == len(every) else f"{k} {v}" for k, v in found.items())
        print(f"{name:6}{fault.what[:62]:64}{row['cases']:6}{row['kind']:6}{row['place']:6}{row['fix']:6}  {kinds}")
    return counts


def healthy(names: list[str], every: list[Size]) -> int:
    """False alarms: findings above info."""
    alarms = 0
    print(f"\n{'net':6}{'what':82}{'cases':>6}{'alarms':>7}")
    for name in names:
        row = TABLE.sound[name]
        wrong = []
        for size in every:
            wrong += [f.kind for f in examined(row.build(size)).worst("warning")]
        alarms += len(wrong)
        print(f"{name:6}{row.what[:80]:82}{len(every):6}{len(wrong):7}  {', '.join(wrong)}")
    return alarms


def questions(every: list[Size]) -> None:
    """Programs of people who asked: whether the cause that the answers name is named."""
    print(f"\n{'question':14}{'what':92}{'cases':>6}{'kind':>6}{'place':>6}  {'found'}")
    right = numbered = 0
    for name, row in QUESTIONS.faults.items():
        kinds = places = 0
        found: Counter[str] = Counter()
        for size in every:
            if not row.manifests(row.build(size)):
                print(f"       {name} at {size} does not manifest")
                continue
            result = examined(row.build(size))
            kind, place = named(row, result)
            kinds, places = kinds + kind, places + place
            found.update(f.kind for f in result.worst("warning"))
        if name in NUMBERED:
            numbered += 1
            right += kinds == places == len(every)
        print(f"{name:14}{row.what[:90]:92}{len(every):6}{kinds:6}{places:6}  {', '.join(found)}")
    print(f"questions: cause and place named at every seed in {right} of {numbered}")


def scripts() -> None:
    """The ten training scripts, run as they are by the command line, with what is planted and without."""
    print(f"\n{'script':16}{'planted':20}{'found':52}{'without it':12}")
    right = alarms = 0
    for name, (kind, where) in SCRIPTS.items():
        found = [_command(FOLDER / f"{name}.py", *extra) for extra in ((), ("--sound",))]
        serious, rest = ([f for f in r["findings"] if f["severity"] != "info"] for r in found)
        good = [f["kind"] for f in serious] == [kind] and where in f"{serious[0]['where']} {serious[0]['source']}"
        right += good
        alarms += len(rest)
        said = "; ".join(f"{f['kind']} at {f['where']}" for f in serious) or "nothing"
        print(f"{name:16}{kind:20}{said[:50]:52}{', '.join(f['kind'] for f in rest) or 'nothing':12}")
    print(f"scripts: {right} of {len(SCRIPTS)} found with no edit; {alarms} findings without the fault")


def _command(script: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "chainrule", "diagnose", "--json", str(script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    return json.loads(run.stdout) if run.stdout.startswith("{") else {"findings": []}


def peer(python: str, names: list[str], sound: list[str]) -> None:
    """torchtest2 on the same cases: how many it fails or warns about, and in how many it names a cause of ours."""
    script = Path(__file__).parent / "fault_cases" / "peer_torchtest2.py"
    command = [python, str(script), *names, *sound]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    if run.returncode:
        print(f"\ntorchtest2 did not run: {run.stderr.strip().splitlines()[-1] if run.stderr else ''}")
        return
    rows = json.loads(run.stdout.splitlines()[-1])
    print("\ntorchtest2 on the same cases (seed 0): checks that fail or warn; overfit alone names no cause")
    for name, checks in rows.items():
        print(f"{name:6}{', '.join(checks) or '-'}")
    cause = sum(1 for n in names if any(c != "overfit_batch" for c in rows[n]))
    silent = sum(1 for n in names if not rows[n])
    false = [n for n in sound if rows[n]]
    print(f"torchtest2: something other than overfit_batch on {cause} of {len(names)} faults, silent on {silent}; "
          f"healthy networks with a failure or warning: {len(false)} of {len(sound)} ({', '.join(false)})")  # fmt: skip


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows, separated by commas")
    parser.add_argument("--quick", action="store_true", help="no deeper or wider copies")
    parser.add_argument("--questions", action="store_true", help="programs of people who asked, in place of the tables")
    parser.add_argument("--peer", default="", help="a Python that has torchtest2")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    only = given.only.split(",") if given.only else []
    names = [n for n in TABLE.faults if not only or n in only]
    sound = [n for n in TABLE.sound if not only or n in only]
    every = sizes(given.seeds, given.quick)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {len(every)} builds of each")
    if given.questions:
        questions(sizes(given.seeds, quick=True))
        return
    counts = faults(names, every)
    wide = [s for s in every if s.deep == 1]
    alarms = healthy(sound, wide)
    total = max(counts["cases"] - counts["no fault"], 1)
    print(f"\nfaults: {total} cases that manifest ({counts['no fault']} do not); "
          f"kind right {counts['kind'] / total:.1%}, "
          f"layer or op right {counts['place'] / total:.1%}, fix removes the fault {counts['fix'] / total:.1%} "
          f"({counts['fixed code']} by statements, {counts['fixed edit']} by edits, {counts['fixed by hand']} by "
          f"hand); "
          f"{counts['seconds'] / total:.2f} s each")  # fmt: skip
    print(f"healthy: {len(sound) * len(wide)} cases, {alarms} findings above info")
    if not only:
        scripts()
    if given.peer:
        peer(given.peer, names, sound)


if __name__ == "__main__":
    main()
