"""A planned program as a module: the user's parameters, the planned passes, autograd around them.

The passes are one autograd function. What it keeps it keeps itself, so that its backward pass can free it as it goes;
versions are compared as autograd would. The cotangent of an output is taken from the engine in a function of its own,
so that it too can be freed at its last reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from chainrule.backends.torch.recompute.joint import Joint
from chainrule.backends.torch.recompute.source import Passes
from chainrule.errors import ModelError, UnsupportedOpError


class Call:
    """One call of a program: runs forwards, and is remembered for the backward pass."""

    def __init__(
        self,
        joint: Joint,
        passes: Passes,
        inputs: Sequence[torch.Tensor],
        write: Callable[..., None],
        holds: Callable[..., None],
        able: Sequence[bool],
        whole: Callable[[], tuple[Joint, Passes]],
    ) -> None:
        self.joint, self.passes, self.inputs = joint, passes, list(inputs)
        self.write, self.holds = write, holds
        self.able, self.whole = able, whole
        self.partial = any(g is None and a for g, a in zip(joint.cotangents, able, strict=True))
        self.states: list[torch.Tensor] = []
        self.kept: list[Any] | None = None
        self.versions: list[tuple[torch.Tensor, int]] = []
        self.cotangents: dict[int, torch.Tensor] = {}
        self.kinds: list[tuple[Any, ...]] = []

    def forward(self) -> tuple[torch.Tensor, ...]:
        plain = [t.detach() for t in self.inputs]
        if self.partial and self.joint.draws:
            self.states = states()
        with _no_autocast():
            outputs, news, kept = self.passes.forward(*plain)
        # What the backward pass reads of a buffer is its value from before it is written.
        if self.joint.changing:
            inputs = self.joint.given
            for k in self.passes.read:
                if inputs[k] in self.joint.changing:
                    self.inputs[k] = plain[k].clone()
        count = len(self.joint.updates)
        self.holds(news[count:])
        with torch.no_grad():
            for path, value in zip(self.joint.updates, news[:count], strict=True):
                self.write(path, value)
        outputs = tuple(_own(o, plain, outputs[:k]) for k, o in enumerate(outputs))
        returned = {id(o) for o in outputs}
        self.kept = [k.detach() if id(k) in returned and isinstance(k, torch.Tensor) else k for k in kept]
        self.kinds = [(o.shape, o.dtype, o.device) for o in outputs]
        read = [self.inputs[k] for k in self.passes.read]
        self.versions = [(t, t._version) for t in [*read, *self.kept] if isinstance(t, torch.Tensor)]
        self.all_versions = [(t, t._version) for t in self.inputs] if self.partial else []
        return outputs

    def backward(self) -> list[torch.Tensor | None]:
        if self.kept is None:
            raise RuntimeError(
                "the backward pass of a planned module ran a second time: what it kept was freed. Call the module "
                "again, and do not use retain_graph=True."
            )
        _unchanged(self.versions)
        self.versions = []
        kept, self.kept = self.kept, None
        if any(self.joint.cotangents[k] is None for k in self.cotangents):
            kept = self._started_elsewhere()
        for k, g in enumerate(self.joint.cotangents):
            if g is not None:
                given = self.cotangents.pop(k, None)
                if given is None:
                    shape, dtype, device = self.kinds[k]
                    given = torch.zeros((), dtype=dtype, device=device).expand(shape)
                kept.append(given)
                del given
        plain = [t.detach() for t in self.inputs]
        with _no_autocast(), torch.no_grad():
            return list(self.passes.backward(plain, kept))

    def _started_elsewhere(self) -> list[Any]:
        """A cotangent came from an output that the passes do not go through: others run, forwards and all, once."""
        _unchanged(self.all_versions)
        self.joint, self.passes = self.whole()
        now = states() if self.states else []
        restore(self.states)
        with _no_autocast(), torch.no_grad():
            _, _, kept = self.passes.forward(*(t.detach() for t in self.inputs))
        restore(now)
        return kept


def _unchanged(versions: Sequence[tuple[torch.Tensor, int]]) -> None:
    """Raises RuntimeError where a tensor has another version than it had, as autograd would."""
    for tensor, version in versions:
        if tensor._version != version:
            raise RuntimeError(
                "a tensor that the backward pass of a planned module needs was changed in place since the forward "
                f"pass: shape {tuple(tensor.shape)}, version {tensor._version} instead of {version}"
            )


class _Program(torch.autograd.Function):
    """The passes. Its cotangents come through :class:`_Output`; the engine brings only their shapes."""

    @staticmethod
    def forward(ctx: Any, call: Call, wrt: Sequence[int], *tensors: torch.Tensor) -> Any:
        ctx.call, ctx.wrt, ctx.count = call, wrt, len(tensors)
        outputs = call.forward()
        ctx.mark_non_differentiable(*(o for o, a in zip(outputs, call.able, strict=True) if not a))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *_: Any) -> Any:
        found = ctx.call.backward()
        given: list[torch.Tensor | None] = [None] * ctx.count
        for k in ctx.wrt:
            given[k] = found.pop(0)
        return (None, None, *given)


class _Output(torch.autograd.Function):
    """One output: notes its cotangent with the call, and sends on something of its shape without memory."""

    @staticmethod
    def forward(ctx: Any, call: Call, index: int, output: torch.Tensor) -> torch.Tensor:
        ctx.call, ctx.index = call, index
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph=True; said before anything that was kept is let go
            raise UnsupportedOpError(
                "the backward pass of a planned module cannot be differentiated again",
                given="create_graph=True",
                required="first derivatives",
                instead="the model itself, or plan.apply_(model), which torch differentiates as often as you like",
            )
        before = ctx.call.cotangents.get(ctx.index)
        ctx.call.cotangents[ctx.index] = cotangent if before is None else before + cotangent
        return None, None, cotangent.new_zeros(()).expand(cotangent.shape)


def run(
    joint: Joint,
    passes: Passes,
    inputs: Sequence[torch.Tensor],
    write: Callable[[str, torch.Tensor], None],
    holds: Callable[[Sequence[torch.Tensor]], None],
    able: Sequence[bool],
    whole: Callable[[], tuple[Joint, Passes]],
) -> list[torch.Tensor]:
    """The outputs of the program for tensors in the order of its inputs; autograd goes through the planned passes.

    Args:
        write: ``(path, value)`` of a buffer. holds: raises where a value that the trace relied on is another one.
        able: per output, whether autograd goes through it. whole: passes that start from all of these outputs, for
            the day when a cotangent comes from one that the program does not start from.
    """
    index = joint.index
    call = Call(joint, passes, inputs, write, holds, able, whole)
    tensors = [inputs[index[leaf]] for leaf in joint.wrt]
    outputs = _Program.apply(call, tuple(range(len(tensors))), *tensors)
    return [_Output.apply(call, k, o) if o.requires_grad else o for k, o in enumerate(outputs)]


def states() -> list[torch.Tensor]:
    """Of the generators of all devices."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


def restore(found: Sequence[torch.Tensor]) -> None:
    """Sets the generators back; nothing without states."""
    if found:
        torch.set_rng_state(found[0])
        if found[1:]:
            torch.cuda.set_rng_state_all(list(found[1:]))


class _no_autocast:
    """The program's casts are written out."""

    def __enter__(self) -> None:
        kinds = [k for k in ("cpu", "cuda") if torch.is_autocast_enabled(k)]
        self.open = [torch.autocast(k, enabled=False) for k in kinds]
        for context in self.open:
            context.__enter__()

    def __exit__(self, *args: Any) -> None:
        for context in self.open:
            context.__exit__(*args)


def _own(output: torch.Tensor, inputs: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> torch.Tensor:
    """An output that is an input, or another output, as a tensor of its own."""
    same = any(output is i for i in inputs) or any(output is b for b in before)
    return output.view_as(output) if same else output


def refuse(reason: str, given: str, instead: str) -> ModelError:
    """A program that cannot be planned."""
    return ModelError(f"this model cannot be run by a plan: {reason}", given=given, instead=instead)
