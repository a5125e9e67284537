"""``plan.apply_``: the best plan that torch's own checkpointing reaches on the user's modules.

Eager execution, no generated code: some modules run under ``torch.utils.checkpoint``, so hooks, DDP and FSDP stay as
they are. Which modules is decided by running the step on fake tensors: peak and recomputation are counted, not
modelled. Candidates are layers of every row of repeated modules, taken from the front, alone or in groups.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from chainrule.backends.torch.recompute.eager import Alive
from chainrule.backends.torch.recompute.extract import CPU, CUDA, Meter
from chainrule.backends.torch.recompute.joint import kept_generators, quiet
from chainrule.errors import BudgetError, ModelError
from chainrule.frontends.torch.batch import leaves, with_leaves
from chainrule.planning.budget import size_text
from chainrule.verbs.checkpoint.structure import likely, taken_apart

_MARK = "_chainrule_plain_forward"
_ROWS = 3  # of modules that are tried
_INSIDE = "chainrule.checkpoint(model, batch, budget=...), which plans inside of modules"


@dataclass(frozen=True)
class Choice:
    """Modules to run under checkpoint, and what the step then needs."""

    names: tuple[str, ...]
    peak: int
    seconds: float


@dataclass(frozen=True)
class Applied:
    """What was done to a model.

    Attributes:
        modules: names of the modules that run again in the backward pass. peak_bytes: of the step, as in the plan.
        recompute_fraction: time of recomputation over the time of the eager step, by the cost model.
        digest: the same on every rank that made the same choice.
    """

    modules: tuple[str, ...]
    peak_bytes: int
    recompute_fraction: float
    digest: str
    model: nn.Module = field(repr=False)

    def code(self) -> str:
        """The lines to paste in place of ``apply_``."""
        buffers = any(True for name in self.modules for _ in self.model.get_submodule(name).buffers())
        return "\n".join(
            [
                *(["# buffers such as running statistics are updated twice by these lines, once by apply_"] * buffers),
                "from functools import partial",
                "from torch.utils.checkpoint import checkpoint",
                "",
                f"for name in {list(self.modules)!r}:",
                "    module = model.get_submodule(name)",
                "    module.forward = partial(checkpoint, module.forward, use_reentrant=False)",
            ]
        )

    def undo(self) -> None:
        """Takes the wrapping away again."""
        unwrap(self.model)

    def __str__(self) -> str:
        return (
            f"{len(self.modules)} modules run again in the backward pass: a step needs {size_text(self.peak_bytes)}, "
            f"for {100 * self.recompute_fraction:.1f} % more time"
        )


def apply_(plan: Any, model: nn.Module) -> Applied:
    """See :meth:`Plan.apply_`.

    Raises:
        ModelError: the model is not the one that was planned. BudgetError: checkpointing modules does not get there.
    """
    program = plan.program
    if [n for n, _ in model.named_parameters()] != [n for n, _ in program.model.named_parameters()]:
        raise ModelError("the plan was made for another model", required="a model with the same parameters")
    plain, choices = tried(program)
    best = cheapest(choices, plan.limit, plan.static_bytes, _INSIDE)
    unwrap(model)
    wrap(model, best.names)
    again = max(best.seconds / plain.seconds - 1.0, 0.0)
    return Applied(
        best.names, plan.static_bytes + best.peak, again, f"{program.problem.digest}:{hash_of(best.names)}", model
    )


def cheapest(choices: Sequence[Choice], limit: int, static: int, instead: str) -> Choice:
    """The fastest of them that fits.

    Raises:
        BudgetError: none does.
    """
    fitting = [c for c in choices if static + c.peak <= limit]
    if not fitting:
        least = static + min(c.peak for c in choices)
        raise BudgetError(
            "checkpointing modules as wholes does not get into the budget",
            given=size_text(limit),
            required=f"at least {least:,} bytes ({size_text(least)})",
            instead=instead,
            minimum_bytes=least,
        )
    return min(fitting, key=lambda c: (c.seconds, c.peak))


def hash_of(names: Sequence[str]) -> str:
    """A short hash of the choice, the same in every process."""
    return hashlib.blake2b("|".join(names).encode(), digest_size=6).hexdigest()


def wrap(model: nn.Module, names: Sequence[str]) -> None:
    """Runs these modules under torch's checkpoint when gradients are on and the module trains or not alike."""
    for name in names:
        module = model.get_submodule(name)
        plain = module.forward
        module.__dict__[_MARK] = plain
        module.forward = partial(_run, plain, module)  # type: ignore[method-assign]


def _run(forward: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    before = _buffers(module)

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _as_they_were(before)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _buffers(module: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Copies of the buffers that a forward pass may write, taken before it does; only while the module trains."""
    owners = [m for m in module.modules() if m.training]
    return [(m, name, b.detach().clone()) for m in owners for name, b in m._buffers.items() if b is not None]


class _as_they_were:
    """Lets a forward pass run again on its old buffers; what it writes to them is thrown away.

    It is entered once per run: a retained graph, or a second derivative, runs the forward pass several times.
    """

    def __init__(self, before: list[tuple[nn.Module, str, torch.Tensor]]) -> None:
        self._before = before
        self._now: list[list[torch.Tensor | None]] = []

    def __enter__(self) -> None:
        self._now.append([m._buffers[name] for m, name, _ in self._before])
        for m, name, old in self._before:
            m._buffers[name] = old.clone()

    def __exit__(self, *args: Any) -> None:
        for (m, name, _), held in zip(self._before, self._now.pop(), strict=True):
            m._buffers[name] = held


def unwrap(model: nn.Module) -> None:
    """Undoes :func:`wrap`."""
    for module in model.modules():
        if module.__dict__.pop(_MARK, None) is not None:
            del module.forward


def tried(step: Any) -> tuple[Choice, list[Choice]]:
    """(the step as it is, all choices) with their peaks and times, by runs on fake tensors."""
    plain = measured(step, ())
    found = [plain]
    seen: set[tuple[str, ...]] = {()}
    for names in candidates(step.model):
        if names not in seen:
            seen.add(names)
            found.append(measured(step, names))
    return plain, found


def candidates(model: nn.Module) -> list[tuple[str, ...]]:
    """Sets of modules: of every row of repeated modules the first k, for several k, and rows together."""
    lists: list[list[str]] = []
    rows: list[list[str]] = []
    for path, module in model.named_modules():
        children = [
            f"{path}.{name}" if path else name
            for name, child in module.named_children()
            if next(child.parameters(), None) is not None
        ]
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1:
            lists.append(children)
        elif not isinstance(module, (nn.ModuleList, nn.Sequential)) and children:
            rows.append([c for c in children if not isinstance(model.get_submodule(c), nn.ModuleList)])
    found: list[tuple[str, ...]] = []
    longest = sorted(lists, key=len, reverse=True) + sorted(rows, key=len, reverse=True)
    for row in longest[:_ROWS]:
        for part in (1, 2, 3, 4, 6, 8):
            count = -(-len(row) * part // 8)
            found.append(tuple(row[:count]))
    top = [n for n, c in model.named_children() if next(c.parameters(), None) is not None]
    found.append(tuple(n for n in top if not isinstance(model.get_submodule(n), nn.ModuleList)))
    return [f for f in found if f]


def measured(step: Any, names: Sequence[str]) -> Choice:
    """The step with these modules under checkpoint, on fake tensors; the user's model is not touched.

    A model that looks at values of its tensors runs on a copy with data, and so does its backward pass.
    """
    try:
        with quiet(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return _measured(step, names, lambda t: _fake(mode, t))
    except (RuntimeError, ValueError, IndexError):  # as models and torch say it when a value is asked for
        if any(p.is_meta for p in step.model.parameters()):
            raise
        with kept_generators():
            return _measured(step, names, _copied)


def _measured(step: Any, names: Sequence[str], twin: Callable[[torch.Tensor], torch.Tensor]) -> Choice:
    memo: dict[int, Any] = {}
    for p in step.model.parameters():
        memo[id(p)] = nn.Parameter(twin(p), p.requires_grad)
    for b in step.model.buffers():
        memo[id(b)] = twin(b)
    for module in step.model.modules():  # tensors that are neither
        memo |= {id(t): twin(t) for t in vars(module).values() if isinstance(t, torch.Tensor)}
    try:
        model = copy.deepcopy(step.model, memo)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"the model cannot be copied without its data: {error}",
            required="apply_ before fully_shard, or any other wrapping that forbids copies",
            instead="plan.apply_(model), then fully_shard(...) or DistributedDataParallel(model)",
        ) from error
    unwrap(model)
    wrap(model, names)
    args = with_leaves(step.args, iter([twin(t) for _, t in leaves(step.args)]))
    kwargs = with_leaves(dict(step.kwargs), iter([twin(t) for _, t in leaves(step.kwargs)]))
    there = [*model.parameters(), *model.buffers(), *(t for _, t in leaves((args, kwargs)))]
    alive, meter = Alive(), Meter()
    alive.know(there)
    with meter, alive, torch.enable_grad():
        structure, tensors = taken_apart(step.called(model, args, kwargs))
        through = likely(structure, tensors)
        found = [t for t, starts in zip(tensors, through, strict=True) if starts]
        if step.loss is not None:
            alive.peak = max(alive.peak, alive.now + max(step.loss.forward, step.loss.backward))
        cotangents = [torch.zeros_like(t) for t in found]
        torch.autograd.backward(found, cotangents)
    prices = CUDA if any(p.is_cuda for p in step.model.parameters()) else CPU
    return Choice(tuple(names), alive.peak, meter.flops / prices.flops + meter.moved / prices.bytes)


def _fake(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach()
    made = torch.empty_like(plain) if plain.is_meta else mode.from_tensor(plain)
    return made.requires_grad_(tensor.requires_grad) if not isinstance(tensor, nn.Parameter) else made


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    made = tensor.detach().clone()
    return made.requires_grad_(tensor.requires_grad) if not isinstance(tensor, nn.Parameter) else made
