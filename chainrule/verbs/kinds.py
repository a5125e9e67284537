"""A finding, and the kinds of it with what they mean: the page that ``chainrule explain KIND`` prints.

Apart from :mod:`chainrule.verbs.diagnose`, which looks for them, so that reading about one needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: from the fixed vocabulary. severity: error, warning or info. where: module path, or data and position.
        cause, measured, expected, fix: one line each. consequences: what follows from it.
        source: file and line, where there is one. patch: the fix as code (a Patch), where it can be written.
        verified: what was measured after the fix was tried and taken back; empty where it was not.
    """

    kind: str
    severity: str
    where: str
    cause: str
    measured: str
    expected: str
    fix: str
    consequences: tuple[str, ...] = ()
    source: str = ""
    patch: Any = field(default=None, compare=False)
    verified: str = ""

    def __str__(self) -> str:
        place = f"{self.where} ({self.source})" if self.source else self.where
        lines = [f"{self.severity}: {self.kind}{f' at {place}' if place else ''}: {self.cause}"]
        for label in ("measured", "expected", "fix"):
            if getattr(self, label):
                lines.append(f"  {label + ':':10}{getattr(self, label)}")
        if self.patch is not None:
            lines += [f"  {'':10}{line}" for line in str(self.patch).splitlines()]
        if self.verified:
            lines.append(f"  {'after it:':10}{self.verified}")
        lines += [f"  {'hence:':10}{c}" for c in self.consequences]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        own = self.__dict__ | {"consequences": list(self.consequences)}
        return own | {"patch": str(self.patch) if self.patch is not None else None}


KINDS: Mapping[str, str] = {
    # ---- not finite ----
    "nonfinite": "An inf or nan appears in the forward or the backward pass. The finding names the first value whose "
    "inputs are all finite and that is not: that is where it was produced; everything after it only passes it on. "
    "If the batch or a parameter already holds it, that is named instead. A mask of -inf that softmax removes is no "
    "finding.",
    "masked_labels": "Every label, or nearly every one, is the loss's ignore_index. The mean over no label is 0/0, "
    "nan. "
    "Usual causes: truncation that cuts the answers off, or padding labels set for the whole row.",
    # ---- no gradient ----
    "cut": "A parameter influences the loss, but its gradient ends at an op on the way: detach, .data, a no_grad "
    "block, "
    "a comparison, argmax, or numbers taken out of torch. Everything before that op has gradient None. The finding "
    "names the op and its line.",
    "loss_detached": "The loss does not depend on any parameter by a differentiable path: backward() raises, or trains "
    "nothing. The finding names where the path ends.",
    "unused": "A parameter is registered and no op of the forward pass reads it. Distinct from cut, where it is read.",
    "output_unused": "A module runs, but nothing that it computes reaches the loss.",
    "frozen": "A layer with requires_grad=False between layers that are trained. On purpose, all of a backbone is "
    "frozen, or all but adapters; one layer in the middle is usually a leftover. Also a model that is trained in "
    "eval() mode: dropout is off, and batch normalisation keeps its running statistics. Fix: model.train().",
    "unregistered": "A tensor or module takes part in the forward pass but is not registered (it sits in a Python list "
    "or a plain attribute), so parameters() does not give it to the optimizer, and to(device) and state_dict() "
    "miss it.",
    "not_in_optimizer": "A parameter has a gradient and is not among those that the optimizer moves. Usual cause: the "
    "optimizer was made before the layer, so it holds the tensors of the old one.",
    "zero_derivative": "The gradient passes through an op whose derivative is zero wherever there is one (sign, round, "
    "floor), so what is before it gets gradient zero for ever. Fix: a straight-through estimator, or a smooth "
    "function.",
    "accumulating": "The gradient at the optimizer's step holds those of the steps before: zero_grad() is not called. "
    "On purpose, micro-batches are accumulated between steps, never across them.",
    # ---- units ----
    "symmetric": "Units of a layer have equal weights, equal biases and equal gradients. Gradient descent moves them "
    "alike, so they stay equal for ever and the layer is as wide as its number of different units. "
    "Usual cause: weights initialised to a constant. Fix: draw them at random (problem 7.15).",
    "duplicate": "Some units of a layer are exact copies of others, in weights and gradients, and stay so; or a "
    "parameter is in the optimizer twice.",
    "dead": "Units whose derivative is zero for every sample and position, on this batch and on another. If all units "
    "of a layer are dead, nothing before it is trained.",
    "saturated": "Most inputs of a bounded activation lie where its derivative is below a thousandth of the largest. "
    "Usual causes: weights too large for the width, or inputs that are not standardised.",
    # ---- scale ----
    "vanishing": "The gradient of the pre-activations shrinks by orders of magnitude from the loss back to the first "
    "layers, steadily with depth, so these barely move. Usual causes: weights too small for the width, or "
    "saturating activations. A net of two or three layers is judged by its weights: all of them a hundred times too "
    "small for their width. Fix: variance 2 / fan_in for ReLU (He), 1 / fan_in for tanh, or normalisation or skips.",
    "exploding": "The gradient of the pre-activations grows by orders of magnitude from the loss back to the first "
    "layers, steadily with depth. Usual cause: weights too large for the width. Where the values grow from layer to "
    "layer until they overflow, this is the finding and nonfinite its consequence. Fix: variance 2 / fan_in for ReLU.",
    "linear_stack": "Linear layers with nothing nonlinear between them are one linear layer: "
    "W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2). A bottleneck in between is a factorisation, and only info.",
    "noise": "Dropout keeps so few units that its noise is larger than the signal: with keep probability q the "
    "standard deviation of a kept-or-dropped value is sqrt((1 - q) / q) times its size.",
    "no_signal": "What the model returns is the same for every sample, and stays so: it does not look at its inputs.",
    # ---- loss ----
    "loss_pairing": "The loss expects another quantity than it is given: cross_entropy takes logits and applies "
    "log-softmax itself, nll_loss takes log-probabilities, BCELoss probabilities, BCEWithLogitsLoss logits. A softmax "
    "before cross_entropy leaves the loss above ln(e + K - 1) - 1 for K classes, however long it trains.",
    "loss_axis": "A softmax over the wrong dimension: over the batch, so that samples compete instead of classes.",
    "broadcast": "Output and target have shapes that broadcast to a larger one, so every output is compared with every "
    "target. The best that such a loss can do is the mean of the targets: its floor is their variance.",
    "target_range": "Targets that the output cannot reach, or that the loss is not made for: class indices beyond the "
    "number of classes, probabilities outside of [0, 1], targets outside of the range of a last tanh or sigmoid.",
    "sign": "A loss that is bounded below enters with a negative sign, so it is maximised and falls without bound.",
    "init_loss": "The first loss is far above that of a model that knows nothing (ln K for K classes): it is sure of "
    "wrong answers, and the first steps only undo that.",
    # ---- data ----
    "input_scale": "Inputs of a scale that the first layer is not made for: thousandths (normalised twice?) or "
    "hundreds (not normalised). Where training copes with it, this is info.",
    "input_constant": "All samples of the batch are the same, so nothing can be learned from them.",
    "target_scale": "Regression targets orders of magnitude larger than what the model returns at first.",
    "batch_too_small": "Batch normalisation over so few values that its statistics are noise, or none at all.",
    "batch_leak": "What the model returns for one sample depends on other samples of the batch. BatchNorm in training "
    "does so by design, which is info.",
    "future_leak": "A model that is to predict the next position looks at it.",
    # ---- optimisation ----
    "lr_too_high": "The learning rate times the largest eigenvalue of the Hessian is beyond what the optimizer can "
    "stand (2 for gradient descent, 2 (1 + beta) with momentum), and trial steps raise the loss.",
    "lr_too_low": "The predicted relative fall of the loss per step, lr |g|^2 / L, and the relative change of the "
    "weights are both so small that training takes millions of steps.",
    "clipping": "Gradients are clipped to far below their size at every step, so the norm limit is the learning rate.",
    "regularizer": "Weight decay is stronger than the gradient: the weights go to zero faster than they learn.",
    "rounding": "Updates smaller than half a unit in the last place of the weights: adding them changes nothing.",
    "underflow": "Gradients too small for float16 become zero. A loss scale saves them.",
    "wrong_backward": "The backward of a custom autograd.Function is not the derivative of its forward. A forward "
    "whose "
    "derivative is zero almost everywhere with a backward that is not (straight-through) is on purpose: info.",
}
