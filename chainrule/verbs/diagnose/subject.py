"""What is examined: a model, its batch, its loss and its optimizer, run eagerly as the user's own code would.

Works on anything that can be called: models that no export takes, compiled modules (their originals are run), shared
modules, mixed precision. One :class:`Subject` makes all the passes that the checks ask for, and counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from chainrule.errors import ChainruleError, ModelError
from chainrule.frontends.torch import batch as convention
from chainrule.frontends.torch import restore_generators
from chainrule.frontends.torch.places import Place, called_at, of_traceback
from chainrule.verbs.case import Case
from chainrule.verbs.diagnose.heap import bytes_of, give_back
from chainrule.verbs.diagnose.keeping import kept, parameters_of
from chainrule.verbs.diagnose.sharding import is_sharded, whole
from chainrule.verbs.diagnose.tape import Tape
from chainrule.verbs.diagnose.values import Value, tensors_in

_LARGE = 16e6  # bytes
Watch = Callable[[Value, torch.Tensor], torch.Tensor | None]  # what it returns takes the gradient's place


@dataclass(frozen=True, eq=False)
class Observed:
    """One recorded run: the tape, Values of loss and outputs, and the gradients of the parameters by name."""

    tape: Tape
    loss: Value
    outputs: tuple[Value, ...]
    parameters: Mapping[str, Value]
    inputs: Mapping[str, Value]
    gradients: Mapping[str, torch.Tensor | None]
    loss_number: float
    alike: bool = False  # whether what the model returns is the same for every sample


@dataclass(eq=False)
class Subject:
    """A case to be examined.

    Attributes:
        case: model, batch, loss or objective, optimizer. passes: forward and backward passes made so far.
        around: a context for every run (autocast of a captured script). ignored: identities of parameters that are
            another optimizer's business. rng: states of torch's generators to run from, where it is known.
    """

    case: Case
    around: Callable[[], Any] = nullcontext
    passes: int = 0
    notes: list[str] = field(default_factory=list)
    ignored: frozenset[int] = frozenset()
    rng: list[torch.Tensor] | None = None
    made: int = 0  # bytes of all values of a recorded pass

    # ---- parts ---------------------------------------------------------------------------------------------
    @cached_property
    def model(self) -> Any:
        """The model; of a compiled or wrapped one the original."""
        return original(self.case.model)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, if there is one."""
        return self.case.optimizer

    @cached_property
    def roots(self) -> dict[str, nn.Module]:
        """Modules by name: the model ``""``, a loss that is one ``"loss"``."""
        found = {"": self.model, "loss": self.case.loss}
        return {k: v for k, v in found.items() if isinstance(v, nn.Module)}

    @cached_property
    def parameters(self) -> dict[str, torch.Tensor]:
        """All parameters by dotted name; a shared one under its first."""
        found: dict[int, tuple[str, torch.Tensor]] = {}
        for root, module in self.roots.items():
            for name, p in module.named_parameters():
                found.setdefault(id(p), (".".join(q for q in (root, name) if q), p))
        return dict(found.values())

    @cached_property
    def trainable(self) -> dict[str, torch.Tensor]:
        """Those that require a gradient."""
        return {n: p for n, p in self.parameters.items() if p.requires_grad and id(p) not in self.ignored}

    @cached_property
    def sharded(self) -> bool:
        """Whether parameters are parts of several processes'."""
        return any(is_sharded(p) for p in self.parameters.values())

    @property
    def values(self) -> dict[str, torch.Tensor]:
        """The numbers of the trainable parameters, gathered where they are sharded."""
        return {n: whole(p.detach()) for n, p in self.trainable.items()}

    @cached_property
    def batch_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the batch by name: ``x``, ``y``, or the model's argument names."""
        mode = (
            "objective" if self.case.objective is not None
            else "none" if self.case.loss is None else "model" if self.case.loss == "model" else "loss"
        )  # fmt: skip
        return dict(convention.named_batch(self.model, self.case.batch, mode))

    @property
    def target(self) -> Any:
        """The second part of the batch, where the loss takes one."""
        batch = self.case.batch
        apart = self.case.loss != "model" and isinstance(batch, (tuple, list)) and len(batch) == 2
        return batch[1] if apart else None

    @property
    def input_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the batch that go into the model."""
        target = self.target
        if target is None:
            return self.batch_tensors
        fed = {id(t) for t in tensors_in(self.case.batch[0])}
        found: dict[int, tuple[str, torch.Tensor]] = {}
        for n, t in self.batch_tensors.items():  # an autoencoder's input is its target too
            if id(t) in fed:
                found.setdefault(id(t), (n, t))
        return dict(found.values())

    # ---- running -------------------------------------------------------------------------------------------
    def loss_of(self, batch: Any = None) -> tuple[torch.Tensor, Any]:
        """(loss, what the model returned) of one forward pass, as it runs.

        Raises:
            ModelError: the user's code raised, or the loss is not a scalar.
        """
        given = self.case.batch if batch is None else batch
        try:
            with self.around():
                return called_at(Place(), self._forward, given)  # the user's line is not on the stack
        except ChainruleError:
            raise
        except Exception as error:
            raise failure(error, given) from error

    def _forward(self, given: Any) -> tuple[torch.Tensor, Any]:
        case = self.case
        if case.objective is not None:
            return _scalar(case.objective(self.model, given), "the objective"), ()
        if case.loss == "model":
            output = convention.call_model(self.model, given)
            return _scalar(_own_loss(output), 'the loss that the model returned (loss="model")'), output
        inputs, target = convention.split(given)
        output = convention.call_model(self.model, inputs)
        assert callable(case.loss)
        return _scalar(case.loss(output, target), "the loss"), output

    @contextmanager
    def safely(self) -> Iterator[dict[int, torch.Tensor]]:
        """Everything of the user's is put back when the block ends; gives the parameters' bytes by identity."""
        try:
            with kept(self.roots.values(), self.optimizer, self._strangers()) as before, torch.enable_grad():
                yield before
        finally:
            self.tidy()

    def tidy(self) -> None:
        """Gives memory back that a pass has left behind, where passes are large enough to be worth the time."""
        if self.heavy:
            give_back()

    @cached_property
    def heavy(self) -> bool:
        """Whether parameters are of some size, or what the first recorded pass made."""
        return bytes_of(self.parameters.values()) > _LARGE or self.made > _LARGE

    def _strangers(self) -> Iterator[torch.Tensor]:
        yield from self.strange_tensors

    strange_tensors: list[torch.Tensor] = field(default_factory=list)

    def observe(
        self, batch: Any = None, *, sizes: bool = True, watch: Watch | None = None, boost: float = 1.0
    ) -> Observed:
        """One recorded forward and backward pass; nothing of the user's has changed afterwards."""
        self.passes += 1
        tape = Tape(self.roots, sizes, watch)
        given = self.case.batch if batch is None else batch
        with self.safely():
            named = self.parameters
            values = {n: tape.declare(p, f"parameter {n}", learned=p.requires_grad) for n, p in named.items()}
            for root in self.roots.values():
                for n, b in root.named_buffers():
                    tape.declare(b, f"buffer {n}")
            tensors = (
                self.batch_tensors if batch is None else dict(zip(self.batch_tensors, tensors_in(given), strict=False))
            )
            once: dict[int, Value] = {}
            for n, t in tensors.items():
                if id(t) not in once:
                    once[id(t)] = tape.declare(t, f"batch {n}", data=True)
            inputs = {n: once[id(t)] for n, t in tensors.items()}
            if self.rng is not None:
                restore_generators(self.rng)
            try:
                with tape.recording():
                    loss, output = self.loss_of(given)
            except ModelError as error:
                error.module = tape.path
                raise
            self.made = self.made or sum(tape.bytes_made())
            found = tape.of(loss)
            if found is None:
                found = tape.declare(loss, "the loss")
            outputs = tuple(v for t in tensors_in(output) if (v := tape.of(t)) is not None)
            number, alike = float(loss.detach()), _alike(output)
            if loss.requires_grad:
                try:
                    (loss if boost == 1.0 else loss * boost).backward()
                except Exception as problem:
                    raise failure(problem, given, "its backward pass") from problem
            del loss, output
            grads = {n: None if p.grad is None else whole(p.grad) for n, p in named.items()}
            for n, p in named.items():
                values[n].backward = None
                p.grad = None
        values |= {n: v for n, v in tape.adopted.items() if n in values}
        return Observed(tape.settle(), found, outputs, values, inputs, grads, number, alike)

    def gradients(self, batch: Any = None) -> tuple[float, dict[str, torch.Tensor | None]]:
        """Loss and gradients of one plain pass, at the parameters as they are now. Call inside of ``safely``."""
        self.passes += 1
        for p in self.parameters.values():
            p.grad = None
        loss, _ = self.loss_of(batch)
        if loss.requires_grad:
            loss.backward()
        grads = {n: None if p.grad is None else whole(p.grad) for n, p in self.parameters.items()}
        return float(loss.detach()), grads

    def steps(self, count: int) -> list[float]:
        """Losses before and after each of some steps of the user's own optimizer. Call inside of ``safely``."""
        assert self.optimizer is not None
        losses = []
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            self.passes += 1
            loss, _ = self.loss_of()
            losses.append(float(loss.detach()))
            if not (loss.requires_grad and losses[-1] == losses[-1] and abs(losses[-1]) != float("inf")):
                break
            loss.backward()
            self.optimizer.step()
        else:
            losses.append(float(self.loss_of()[0].detach()))  # with gradients on: some models take some inside
        return losses

    @cached_property
    def optimized(self) -> set[int]:
        """Identities of the tensors in the optimizer."""
        return {id(p) for p in parameters_of(self.optimizer)}


def _alike(output: Any) -> bool:
    """Whether the first tensor of numbers in an output is the same along dimension 0."""
    first = next((t for t in tensors_in(output) if t.is_floating_point() and t.dim()), None)
    if first is None or first.shape[0] < 2 or not first.numel() or is_sharded(first):
        return False
    rows = first.detach()
    if not bool((rows[0] == rows[1]).all()):  # nearly always
        return False
    return bool((rows == rows[:1]).all())


def original(model: Any) -> Any:
    """What a compiled model, or a replica of DDP or DataParallel, holds; others as they are."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _own_loss(output: Any) -> Any:
    value = getattr(output, "loss", None) if not isinstance(output, torch.Tensor) else output
    if value is None and isinstance(output, Mapping):
        value = output.get("loss")
    if value is None and isinstance(output, tuple) and output:
        value = output[0]
    return value


def _scalar(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point():
        return value.reshape(()) if value.dim() else value
    raise ModelError(
        f"{what} is not a scalar",
        given=convention.describe(value),
        required="one floating-point number: a tensor of shape ()",
        instead='reduction="mean" in the loss, or .mean() of it',
    )


def failure(error: Exception, batch: Any, what: str = "the model") -> ModelError:
    """What the user's code raised, with its line."""
    place = of_traceback(error)
    said = str(error).strip().split("\n")[0]
    line = place.segment.text if place.segment is not None else ""
    found = ModelError(
        f"{what} raised {type(error).__name__}{f' at {place.text}' if place.text else ''}: {said}",
        given=convention.describe(batch) + (f"; in `{' '.join(line.split())}`" if line else ""),
        required="a model and a loss that run on this batch",
        instead=_advice(said, batch),
    )
    found.place = place
    return found


def _advice(said: str, batch: Any) -> str:
    devices = {str(t.device) for t in tensors_in(batch)}
    if "same device" in said or "Expected all tensors" in said:
        return f"the batch is on {', '.join(sorted(devices))}: batch.to(device) and model.to(device) with one device"
    if "expected scalar type" in said or "dtype" in said or ("must match" in said and "type" in said):
        return "target.long() for class indices, target.float() for numbers, inputs in the dtype of the weights"
    if "mat1 and mat2" in said or "size" in said or "shape" in said:
        return "inputs and target of the shapes that the layers and the loss take"
    return ""
