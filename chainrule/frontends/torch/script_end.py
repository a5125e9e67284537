"""How a training script that is watched comes to its end: told to stop, raised, or done before it was understood."""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from chainrule.errors import ModelError
from chainrule.frontends.torch.places import Place, of_traceback, skipped

EARLY = 3  # steps before any backward() that a script may make


class Stop(BaseException):
    """Ends the script: everything has been seen."""


def end_at_next_line(until: CodeType) -> None:
    """Ends the script at the next line that it runs: after a ``Stop`` that it catches, the first of the handler."""

    def at(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            raise Stop
        return at

    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not until:
        if not skipped(frame.f_code) and not frame.f_code.co_filename.startswith("<frozen"):
            frame.f_trace = at
        frame = frame.f_back  # type: ignore[assignment]
    sys.settrace(lambda *_: None)  # frames that begin from now on are let run


def stepped_first(place: Place) -> ModelError:
    """The error of a step between a model's call and the backward pass of its loss."""
    error = ModelError(
        "optimizer.step() is called before loss.backward()",
        given="a step between the model's call and the backward() of its loss, and no backward() before it",
        required="the gradient of the loss at the step",
        instead="zero_grad(), the model and its loss, backward(), step(), in this order",
    )
    error.place = place
    return error


def no_backward(optimizer: torch.optim.Optimizer) -> ModelError:
    """The error of steps without any backward pass that could be seen."""
    return ModelError(
        "the optimizer steps, and no loss.backward() was seen before",
        given=type(optimizer).__name__,
        required="loss.backward() in this process, by Tensor.backward",
        instead="file.py:function that returns cr.case(model, batch, loss, optimizer)",
    )


def raised(path: Path, error: BaseException) -> ModelError:
    """What a script raised, with its line."""
    place = of_traceback(error)
    said = " ".join(str(error).split())
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    found = ModelError(
        f"running {path.name} raised {type(error).__name__}{f': {said}' if said else ''}",
        given=f"{place.text}: {place.segment.text.splitlines()[0]}" if place.segment is not None else place.text,
        required=f"the package {missing}" if missing else "a script that runs until its first optimizer step",
        instead=f"install what provides {missing}"
        if missing
        else f"python {path} alone; --debug shows the whole traceback",
    )
    found.place = place
    return found


def ended(path: Path, how: str, watch: Any) -> ModelError:
    """The error of a script that was over (``how``) before there was anything to examine."""
    if watch.steps:
        what = f"{how} after {max(watch.steps.values())} optimizer steps"
    elif watch.backwards:
        what = f"{how} after backward() and before any optimizer step (steps of torch.optim are what is seen)"
    else:
        what = f"{how} before its first optimizer step"
    return ModelError(
        f"{path.name} was run as a training script, and {what}",
        given=str(path),
        required="a script that trains: loss.backward(), then step() of a torch.optim optimizer",
        instead=f"{path}:build, a function that returns cr.case(model, batch, loss, optimizer)",
    )
