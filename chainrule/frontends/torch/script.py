"""A training script as it is: run up to its optimizer's step, with model, batch, loss and optimizer taken from it.

Nothing in the script is edited. Global hooks of torch see every call of a module and every step of an optimizer, a
function mode sees every torch function outside of modules and ``backward`` itself. Between two backward passes that is
a short program: calls of models, then what becomes of their outputs until the loss. It can be run again on the same
objects (:class:`Segment`), which is what the verbs need.
"""

from __future__ import annotations

import contextlib
import gc
import runpy
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from chainrule.errors import ModelError
from chainrule.frontends.torch.batch import leaves
from chainrule.frontends.torch.generators import generator_states
from chainrule.frontends.torch.modules import around_calls
from chainrule.frontends.torch.places import Place, called_at, here, skipped
from chainrule.frontends.torch.script_calls import asks, spelled, writes_a_leaf
from chainrule.frontends.torch.script_end import (
    EARLY,
    Stop,
    end_at_next_line,
    ended,
    no_backward,
    raised,
    stepped_first,
)


@dataclass(eq=False)
class Event:
    """One call outside of modules: a module (``module``) or a torch function, its arguments, what came out, where.

    ``off``: where gradients had been switched off, if the call ran without.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    place: Place
    module: nn.Module | None = None
    autocast: tuple[str, torch.dtype] | None = None
    rng: list[torch.Tensor] | None = None
    off: Place | None = None


@dataclass(eq=False)
class Segment:
    """What led to one call of ``backward``: the events that the loss depends on, in order, and the loss.

    ``before``: the gradients, by identity of the parameter, that were there already and not zero. ``stepped``: whether
    an optimizer has stepped on it. ``taken_out``: name and place of the last call before it that took numbers of a
    learned tensor out of torch, or cut their history.
    """

    events: list[Event]
    loss: torch.Tensor
    scale: float = 1.0
    rng: list[torch.Tensor] | None = None  # before its first model ran: with it, dropout draws the same again
    before: dict[int, torch.Tensor] = field(default_factory=dict)
    stepped: bool = False
    taken_out: tuple[str, Place] | None = None

    @property
    def models(self) -> list[Event]:
        """The calls of modules that have parameters."""
        return [e for e in self.events if e.module is not None and any(True for _ in e.module.parameters())]

    @property
    def roots(self) -> list[nn.Module]:
        """The modules with parameters, each once."""
        return list({id(e.module): e.module for e in self.models if e.module is not None}.values())

    def outside(self) -> list[torch.Tensor]:
        """The tensors that events read and no event made, in order: batch, targets, learned tensors without module."""
        made = {id(t) for e in self.events for _, t in leaves(e.out)}
        found: dict[int, torch.Tensor] = {}
        for event in self.events:
            for _, t in leaves((event.args, event.kwargs)):
                if id(t) not in made:
                    found.setdefault(id(t), t)
        return list(found.values())

    def replay(self, given: Mapping[int, Any], events: Sequence[Event] | None = None) -> torch.Tensor:
        """The loss, computed again; ``given``: identity of a tensor -> the value in its place."""
        values = dict(given)

        def now(t: torch.Tensor) -> Any:
            return values.get(id(t), t)

        for event in self.events if events is None else events:
            with torch.no_grad() if event.off is not None else contextlib.nullcontext():
                out = called_at(event.place, event.call, *mapped(event.args, now), **mapped(event.kwargs, now))
            for (_, before), (_, after) in zip(leaves(event.out), leaves(out), strict=False):
                values[id(before)] = after
        return values[id(self.loss)]


@dataclass(eq=False)
class Captured:
    """What a script was about to do at an optimizer's step.

    Attributes:
        segments: since the last step of any optimizer, those whose loss depends on what it moves (several where
            gradients are accumulated). optimizer, step: which, and its how-manieth step. gradients: of its parameters
            at that moment, by identity. autocast: device and dtype, if a model ran under it. names: module or tensor
            -> variable of the script. others: the optimizers that exist besides.
    """

    segments: list[Segment]
    optimizer: torch.optim.Optimizer
    step: int
    gradients: dict[int, torch.Tensor]
    autocast: tuple[str, torch.dtype] | None
    names: Mapping[int, str]
    others: list[torch.optim.Optimizer] = field(default_factory=list)


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same structure with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        made = {k: mapped(v, change) for k, v in value.items()}
        if type(value) is dict:
            return made
        try:
            return type(value)(made)  # type: ignore[call-arg]
        except TypeError:
            return made
    if hasattr(value, "_fields"):
        return type(value)(*(mapped(v, change) for v in value))  # type: ignore[call-arg]
    if type(value) in (list, tuple):
        return type(value)(mapped(v, change) for v in value)
    return value


# ---- watching ------------------------------------------------------------------------------------------------
class Watch(TorchFunctionMode):
    """Sees what a script does with torch while it runs.

    Args:
        at_step: which step of each optimizer to stop at. seen: called with each capture, before the step is made.
        leftovers: whether to run on until the next backward pass, to see whether gradients were left over.
    """

    def __init__(self, at_step: int, seen: Callable[[Captured], None], leftovers: bool) -> None:
        super().__init__()
        self.at_step, self.seen, self.leftovers = at_step, seen, leftovers
        self.events: list[Event] = []
        self.segments: list[Segment] = []
        self.steps: dict[int, int] = {}
        self.captured: list[Captured] = []
        self.left: list[bool] = []
        self._dependent: set[int] = set()
        self._off = Place()
        self._taken_out: tuple[str, Place] | None = None
        self._running: list[nn.Module] = []
        self._paused = False
        self._scaled: dict[int, tuple[torch.Tensor, float]] = {}
        self._stepped: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.stopping = False
        self._rng: list[torch.Tensor] | None = None
        self._kept: list[torch.Tensor] = []
        self._round: set[int] = set()
        self._known: set[int] | None = None
        self._older = weakref.WeakSet(_optimizers())  # not the script's
        self.failure: ModelError | None = None
        self.backwards = 0
        self.renewed = False  # whether the loss after the first step is of other parameters
        self._early: tuple[Place, set[int], int] | None = None  # a step before any backward: where, events, how many
        self.early_optimizer: torch.optim.Optimizer | None = None
        self._ignored = 0  # how often the script has been told to end

    # ---- functions -----------------------------------------------------------------------------------------
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused or self._running:
            return func(*args, **kwargs)
        if func is torch.Tensor.backward:
            self._backward(args[0])
            with self.quiet():
                return func(*args, **kwargs)
        if func is torch._C._set_grad_enabled and args and not args[0]:  # type: ignore[attr-defined]
            self._off = here()
        if not any(self._depends(t) for _, t in leaves((args, kwargs))):
            return func(*args, **kwargs)
        place = here()
        with self.quiet():
            out = func(*args, **kwargs)
        if any(True for _ in leaves(out)) and not writes_a_leaf(func, out, (args, kwargs)):
            self._add(Event(func, args, dict(kwargs), out, place, off=self._switched_off()))
        if not any(t.requires_grad for _, t in leaves(out)) and not asks(func):
            self._taken_out = (spelled(func), place)
        return out

    def _switched_off(self) -> Place | None:
        """Where gradients were switched off, if they are."""
        return None if torch.is_grad_enabled() else self._off

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing is recorded in the block."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _depends(self, t: torch.Tensor) -> bool:
        return id(t) in self._dependent or (t.requires_grad and t.is_leaf)

    def _add(self, event: Event) -> None:
        self.events.append(event)
        self._dependent |= {id(t) for _, t in leaves(event.out)}

    def forget(self) -> None:
        """Drops what led to the last steps."""
        self.events, self.segments, self._dependent = [], [], set()

    # ---- modules -------------------------------------------------------------------------------------------
    def before(self, module: nn.Module, args: Any) -> None:
        """A module is called."""
        if self.stopping and not self._paused:
            raise self._stop()
        if not self._paused:
            if not self._running:
                self._rng = generator_states()
            self._running.append(module)

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A module has ended; only outermost calls count."""
        if self._paused or module not in self._running:
            return
        while self._running.pop() is not module:
            pass
        if self._running:
            return
        learned = any(True for _ in module.parameters())
        if learned or any(self._depends(t) for _, t in leaves((args, kwargs))):
            device = next((t.device.type for _, t in leaves((args, kwargs))), "cpu")
            casts = torch.is_autocast_enabled(device)
            autocast = (device, torch.get_autocast_dtype(device)) if casts else None
            off = self._switched_off()
            self._add(Event(module, args, dict(kwargs), output, here(), module, autocast, self._rng, off))

    # ---- backward and steps ---------------------------------------------------------------------------------
    def _backward(self, loss: torch.Tensor) -> None:
        if self.stopping:
            raise self._stop()
        self.backwards += 1
        own, scale = self._scaled.get(id(loss), (loss, 1.0))
        events = slice_of(self.events, own)
        rng = next((e.rng for e in events if e.rng is not None), None)
        segment = Segment(events, own, scale, rng, taken_out=self._taken_out)
        if self._early is not None and any(id(e) in self._early[1] for e in segment.models):
            self.failure = stepped_first(self._early[0])
            self.stopping = True
            raise self.failure
        if self._stepped:  # the first backward after a step: are its gradients still there?
            learned = _learned(segment)
            # Those of a model that this loss does not depend on are no business of zero_grad() any more.
            left = [
                p.grad is not None and torch.equal(p.grad, g) and bool(g.any())
                for p, g in self._stepped
                if id(p) in learned
            ]
            self.left.append(bool(left) and all(left))
            self.renewed = not left and bool(learned)
            self._stepped = []
            self._finish_if_done(after_backward=True)
        self.segments = [s for s in self.segments if not s.stepped]
        segment.before = _gradients_of(segment)
        self.segments.append(segment)

    def scale(self, scaler: Any, original: Callable[..., Any], outputs: Any) -> Any:
        """``GradScaler.scale``: remembers what the loss was before."""
        with self.quiet():
            out = original(scaler, outputs)
        if isinstance(outputs, torch.Tensor) and isinstance(out, torch.Tensor):
            self._scaled[id(out)] = (outputs, float(scaler.get_scale()))
            self._kept = [*self._kept[-4:], out]  # so that its identity is not given to another
        return out

    def step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer is about to step."""
        if self._paused:
            return
        if self.stopping:
            raise self._stop()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if all(s.stepped for s in self.segments) and callable(closure):
            closure()
        if not self.backwards:  # in the wrong order, or to begin a schedule
            before = 0 if self._early is None else self._early[2]
            if before >= EARLY:
                self.failure, self.stopping = no_backward(optimizer), True
                raise self.failure
            called = {id(e) for e in self.events} | (set() if self._early is None else self._early[1])
            self._early = (here(), called, before + 1)
            self.early_optimizer = optimizer
            return
        count = self.steps[id(optimizer)] = self.steps.get(id(optimizer), 0) + 1
        moved = {id(p) for g in optimizer.param_groups for p in g["params"]}
        if count == self.at_step:
            mine = [s for s in self.segments if not moved or moved & _learned(s)] or self.segments
            if not mine:
                self.failure, self.stopping = no_backward(optimizer), True
                raise self.failure
            others = [o for o in _optimizers() if o is not optimizer and o not in self._older]
            autocast = next((e.autocast for s in mine for e in s.models if e.autocast is not None), None)
            grads = {id(p): p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None}
            for s in mine:
                for root in s.roots:
                    grads |= {id(p): p.grad for p in root.parameters() if p.grad is not None}
            with self.quiet():
                grads = {k: g.detach().clone() for k, g in grads.items()}
                names = _names(mine)
                captured = Captured(mine, optimizer, count, grads, autocast, names, others)
                self.captured.append(captured)
                try:
                    self.seen(captured)
                except ModelError as error:
                    self.failure, self.stopping = error, True
                    raise
                self._stepped = [
                    (p, p.grad.detach().clone())
                    for g in optimizer.param_groups
                    for p in g["params"]
                    if p.grad is not None
                ][:20]
        self._finish_if_done(after_backward=False)
        # Later losses may be made of earlier values (a GAN's sample), until each optimizer has had its turn.
        self._round.add(id(optimizer))
        for s in self.segments:
            s.stepped = s.stepped or not moved or bool(moved & _learned(s)) or not s.events
        if self._known is None or id(optimizer) not in self._known:
            self._known = {id(o) for o in _optimizers() if o not in self._older} | {id(optimizer)}
        if len(self._round) >= len(self._known):
            self.forget()
            self._round = set()

    def _finish_if_done(self, after_backward: bool) -> None:
        if not self.captured:
            return
        known = {id(c.optimizer) for c in self.captured}
        waiting = [o for o in self.captured[0].others if id(o) not in known and self.steps.get(id(o), 0) < self.at_step]
        again = max(self.steps.values()) > self.at_step
        if (not waiting and (after_backward or not self.leftovers)) or again:
            self.stopping = True
            raise self._stop()

    def _stop(self) -> Stop:
        """What ends the script; where it has been swallowed before (a bare ``except``), the handlers end as well."""
        self._ignored += 1
        if self._ignored > 1:
            end_at_next_line(run_script.__code__)
        return Stop()


def slice_of(events: Sequence[Event], loss: torch.Tensor) -> list[Event]:
    """The events that a loss depends on, in order."""
    needed, kept = {id(loss)}, []
    for event in reversed(events):
        if any(id(t) in needed for _, t in leaves(event.out)):
            kept.append(event)
            needed |= {id(t) for _, t in leaves((event.args, event.kwargs))}
    return kept[::-1]


def _learned(segment: Segment) -> set[int]:
    own = {id(p) for root in segment.roots for p in root.parameters()}
    return own | {id(t) for t in segment.outside() if t.requires_grad}


def _gradients_of(segment: Segment) -> dict[int, torch.Tensor]:
    """The gradients, not zero, that its learned tensors have now."""
    learned = [p for root in segment.roots for p in root.parameters()]
    learned += [t for t in segment.outside() if t.requires_grad and t.is_leaf]
    with torch.no_grad():
        return {id(p): p.grad.clone() for p in learned if p.grad is not None and bool((p.grad != 0).any())}


def _optimizers() -> list[torch.optim.Optimizer]:
    """The optimizers that exist; wrappers of one (Accelerate's) do not count."""
    found = []
    for o in gc.get_objects():
        try:
            if (
                issubclass(type(o), torch.optim.Optimizer)
                and not hasattr(o, "optimizer")
                and hasattr(o, "param_groups")
            ):
                found.append(o)
        except ReferenceError:
            continue
    return found


def _names(segments: Sequence[Segment]) -> dict[int, str]:
    """What modules and learned tensors are called in the script, from the variables of the frames that run."""
    wanted = {id(r) for s in segments for r in s.roots} | {id(t) for s in segments for t in s.outside()}
    found: dict[int, str] = {}
    frame = sys._getframe(1)
    while frame is not None:
        if not skipped(frame.f_code):
            for scope in (frame.f_locals, frame.f_globals):
                for name, value in list(scope.items()):
                    if id(value) in wanted and not name.startswith("_"):
                        found.setdefault(id(value), name)
        frame = frame.f_back  # type: ignore[assignment]
    return found


# ---- running -------------------------------------------------------------------------------------------------
def run_script(
    path: Path, arguments: Sequence[str], seen: Callable[[Captured], None], at_step: int = 1, leftovers: bool = False
) -> Watch:
    """Runs a script as ``python path arguments`` would, until everything has been seen.

    Args:
        path, arguments: the script and its own arguments. seen: called with each capture, while the script waits.
        at_step: which step of each optimizer. leftovers: run on until the next backward pass.

    Raises:
        ModelError: the script raised, ended before an optimizer stepped, or trains in a way that was not seen.
    """
    watch = Watch(at_step, seen, leftovers)
    argv, search = list(sys.argv), list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    scale = torch.amp.GradScaler.scale

    def scaled(self: Any, outputs: Any) -> Any:
        return watch.scale(self, scale, outputs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(around_calls(watch.before, watch.after))
        stack.callback(register_optimizer_step_pre_hook(watch.step).remove)
        torch.amp.GradScaler.scale = scaled  # type: ignore[method-assign]
        stack.callback(setattr, torch.amp.GradScaler, "scale", scale)
        torch.compiler.set_stance("force_eager")  # compiled models run as they were written
        stack.callback(torch.compiler.set_stance, "default")
        stack.enter_context(watch)
        stack.callback(sys.settrace, sys.gettrace())
        try:
            runpy.run_path(str(path), run_name="__main__")
        except Stop:
            pass
        except SystemExit as error:
            if not watch.captured and error.code not in (0, None):
                raise ended(path, f"it exited with {error.code!r}", watch) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, ModelError) and watch.failure is None:
                raise
            if not watch.captured and watch.failure is None:
                raise raised(path, error) from error
        finally:
            sys.argv, sys.path[:] = argv, search
    if watch.failure is not None:
        raise watch.failure
    if not watch.captured:
        if watch.early_optimizer is not None:
            raise no_backward(watch.early_optimizer)
        raise ended(path, "it ended", watch)
    return watch
