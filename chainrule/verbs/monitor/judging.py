"""What measured steps say: the same kinds of finding as diagnose, judged over steps, with the step in ``where``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from chainrule.verbs.diagnose.flow import trend
from chainrule.verbs.kinds import Finding

_PATIENCE = 2  # measured steps in a row, for what may pass


class Judge:
    """Remembers how long something has been so."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def findings(self, entry: Mapping[str, Any]) -> list[Finding]:
        """What the entry adds."""
        step = entry["step"]
        found = self._flow(entry, step) + self._dead(entry, step) + self._updates(entry, step)
        if self._lasts("left", entry["leftover"] > 0.05 and step > 0, 1):
            found.append(
                Finding(
                    "accumulating", "error", f"the training loop (step {step})",
                    "the gradient holds more than the backward passes since the last step gave: zero_grad() is not "
                    "called between steps",
                    measured=f"left over: {entry['leftover']:.2g} times the fresh "
                    f"gradient", expected="nothing left over",
                    fix="optimizer.zero_grad() in every step",
                )
            )  # fmt: skip
        if self._lasts("clip", entry["clipped"] < 0.02, _PATIENCE):
            found.append(
                Finding(
                    "clipping", "warning", f"the training loop (step {step})",
                    "gradients are clipped to a small part of their size, so the limit is the learning rate",
                    measured=f"{entry['clipped']:.2g} of the gradient is left at the "
                    f"step", expected="few steps clipped",
                    fix="a limit near the 90th percentile of the unclipped norms",
                )
            )  # fmt: skip
        return found

    def _lasts(self, what: str, now: bool, patience: int) -> bool:
        self._since[what] = self._since.get(what, 0) + 1 if now else 0
        return self._since[what] == patience

    def _flow(self, entry: Mapping[str, Any], step: int) -> list[Finding]:
        weights = {n.rpartition(".")[0] for n in entry["updates"]}
        rows = [
            (n, v) for n, v in entry["layers"].items() if n.partition(" (")[0] in weights and v["backward"] is not None
        ]
        rows = [(n, v) for n, v in rows if math.isfinite(v["backward"]) and v["backward"] > 0]
        slope, steady = trend([v["backward"] for _, v in rows])
        kind = "vanishing" if slope > 0 else "exploding"
        if not self._lasts(kind, steady, _PATIENCE if step else 1) and not (steady and step == 0):
            return []
        (first, a), (last, b) = rows[0], rows[-1]
        where = first if kind == "vanishing" else last
        return [
            Finding(
                kind, "error", f"{where} (step {step})",
                f"the gradient {'shrinks' if slope > 0 else 'grows'} steadily from the loss to the first layer",
                measured=f"rms of dL/dz {a['backward']:.1e} at {first} against {b['backward']:.1e} at {last}",
                expected="about one per layer",
                fix="torch.nn.init.kaiming_normal_ for ReLU, xavier_normal_ for tanh; normalisation or skips",
            )
        ]  # fmt: skip

    def _dead(self, entry: Mapping[str, Any], step: int) -> list[Finding]:
        found = []
        for name, row in entry["layers"].items():
            share = row["dead"]
            if share is not None and self._lasts(f"dead {name}", share > 0.9, _PATIENCE):
                found.append(
                    Finding(
                        "dead", "error" if share == 1.0 else "warning", f"{name} (step {step})",
                        "units that were zero for every sample of the last measured steps",
                        measured=f"{share:.0%} of the units", expected="below half",
                        fix="a smaller learning rate, or warmup; LeakyReLU or GELU",
                    )
                )  # fmt: skip
        return found

    def _updates(self, entry: Mapping[str, Any], step: int) -> list[Finding]:
        ratios = sorted(v for n, v in entry["updates"].items() if n.endswith("weight") and math.isfinite(v))
        if not ratios:
            return []
        middle = ratios[len(ratios) // 2]
        found = []
        if self._lasts("low", 0 < ratios[-1] < 1e-7, _PATIENCE):
            found.append(
                _rate("lr_too_low", step, f"the largest update is {ratios[-1]:.1e} of its weights", "raise lr")
            )
        if self._lasts("high", middle > 0.5, _PATIENCE + 1):
            found.append(_rate("lr_too_high", step, f"the median update is {middle:.0%} of its weights", "lower lr"))
        return found


def _rate(kind: str, step: int, measured: str, fix: str) -> Finding:
    return Finding(
        kind, "warning", f"the optimizer (step {step})",
        "the weights hardly "
        "change" if kind == "lr_too_low" else "each step changes the weights by a large part of them",
        measured=measured, expected="about a thousandth per step", fix=fix,
    )  # fmt: skip
