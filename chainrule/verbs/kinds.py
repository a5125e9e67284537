"""A finding, and the kinds of it with what they mean: the page that ``chainrule explain KIND`` prints.

Apart from :mod:`chainrule.verbs.diagnose`, which looks for them, so that reading about one needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: from the fixed vocabulary. severity: error, warning or info. where: module path, or data and position.
        cause, measured, expected, fix: one line each. consequences: what follows from it.
    """

    kind: str
    severity: str
    where: str
    cause: str
    measured: str
    expected: str
    fix: str
    consequences: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.kind} at {self.where}: {self.cause}"]
        for label in ("measured", "expected", "fix"):
            if getattr(self, label):
                lines.append(f"  {label + ':':10}{getattr(self, label)}")
        lines += [f"  {'hence:':10}{c}" for c in self.consequences]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return self.__dict__ | {"consequences": list(self.consequences)}


KINDS: Mapping[str, str] = {
    "nonfinite": "An inf or nan appears in the forward or the backward pass. The finding names the first value whose "
    "inputs are all finite and that is not: that is where it was produced; everything after it only passes it on. "
    "If the batch or a parameter already holds it, that is named instead.",
    "symmetric": "Units of a layer have equal weights, equal biases and equal gradients. Gradient descent moves them "
    "alike, so they stay equal for ever and the layer is as wide as its number of different units. "
    "Usual cause: weights initialised to a constant. Fix: draw them at random (problem 7.15).",
    "vanishing": "The gradient of the pre-activations shrinks by orders of magnitude from the loss back to the first "
    "layers, steadily with depth, so these barely move. Usual causes: weights too small for the width, or "
    "saturating activations. A net of two or three layers is judged by its weights: all of them a hundred times too "
    "small for their width. Fix: variance 2 / fan_in for ReLU (He), 1 / fan_in for tanh, or normalisation or skips.",
    "exploding": "The gradient of the pre-activations grows by orders of magnitude from the loss back to the first "
    "layers, steadily with depth. Usual cause: weights too large for the width. Where the values grow from layer to "
    "layer until they overflow, this is the finding and nonfinite its consequence. Fix: variance 2 / fan_in for ReLU.",
}
