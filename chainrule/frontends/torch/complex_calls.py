"""Calls with complex numbers, as the recorder meets them: they wait for the real numbers at their end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chainrule.errors import ChainruleError
from chainrule.frontends.torch import deferred
from chainrule.frontends.torch import lower as lowering
from chainrule.frontends.torch.draws import generator_state
from chainrule.frontends.torch.inner_transforms import without_python_kernels
from chainrule.frontends.torch.meanings import Meanings, Refused
from chainrule.frontends.torch.nesting import mapped, tensors
from chainrule.frontends.torch.readings import READS
from chainrule.ir import Node, Origin


class ComplexCalls(Meanings):
    """The part of the recorder that knows complex numbers."""

    strict: bool

    def originated(self, found: list[Node], origin: Origin, cut: bool = True) -> list[Node]:
        """The nodes of a call, with the place they come from."""
        raise NotImplementedError

    def fail(self, what: str, *, required: str = "", instead: str = "") -> None:
        """Raises, with the place."""
        raise NotImplementedError

    def fail_read(self) -> None:
        """Raises: Python reads a value that depends on the inputs."""
        raise NotImplementedError

    def _complex(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: Sequence[torch.Tensor], origin: Origin
    ) -> Any:
        """A call with complex operands: it waits for the real numbers that come out in the end."""
        if func._schema.is_mutable and not lowering.is_in_place(func):
            self.fail(f"{func} writes complex numbers", required="an op that returns new tensors")
        if torch.Tag.data_dependent_output in func.tags or lowering.key_of(func)[0] in READS:
            self.fail_read()
        self.count()
        problem: ChainruleError | None = None
        given: Any = ((), {})
        try:
            given = [mapped(a, self._part) for a in args], {k: mapped(a, self._part) for k, a in kwargs.items()}
            if self.strict:
                problem = self.refusal(f"{func} of complex numbers", required="real numbers")
        except ChainruleError as error:
            problem = error
        in_place = lowering.is_in_place(func)
        before = self.on_memory_of(args[0]) if in_place else []
        state = generator_state() if torch.Tag.nondeterministic_seeded in func.tags else None
        with without_python_kernels():
            out = func(*args, **kwargs)
        outputs = list(tensors((out,)))
        if any(out is t for t in operands) and not in_place:
            return out
        if state is not None and generator_state() != state:
            problem = self.refusal(f"{func} draws complex random numbers", required="real numbers")
        if problem is not None:
            found: list[Any] = [Refused(problem)] * len(outputs)
        else:
            found = self._settled(deferred.deferred_call(func, given[0], given[1], out), outputs, origin)
        for tensor, meaning in zip(outputs, found, strict=True):
            self._meaning[tensor] = meaning
        if in_place and outputs:
            self.renew(before, outputs[0], origin)
        return out

    def _settled(self, found: Sequence[Any], outputs: Sequence[torch.Tensor], origin: Origin) -> list[Any]:
        """Complex outputs wait; a real one is a node."""
        return [
            d if t.is_complex() else self.originated([deferred.real_node(d, t)], origin)[0]
            for d, t in zip(found, outputs, strict=True)
        ]

    def _part(self, value: Any) -> Any:
        return self.part_of(value) if isinstance(value, torch.Tensor) else value
