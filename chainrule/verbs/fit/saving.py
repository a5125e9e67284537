"""Saved runs: everything that decides what comes next, in one file that appears whole or not at all.

The file is data (``torch.load(weights_only=True)``): parameters and buffers, optimizers, schedulers, the random
generators, the history so far, and where in which epoch the run is. A run that goes on from it is the run that was
never stopped, bit for bit.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from chainrule.errors import ModelError
from chainrule.frontends.torch import generator_states, restore_generators

FILE, _FORM = "state.pt", 1


class Saver:
    """Writes the state of a run into a folder, at most every so many seconds.

    Args:
        folder: made if it is not there. every: seconds between two saves; 0 saves whenever it can.
    """

    def __init__(self, folder: str | os.PathLike[str], every: float) -> None:
        self.path = Path(folder) / FILE
        self._every, self._last = every, perf_counter()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return perf_counter() - self._last >= self._every

    def check(self, state: dict[str, Any]) -> None:
        """Before anything is trained: whether such a state can be written there, and read back.

        Raises:
            ModelError: the folder cannot be written, or the state holds something that is not data.
        """
        try:
            buffer = _packed(state)
            torch.load(io.BytesIO(buffer), weights_only=True)
        except Exception as error:
            raise ModelError(
                "this run cannot be saved as data",
                given=str(error).splitlines()[0],
                required="optimizers and schedulers whose state_dict holds tensors, numbers and texts",
                instead="save_dir=None, or a scheduler that keeps functions out of its state_dict",
            ) from None
        self._written(b"", self.path.with_name(f".{FILE}.{os.getpid()}.check")).unlink()

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the file by this state; a reader, or a crash at any moment, sees the old one or the new one.

        Raises:
            ModelError: the folder cannot be written.
        """
        os.replace(self._written(_packed(state), self.path.with_name(f".{FILE}.{os.getpid()}")), self.path)
        _sync_folder(self.path.parent)
        self._last = perf_counter()

    def _written(self, data: bytes | memoryview, path: Path) -> Path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ModelError(
                f"the run cannot be saved: {error.strerror or error}",
                given=f"save_dir={str(self.path.parent)!r}",
                required="a folder that can be written",
            ) from None
        return path

    def load(self, resume: bool) -> dict[str, Any] | None:
        """The state that is there to go on from; None if there is none.

        Raises:
            ModelError: there is a run and ``resume`` is false, or the file is not a saved run.
        """
        for left in self.path.parent.glob(f".{FILE}.*"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        if not resume:
            raise ModelError(
                "there is a saved run in the folder already",
                given=str(self.path),
                required="a folder without one, or going on from it",
                instead="resume=True, or another save_dir",
            )
        try:
            state = torch.load(self.path, weights_only=True)
            assert state["form"] == _FORM
        except Exception as error:
            raise ModelError(
                "the saved run cannot be read",
                given=f"{self.path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                required="a file that fit wrote",
                instead="another save_dir",
            ) from None
        return state


def _packed(state: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save({"form": _FORM, **state}, buffer)
    return buffer.getbuffer()


def _sync_folder(folder: Path) -> None:
    """A rename survives a power cut once its folder is on the disk; not every system can say so."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


# ---- what decides what comes next ------------------------------------------------------------------------
def objects_state(model: Any, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> dict[str, Any]:
    """The torch objects' own states."""
    return {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
    }


def check_objects(state: dict[str, Any], model: Any, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> None:
    """Whether the states fit these objects; nothing is changed.

    Raises:
        ModelError: the run was of another model or other optimizers.
    """
    held, own = state["model"], model.state_dict()
    wrong = [name for name in {*held, *own} if name not in held or name not in own]
    wrong += [n for n, t in own.items() if n in held and isinstance(t, torch.Tensor) and held[n].shape != t.shape]
    groups = [[len(g["params"]) for g in s["param_groups"]] for s in state["optimizers"]]
    counts = [[len(g["params"]) for g in o.param_groups] for o in optimizers]
    if wrong or groups != counts or len(state["schedulers"]) != len(schedulers):
        what = f"parameter {sorted(wrong)[0]!r}" if wrong else "the optimizers or schedulers"
        raise ModelError(
            f"the saved run is of another training: {what} is not the same",
            required="the model, optimizer and scheduler that the run was started with",
            instead="another save_dir",
        )


def restore_objects(state: dict[str, Any], model: Any, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> None:
    """Puts states back that have been checked."""
    model.load_state_dict(state["model"])
    for optimizer, held in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(held)
    for scheduler, held in zip(schedulers, state["schedulers"], strict=True):
        scheduler.load_state_dict(held)


def kinds(optimizers: Sequence[Any], schedulers: Sequence[Any]) -> dict[str, list[str]]:
    """The classes of optimizers and schedulers, by name."""
    own = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]  # Accelerate wraps it
    return {
        "optimizer": [type(optimizer).__name__ for optimizer in own],
        "scheduler": [type(scheduler).__name__ for scheduler in schedulers],
    }


def check_same_kinds(held: dict[str, list[str]] | None, own: dict[str, list[str]]) -> None:
    """Raises ModelError if a saved run is of other classes of optimizers or schedulers than these."""
    if held is None:
        return
    for what, names in own.items():
        if names != held[what]:
            given, required = (", ".join(value) or "none" for value in (names, held[what]))
            raise ModelError(
                f"the saved run is of another training: the {what} was {required}, and now is {given}",
                given=f"{what}: {given}",
                required=f"{what}: {required}, as the run was started with",
                instead="another save_dir",
            )


def random_state(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Every random generator that training may draw from, as tensors and numbers."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": generator_states(),
        "own": [generator.get_state() for generator in generators],
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
    }


def restore_random(state: dict[str, Any], generators: Sequence[torch.Generator]) -> None:
    """Puts every generator where it was."""
    restore_generators(state["torch"])
    for generator, held in zip(generators, state["own"], strict=False):
        generator.set_state(held)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
