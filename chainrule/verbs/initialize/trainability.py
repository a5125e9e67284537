"""``trainability``: at which depth and weight variance a plain network still trains, by training thousands of them.

Networks of one depth are trained at once, as batched matrix products: every pair of variance and seed is one network
of its own, with its own gradient norm and step. Beside what is measured stands what theory says: signals of two inputs
become alike (or chaotic) over xi layers, and a network of more than about six xi cannot be trained.

Source: Schoenholz et al. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from chainrule.errors import ChainruleError
from chainrule.verbs.initialize.gains import averages
from chainrule.verbs.initialize.generator import fill, key_of
from chainrule.verbs.initialize.plots import figure, written
from chainrule.verbs.scalar_function import scalar_function

_INPUTS, _CLASSES, _SAMPLES = 16, 4, 64
_SHADES = " .:-=+*#%@"
_DEPTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_FRONTIER = 6.0  # depth scales


@dataclass(frozen=True, eq=False)
class TrainabilityResult:
    """What was trained and how well.

    Attributes:
        activation: its name. depths, variances: the axes; a variance is n Var(w). bias: variance of the biases.
        accuracy: (depth, variance), on the training data, mean over the seeds; a quarter is chance.
        scale: per variance the layers over which a correlation, or a gradient, changes by the factor e.
        networks: how many were trained. seconds: for how long.
    """

    activation: str
    depths: tuple[int, ...]
    variances: tuple[float, ...]
    bias: float
    accuracy: np.ndarray = field(repr=False)
    scale: tuple[float, ...] = field(repr=False)
    networks: int
    seconds: float

    def plot(self, path: str | None = None) -> Any:
        """The map as a matplotlib figure, with the frontier of theory; also into ``path`` if given.

        Raises:
            MissingExtraError: matplotlib is not installed. ChainruleError: the file cannot be written.
        """
        drawn = figure(6, 3.8)
        axes = drawn.subplots()
        places = np.arange(len(self.depths))
        shown = axes.pcolormesh(self.variances, places, self.accuracy, cmap="viridis", vmin=1 / _CLASSES, vmax=1.0)
        frontier = np.interp(np.log([_FRONTIER * s for s in self.scale]), np.log(self.depths), places)
        axes.plot(self.variances, frontier, color="white", lw=1.2, label="six depth scales")
        axes.set_yticks(places, [str(d) for d in self.depths])
        axes.set_ylim(-0.5, len(self.depths) - 0.5)
        axes.set_xlabel("n Var(w)")
        axes.set_ylabel("layers")
        axes.set_title(f"{self.networks:,} networks of {self.activation}, trained")
        axes.legend(frameon=False, labelcolor="white", loc="upper right")
        drawn.colorbar(shown, label="accuracy on the training data")
        return written(drawn, path)

    def __str__(self) -> str:
        shades = np.clip((self.accuracy - 1 / _CLASSES) / (1 - 1 / _CLASSES), 0, 1) * (len(_SHADES) - 1)
        lines = [f"{self.networks:,} networks of {self.activation} trained in {self.seconds:.0f} s; @ is accuracy 1"]
        for depth, row in sorted(zip(self.depths, shades, strict=True), reverse=True):
            lines.append(f"{depth:6d}  {''.join(2 * _SHADES[round(float(s))] for s in row)}")
        lines.append(f"{'':8}n Var(w) from {self.variances[0]:g} to {self.variances[-1]:g}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.trainability/1",
            "activation": self.activation,
            "depths": list(self.depths),
            "variances": list(self.variances),
            "bias": self.bias,
            "accuracy": self.accuracy.tolist(),
            "scale": [s if math.isfinite(s) else None for s in self.scale],
            "networks": self.networks,
            "seconds": self.seconds,
        }


def trainability(
    activation: Any = "tanh",
    *,
    depths: Sequence[int] = _DEPTHS,
    variances: Sequence[float] | None = None,
    bias: float = 0.05,
    width: int = 24,
    seeds: int = 4,
    steps: int = 150,
    rate: float = 0.05,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TrainabilityResult:
    """Trains a plain network for every depth, weight variance and seed, and says which of them learned.

    Args:
        activation: as in :func:`chainrule.activation`: a name, a formula of one variable, or a torch callable.
        depths, variances: the axes of the map. bias: variance of the biases. width: of the layers.
        seeds: networks per cell. steps, rate: of gradient descent with momentum, gradients clipped at norm 1.
        progress: called with (networks trained, networks in all).

    Raises:
        ChainruleError: an axis without entries, or a depth or variance that is not positive.

    >>> from chainrule import trainability
    >>> t = trainability("tanh", depths=(2, 24), variances=(0.5, 1.8), seeds=1, steps=60)
    >>> bool(t.accuracy[0].min() > 0.9 > t.accuracy[1, 0])
    True
    """
    from time import perf_counter

    grid = tuple(float(v) for v in (variances if variances is not None else np.linspace(0.4, 4.0, 25)))
    if not depths or not grid or min(depths) < 1 or min(grid) <= 0 or seeds < 1:
        raise ChainruleError(
            "there is no map over these axes",
            given=f"depths {tuple(depths)}, variances {grid}, seeds {seeds}",
            required="at least one depth of 1 or more, one positive variance and one seed",
            instead="depths=(4, 16, 64), variances=(0.5, 1.0, 1.5)",
        )
    function = scalar_function(activation)
    phi = _torch_function(activation)
    begin, total = perf_counter(), len(depths) * len(grid) * seeds
    rows = []
    for k, depth in enumerate(depths):
        if progress is not None:
            progress(k * len(grid) * seeds, total)
        rows.append(_trained(phi, depth, grid, bias, width, seeds, steps, rate, seed))
    if progress is not None:
        progress(total, total)
    scale = tuple(depth_scale(function.curve.value, v, bias) for v in grid)
    return TrainabilityResult(
        function.name, tuple(depths), grid, bias, np.array(rows), scale, total, perf_counter() - begin
    )


def _torch_function(activation: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation on tensors of any shape."""
    if not isinstance(activation, str):
        return activation
    named = getattr(torch.nn.functional, activation, None) or getattr(torch, activation, None)
    if named is not None:
        return named
    raise ChainruleError(
        f"{activation!r} is no function of torch",
        given=activation,
        required="the name of one (tanh, relu, gelu, ...), or a callable",
        instead="trainability(lambda z: z * torch.sigmoid(z))",
    )


def _trained(
    phi: Callable[[torch.Tensor], torch.Tensor],
    depth: int,
    variances: Sequence[float],
    bias: float,
    width: int,
    seeds: int,
    steps: int,
    rate: float,
    seed: int,
) -> list[float]:
    """The accuracy per variance of networks of one depth, trained at once."""
    count = len(variances) * seeds
    x, y = _data(seed)
    sizes = [_INPUTS, *[width] * depth, _CLASSES]
    spread = torch.tensor(variances).repeat_interleave(seeds).reshape(count, 1, 1)
    weights, biases = [], []
    for k, (n, m) in enumerate(pairwise(sizes)):
        w = _drawn((count, n, m), key_of(seed, f"weight {k}", str(depth)))
        weights.append((w * (spread / n).sqrt()).requires_grad_(True))
        b = _drawn((count, 1, m), key_of(seed, f"bias {k}", str(depth)))
        biases.append((b * math.sqrt(bias)).requires_grad_(True))
    parameters = [*weights, *biases]
    velocity = [torch.zeros_like(p) for p in parameters]
    batch = x.expand(count, *x.shape)
    target = y.repeat(count)

    def logits() -> torch.Tensor:
        h = batch
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            h = phi(torch.baddbmm(b, h, w))
        return torch.baddbmm(biases[-1], h, weights[-1])

    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(logits().reshape(-1, _CLASSES), target, reduction="sum") / len(y)
        with torch.no_grad():
            gradients = [g.nan_to_num(0.0, 0.0, 0.0) for g in torch.autograd.grad(loss, parameters)]
            norms = torch.stack([g.square().sum((1, 2)) for g in gradients]).sum(0).sqrt().reshape(count, 1, 1)
            factor = 1 / norms.clamp(min=1.0)
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                v.mul_(0.9).add_(g * factor)
                p.sub_(rate * v)
    with torch.no_grad():
        right = (logits().argmax(2) == y).to(torch.float32).mean(1)
    return right.reshape(len(variances), seeds).mean(1).tolist()


def _drawn(shape: tuple[int, ...], key: int) -> torch.Tensor:
    flat = torch.empty(math.prod(shape))
    fill(flat, "normal", key)
    return flat.reshape(shape)


def _data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A quarter of the points around each of four centres: easy to learn for whatever can be trained."""
    centres = _drawn((_CLASSES, _INPUTS), key_of(seed, "centres"))
    labels = torch.arange(_SAMPLES) % _CLASSES
    x = centres[labels] + 0.7 * _drawn((_SAMPLES, _INPUTS), key_of(seed, "points"))
    return (x - x.mean()) / x.std(), labels


def depth_scale(phi: Callable[[np.ndarray], np.ndarray], variance: float, bias: float) -> float:
    """Layers over which a gradient's mean square changes by the factor e, at the fixed point of the values'.

    >>> round(depth_scale(np.tanh, 1.0, 0.0), 1) > 20
    True
    """
    q = 1.0
    for _ in range(200):
        q = max(variance * averages(phi, q).second + bias, 1e-12)
        if not math.isfinite(q) or q > 1e6:
            return 0.0
    chi = variance * averages(phi, q).slope
    return 1 / abs(math.log(chi)) if chi > 0 and abs(math.log(chi)) > 1e-6 else 1e6
