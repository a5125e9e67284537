"""Whole models, traced and differentiated, against autograd: ``python -m benchmarks.models [names...]``.

Every model runs in train mode with dropout on, from one seed. A row says

    nodes         of the traced forward pass
    bits          whether its loss and its new buffers are eager's, bit for bit
    float64       worst relative difference of a parameter's gradient from autograd's, both in float64
    float32       worst distance of a float32 gradient from autograd's float64 one, in units of the distance that
                  autograd's own float32 gradient has (floor: 1e-6 of the largest gradient entry of the model)
    buffers       whether the buffers after the step are equal
    seconds       trace (with its comparison), derive and emit
    opaque        what is called as it is, and why

``--variants`` has other configurations of the same families and other families, ``--further`` more of the same ten;
``--written`` has models as people write
them; ``--layers`` the layers of ``torch.nn``; ``--eval`` runs them in eval mode, ``--dtype`` puts another dtype in the
place of float32, ``--device cuda`` runs them there. The transformers library is needed for all but layers and written
ones; models are built from configurations, with small widths, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

import chainrule as cr
from chainrule.errors import ChainruleError
from chainrule.ir import TensorType

SEED = 7
FLOAT64 = 1e-8  # relative to a parameter's largest gradient entry, or to FLOOR of the model's
FLOOR = 1e-6
ROUNDED = 1e-6  # where the model itself goes through float32: both gradients then have that rounding
FLOAT32 = 10.0  # times autograd's own distance

Made = tuple[nn.Module, Any]  # a model, and what it is called with: a mapping, a tuple or a tensor


@dataclass
class Row:
    """What was measured on one model; ``error`` in place of the rest where it was refused."""

    name: str
    nodes: int = 0
    bits: bool = False
    float64: float = float("inf")
    float32: float = float("inf")
    buffers: bool = False
    seconds: float = 0.0
    derive: float = 0.0
    opaque: Mapping[str, int] = field(default_factory=dict)
    guards: int = 0
    rounds: bool = False
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether everything holds that must."""
        bound = ROUNDED if self.rounds else FLOAT64
        return self.bits and self.buffers and self.float64 <= bound and self.float32 <= FLOAT32 and not self.error


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples, mappings and packed sequences."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, nn.utils.rnn.PackedSequence):
        yield value.data
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def objective(model: Any, batch: Any) -> torch.Tensor:
    """The model's own loss, or else the mean squares of what it returns, with a weight for every place."""
    out = model(**batch) if isinstance(batch, Mapping) else model(*batch) if isinstance(batch, tuple) else model(batch)
    own = getattr(out, "loss", None)
    if own is not None:
        return own
    found = [t for t in tensors_in(out) if t.is_floating_point() and t.requires_grad]
    weighted = [t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype, device=t.device).reshape(t.shape) for t in found]
    return torch.stack([(t.square() + 0.3 * t).mean().to(found[0].dtype) for t in weighted]).sum()


@dataclass(frozen=True)
class Mode:
    """How models are run: in train or eval mode, the narrow dtype that is compared with float64, and where."""

    train: bool = True
    narrow: torch.dtype = torch.float32
    device: str = "cpu"


def measured(name: str, make: Callable[[], Made], mode: Mode = Mode()) -> Row:
    """One model compared with autograd."""
    row = Row(name)
    try:
        _measure(row, make, mode)
    except ChainruleError as error:
        row.error = f"{type(error).__name__}: {error}"
    except Exception as error:  # a row of the table too: the others are still of interest
        row.error = f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return row


def _measure(row: Row, make: Callable[[], Made], mode: Mode) -> None:
    exact, wide_batch = _of_dtype(make, torch.float64, mode)
    wide, _ = _of_dtype(make, torch.float64, mode)
    expected, truth = _autograd(exact, wide_batch)
    largest = max((g.abs().max().item() for g in truth.values() if g is not None and g.numel()), default=1.0)

    wide_loss = expected.item()
    case = cr.case(wide, wide_batch, objective=objective)
    seed()  # what is drawn outside of torch is a number in the trace
    start = perf_counter()
    trace = case.trace
    row.seconds = perf_counter() - start
    row.nodes = sum(trace.graph.op_counts().values())
    row.rounds = any(node.type.dtype == "float32" for node in trace.graph.nodes if isinstance(node.type, TensorType))
    row.opaque, row.guards = trace.opaque, len(trace.guards)
    start = perf_counter()
    step = case.step
    row.derive = perf_counter() - start
    loss, grads = _ours(step, wide, wide_batch)
    row.bits = bool(trace.bit_equal) and torch.equal(loss, expected)
    after = dict(exact.named_buffers())
    row.buffers = all(torch.equal(after[key], b) for key, b in wide.named_buffers())
    row.float64 = _worst(grads, truth, lambda g: max(g.abs().max().item(), FLOOR * largest))

    twin, single_batch = _of_dtype(make, mode.narrow, mode)
    single, _ = _of_dtype(make, mode.narrow, mode)
    expected, theirs = _autograd(twin, single_batch)
    case = cr.case(single, single_batch, objective=objective)
    seed()
    _ = case.trace
    loss, grads = _ours(case.step, single, single_batch)
    row.bits = row.bits and bool(case.trace.bit_equal) and torch.equal(loss, expected)
    after = dict(twin.named_buffers())
    row.buffers = row.buffers and all(torch.equal(after[key], b) for key, b in single.named_buffers())
    # The draws of the two dtypes are the same bits only where the sampler says so: autograd's float32 run is then
    # the only reference, and the distance is counted in float32 roundings of the model's largest entry.
    same = abs(expected.double().item() - wide_loss) < 1e-3
    reference = truth if same else theirs
    found = {}
    floor = FLOOR * torch.finfo(mode.narrow).eps / torch.finfo(torch.float32).eps
    for key, g in theirs.items():
        h = reference[key]
        own = 0.0 if g is None or h is None or not g.numel() else (g.double() - h.double()).abs().max().item()
        found[key] = max(own, floor * largest)
    row.float32 = _distance(grads, reference, found)


def seed() -> None:
    """Every global generator that a forward pass may draw from."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)


def _of_dtype(make: Callable[[], Made], dtype: torch.dtype, mode: Mode) -> Made:
    """The model, made anew from one seed: the same values, rounded to the dtype."""
    torch.manual_seed(0)
    model, batch = make()
    model = model.to(mode.device, dtype).train(mode.train)
    if mode.device != "cpu":
        for module in model.modules():  # tensors that are no buffers stay behind
            for key, value in module.__dict__.items():
                if isinstance(value, (torch.Tensor, list, tuple)) and any(True for _ in tensors_in(value)):
                    module.__dict__[key] = on(value, mode.device)
    return model, on(moved(batch, dtype), mode.device)


def _ours(step: Any, model: nn.Module, batch: Any) -> tuple[torch.Tensor, Mapping[str, torch.Tensor | None]]:
    seed()
    return step({k: p.detach() for k, p in model.named_parameters(remove_duplicate=False)}, batch)


def _autograd(model: nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    seed()
    loss = objective(model, batch)
    parameters = dict(model.named_parameters())
    moving = {k: p for k, p in parameters.items() if p.requires_grad}
    found = torch.autograd.grad(loss, list(moving.values()), allow_unused=True)
    return loss.detach(), dict(zip(moving, found, strict=True))


def _worst(ours: Mapping[str, Any], truth: Mapping[str, Any], scale: Callable[[torch.Tensor], float]) -> float:
    return _distance(ours, truth, {k: 1.0 if g is None or not g.numel() else scale(g) for k, g in truth.items()})


def _distance(ours: Mapping[str, Any], truth: Mapping[str, Any], scales: Mapping[str, float]) -> float:
    """The largest distance of a gradient in its scale; infinite if one is missing or not a number."""
    worst = 0.0
    for key, expected in truth.items():
        found = ours.get(key)
        if expected is None or found is None:
            zero = all(g is None or not g.any() for g in (expected, found))
            worst = worst if zero else float("inf")
        elif expected.numel():
            gap = (found.double() - expected.double()).abs().max().item()
            worst = max(worst, gap / (scales[key] or 1.0)) if gap == gap else float("inf")
    return worst


def moved(batch: Any, dtype: torch.dtype) -> Any:
    """The batch with its floating-point tensors in another dtype."""
    if isinstance(batch, torch.Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {k: moved(v, dtype) for k, v in batch.items()}
    if isinstance(batch, nn.utils.rnn.PackedSequence):
        packed: Any = batch
        return packed.to(dtype)
    return type(batch)(moved(v, dtype) for v in batch) if isinstance(batch, (list, tuple)) else batch


def on(batch: Any, device: str) -> Any:
    """The batch on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, nn.utils.rnn.PackedSequence):
        packed: Any = batch
        return packed.to(device)
    if isinstance(batch, Mapping):
        return {k: on(v, device) for k, v in batch.items()}
    return type(batch)(on(v, device) for v in batch) if isinstance(batch, (list, tuple)) else batch


def written(row: Row) -> str:
    """One line of the table."""
    if row.error:
        return f"{row.name:28} {row.error}"
    opaque = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in row.opaque.items())
    return (
        f"{row.name:28} {row.nodes:6} {'equal' if row.bits else 'DIFFER':7}{row.float64:9.1e} {row.float32:8.2f}  "
        f"{'equal' if row.buffers else 'DIFFER':8}{row.seconds:6.2f} {row.derive:6.2f}  "
        f"{'' if row.right else 'WRONG '}{'(casts to float32) ' if row.rounds else ''}{opaque}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit status is the number of models that are not right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="parts of names; all without")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--further", action="store_true", help="more of them, for the ten families")
    parser.add_argument("--written", action="store_true", help="models as people write them")
    parser.add_argument("--eval", action="store_true", help="in eval mode")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="the narrow one")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    mode = Mode(not options.eval, getattr(torch, options.dtype), options.device)
    from benchmarks import layers
    from benchmarks import written as by_hand

    if options.layers:
        models = layers.layers()
    elif options.written:
        models = by_hand.written()
    else:
        from benchmarks import configurations, further  # they need the transformers library

        models = configurations.variants() if options.variants else configurations.families()
        models = further.further() if options.further else models
    print(f"{'model':28} {'nodes':>6} {'bits':7}{'float64':>9} {'float32':>8}  {'buffers':8} trace derive  opaque")
    failed = 0
    for name, make in models.items():
        if options.names and not any(part in name for part in options.names):
            continue
        row = measured(name, make, mode)
        failed += not row.right
        print(written(row), flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
