"""``diagnose`` on a recording of a monitored run: the step that went wrong, with its weights, batch and random state.

A recording is data. The program comes from where it came from: the script that made it, or a case of the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from chainrule.errors import ModelError
from chainrule.frontends.torch.script import Captured, run_script
from chainrule.frontends.torch.script_case import parts_of
from chainrule.verbs.case import Case
from chainrule.verbs.diagnose import examine
from chainrule.verbs.diagnose.examination import replaced
from chainrule.verbs.diagnose.keeping import kept
from chainrule.verbs.diagnose.result import DiagnoseResult
from chainrule.verbs.diagnose.subject import Subject
from chainrule.verbs.diagnose.values import tensors_in
from chainrule.verbs.monitor.recorder import read


def diagnose_recording(path: Path, case: Case | None = None) -> DiagnoseResult:
    """What went wrong at the recorded step.

    Args:
        path: what ``cr.monitor(..., record=path)`` wrote. case: model and loss; without it, the script that wrote the
            recording is run again up to its first step, and weights and batch are put in place of its own.

    Raises:
        ModelError: the file is no recording, or does not fit the model.
    """
    recording = read(path)
    if case is not None:
        return _replayed(recording, case.model, [case.model], case, path)
    results: list[DiagnoseResult] = []

    def seen(captured: Captured) -> None:
        segment = captured.segments[-1]
        parts = parts_of(captured, segment)
        own = Case(parts.model, parts.batch, parts.loss, captured.optimizer, parts.objective)
        results.append(_replayed(recording, parts.model, segment.roots, own, path))

    script, *arguments = recording["argv"]
    if not Path(script).is_file():
        raise ModelError(
            f"the script that wrote {path} is not there", given=script, required="the script, at the same place",
            instead=f"chainrule diagnose {path} file.py:function, which returns model, batch and loss",
        )  # fmt: skip
    run_script(Path(script), arguments, seen)
    return results[0]


def _replayed(
    recording: dict, model: torch.nn.Module, roots: Sequence[torch.nn.Module], case: Case, path: Path
) -> DiagnoseResult:
    tensors = list({id(t): t for t in tensors_in(case.batch)}.values())
    batch = recording["batch"]
    if len(batch) != len(tensors) or len(roots) != len(recording["models"]):
        raise ModelError(
            f"{path} does not fit the program",
            given=f"{len(batch)} tensors and {len(recording['models'])} models",
            required=f"{len(tensors)} tensors and {len(roots)} models",
        )
    values = {id(t): new for t, new in zip(tensors, batch, strict=True)}
    given = replaced(case.batch, lambda t: values[id(t)].to(t.device))
    with kept(roots):
        for root, state in zip(roots, recording["models"], strict=True):
            try:
                root.load_state_dict(state)
            except RuntimeError as error:
                raise ModelError(
                    f"the weights in {path} do not fit the model", given=str(error).split("\n")[0],
                    required="the model that was recorded",
                ) from None  # fmt: skip
        subject = Subject(Case(model, given, case.loss, None, case.objective), rng=recording["rng"])
        subject.notes.append(
            f"replayed from {path}: step {recording['step']}, loss {recording['loss']:.4g} at the time"
        )
        return examine(subject, verify=False)
