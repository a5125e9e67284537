"""``plan.apply_``: the best plan that torch's own checkpointing reaches on the user's modules.

Eager execution, no generated code: some modules run under ``torch.utils.checkpoint``, so hooks, DDP and FSDP stay as
they are. Which modules is decided by running the step on fake tensors: peak and recomputation are counted, not
modelled. Candidates are layers of every row of repeated modules, taken from the front, alone or in groups.
"""

from __future__ import annotations

import copy
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
from chainrule.errors import BudgetError, ModelError
from chainrule.frontends.torch.batch import leaves, with_leaves
from chainrule.verbs.checkpoint.budget import size_text

_MARK = "_chainrule_plain_forward"
_ROWS = 3  # of modules that are tried


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
        return "\n".join(
            [
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
    limit = plan.limit - plan.static_bytes
    plain, choices = tried(program)
    fitting = [c for c in choices if c.peak <= limit]
    if not fitting:
        least = min(c.peak for c in choices)
        raise BudgetError(
            "checkpointing modules as wholes does not get into the budget",
            given=size_text(plan.limit),
            required=f"at least {plan.static_bytes + least:,} bytes",
            instead="chainrule.checkpoint(model, batch, budget=...), which plans inside of modules",
            minimum_bytes=plan.static_bytes + least,
        )
    best = min(fitting, key=lambda c: (c.seconds, c.peak))
    unwrap(model)
    wrap(model, best.names)
    again = max(best.seconds / plain.seconds - 1.0, 0.0)
    return Applied(
        best.names, plan.static_bytes + best.peak, again, f"{program.problem.digest}:{hash_of(best.names)}", model
    )


def hash_of(names: Sequence[str]) -> str:
    """A short hash of the choice, the same in every process."""
    import hashlib

    return hashlib.blake2b("|".join(names).encode(), digest_size=6).hexdigest()


def wrap(model: nn.Module, names: Sequence[str]) -> None:
    """Runs these modules under torch's checkpoint when gradients are on and the module trains or not alike."""
    for name in names:
        module = model.get_submodule(name)
        plain = module.forward
        module.__dict__[_MARK] = plain
        module.forward = partial(_run, plain)  # type: ignore[method-assign]


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def unwrap(model: nn.Module) -> None:
    """Undoes :func:`wrap`."""
    for module in model.modules():
        if module.__dict__.pop(_MARK, None) is not None:
            del module.forward


def tried(program: Any) -> tuple[Choice, list[Choice]]:
    """(the step as it is, all choices) with their peaks and times, by runs on fake tensors."""
    plain = measured(program, ())
    found = [plain]
    seen: set[tuple[str, ...]] = {()}
    for names in candidates(program.model):
        if names not in seen:
            seen.add(names)
            found.append(measured(program, names))
    return plain, found


def candidates(model: nn.Module) -> list[tuple[str, ...]]:
    """Sets of modules: of every row of repeated modules the first k, for several k, and rows together."""
    lists: list[list[str]] = []
    rows: list[list[str]] = []
    for path, module in model.named_modules():
        children = [
            f"{path}.{name}" if path else name
            for name, child in module.named_children()
            if next(child.parameters(), None) is not None and not _remembers(child)
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


def _remembers(module: nn.Module) -> bool:
    """Whether running it twice changes something: buffers that a forward pass updates."""
    return any(isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats for m in module.modules())


def measured(program: Any, names: Sequence[str]) -> Choice:
    """The step with these modules under checkpoint, on fake tensors; the user's model is not touched."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        memo: dict[int, Any] = {}
        for p in program.model.parameters():
            memo[id(p)] = nn.Parameter(_fake(mode, p), p.requires_grad)
        for b in program.model.buffers():
            memo[id(b)] = _fake(mode, b)
        try:
            model = copy.deepcopy(program.model, memo)
        except (AssertionError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"the model cannot be copied without its data: {error}",
                required="apply_ before fully_shard, or any other wrapping that forbids copies",
                instead="plan.apply_(model), then fully_shard(...) or DistributedDataParallel(model)",
            ) from error
        unwrap(model)
        wrap(model, names)
        args = with_leaves(program.args, iter([_fake(mode, t) for _, t in leaves(program.args)]))
        kwargs = with_leaves(dict(program.kwargs), iter([_fake(mode, t) for _, t in leaves(program.kwargs)]))
        there = [*model.parameters(), *model.buffers(), *(t for _, t in leaves((args, kwargs)))]
        alive, meter = Alive(), Meter()
        alive.know(there)
        with meter, alive, torch.enable_grad():
            out = model(*args, **kwargs)
            found = [t for _, t in leaves(out) if t.requires_grad]
            if program.loss is not None:
                alive.peak = max(alive.peak, alive.now + max(program.loss.forward, program.loss.backward))
            cotangents = [torch.empty_like(t) for t in found]
            torch.autograd.backward(found, cotangents)
        prices = CUDA if any(p.is_cuda for p in program.model.parameters()) else CPU
        return Choice(tuple(names), alive.peak, meter.flops / prices.flops + meter.moved / prices.bytes)


def _fake(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach()
    made = torch.empty_like(plain) if plain.is_meta else mode.from_tensor(plain)
    return made.requires_grad_(tensor.requires_grad) if not isinstance(tensor, nn.Parameter) else made
