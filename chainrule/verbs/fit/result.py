"""What training did: the result of ``fit``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from chainrule.errors import ChainruleError, MissingExtraError
from chainrule.verbs.notebook import axes_for


@dataclass(frozen=True)
class FitResult:
    """What training did.

    Attributes:
        loss: mean loss of each completed epoch. step_loss: of each step.
        backend, reason: what ran, and why. seconds: wall time, tracing and compiling included.
        interrupted: stopped by Ctrl-C before the last epoch. stopped: why it ended before the last epoch, or "".
        validation: validation loss after each epoch, if there is validation data.
        learning_rate: of the first parameter group in each epoch (at its first step).
        best_epoch: with the lowest validation loss (training loss without validation), from 1; None without any.
        resumed: epochs that were done before this call.
        replicas: with ``seeds``, one result per seed; the loss above is their mean.
        model: of a replica, the trained model.
    """

    loss: tuple[float, ...]
    step_loss: tuple[float, ...] = field(repr=False)
    backend: str
    reason: str
    seconds: float
    interrupted: bool = False
    stopped: str = ""
    validation: tuple[float, ...] = ()
    learning_rate: tuple[float, ...] = field(default=(), repr=False)
    best_epoch: int | None = None
    resumed: int = 0
    replicas: tuple[FitResult, ...] = field(default=(), repr=False)
    model: Any = field(default=None, repr=False, compare=False)

    def plot(self, path: str | os.PathLike[str] | None = None, ax: Any = None) -> Any:
        """The loss against the number of epochs: a matplotlib figure, or the axes that were given.

        Args:
            path: where to write it as well (.png, .svg, .pdf). ax: axes to draw on, which are returned.

        Raises:
            MissingExtraError: matplotlib is not installed. ChainruleError: it cannot be written there.
        """
        axes = axes_for(ax, 5, 3)
        figure = axes.figure
        curves: list[tuple[str, Sequence[float]]] = [
            (f"seed {k + 1}" if k < 8 else "_", r.loss) for k, r in enumerate(self.replicas)
        ] or [("training", self.loss)]
        curves += [("validation", self.validation)] if self.validation else []
        for label, values in curves:
            axes.plot(range(1, len(values) + 1), values, label=label)
        if all(value > 0 for _, values in curves for value in values) and self.loss:
            axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss" if self.validation else "training loss")
        if len(curves) > 1:
            axes.legend()
        if path is not None:
            try:
                figure.savefig(path)
            except (OSError, ValueError) as error:
                raise ChainruleError(
                    f"the figure cannot be written: {error}", given=str(path), required="a path to a .png, .svg or .pdf"
                ) from None
        return figure if ax is None else axes

    def __str__(self) -> str:
        if not self.loss:
            return f"no epoch was completed ({self.backend}: {self.reason})"
        ends = f"loss {self.loss[0]:.4g} at epoch 1, {self.loss[-1]:.4g} at epoch {len(self.loss)}"
        if self.validation:
            ends += f"; validation {self.validation[-1]:.4g}, best at epoch {self.best_epoch}"
        if self.replicas:
            ends = f"{len(self.replicas)} replicas, mean {ends}"
        stopped = f", {self.stopped}" if self.stopped else ""
        return f"{ends}; {len(self.step_loss)} steps in {self.seconds:.2f} s ({self.backend}: {self.reason}){stopped}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        plain: dict[str, Any] = {"schema": "chainrule.fit/1"}
        for held in fields(self):
            value = getattr(self, held.name)
            if held.name == "replicas":
                if value:
                    plain["replicas"] = [replica.to_dict() for replica in value]
            elif held.name != "model":
                plain[held.name] = list(value) if isinstance(value, tuple) else value
        return plain

    def _repr_html_(self) -> str:
        """The loss curve, where matplotlib is installed, above the summary."""
        import html
        import io

        text = f"<pre>{html.escape(str(self))}</pre>"
        try:
            figure = self.plot()
        except MissingExtraError:
            return text
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
        svg = buffer.getvalue()
        return svg[svg.index("<svg") :] + text
