"""What each tensor of a running program means: a node, a number known now, or an error that waits.

    Node      depends on an input of the trace (parameter, buffer, batch, closed-over tensor)
    FOLDED    does not: it is a number known now, and becomes a constant where a node uses it
    Deferred  complex: the calls that lead to it, until a real number comes out of them (``deferred``)
    Refused   cannot be expressed: the error is raised only if the result depends on it

``record`` fills this table call by call; memory that belongs to the user is known here by its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from chainrule.errors import ChainruleError, ShapeError, UnsupportedOpError
from chainrule.frontends.torch import deferred
from chainrule.frontends.torch import lower as lowering
from chainrule.frontends.torch.aliases import after_write
from chainrule.frontends.torch.deferred import Deferred
from chainrule.ir import OPS, Node, Origin, apply

FOLDED = object()
LONGEST = 50_000  # calls on values that depend on the inputs; a 100-layer transformer has a tenth of it


class Refused:
    """A tensor that the graph cannot hold, with the error that says why."""

    def __init__(self, error: ChainruleError) -> None:
        # Without its traceback, whose frames would hold tensors: torch gives what a factory made
        # (torch.randn) a new identity if anybody else still refers to it.
        self.error = error.with_traceback(None)


class Meanings:
    """The table, and what a write in place does to it.

    Args:
        leaf: makes the leaf of a closed-over tensor that the trace meets.
    """

    def __init__(self, leaf: Callable[[torch.Tensor], Node]) -> None:
        self._leaf = leaf
        self._calls = 0
        self.open = False  # whether tensors of a program around this one may be read: they are then inputs
        self._meaning = WeakTensorKeyDictionary()
        self._owners: dict[int, str] = {}  # storages that belong to the user -> whose
        self._writable: set[int] = set()  # those among them that a program may update: buffers

    def refusal(self, what: str, *, required: str = "", instead: str = "") -> UnsupportedOpError:
        """The error with the place where the program is now."""
        raise NotImplementedError

    def count(self) -> None:
        """One call more; a loop that goes on is refused where it is.

        Raises:
            UnsupportedOpError: there were too many.
        """
        self._calls += 1
        if self._calls > LONGEST:
            raise self.refusal(
                f"the program makes more than {LONGEST:,} calls: a loop is unrolled step by step",
                required="a loop of fewer steps, or one op for all of them",
                instead="torch's op for the whole loop (cumsum, nn.GRU), or a shorter example",
            )

    def originated(self, found: list[Node], origin: Origin, cut: bool = True) -> list[Node]:
        """The nodes of a call, with the place they come from."""
        raise NotImplementedError

    # ---- what tensors mean ---------------------------------------------------------------------------------
    def bind(self, tensor: torch.Tensor, node: Node, owner: str, writable: bool = False) -> None:
        """Declares ``tensor`` an input; ``owner`` is how messages call it. Its memory is protected unless writable."""
        self._meaning[tensor] = node
        self._owners.setdefault(memory_of(tensor), owner)
        if writable:
            self._writable.add(memory_of(tensor))

    def meaning(self, tensor: torch.Tensor) -> Any:
        """A Node, FOLDED or Refused. A tensor never seen before comes from outside: it becomes an input."""
        found = self._meaning.get(tensor)
        if found is None:
            found = self._meaning[tensor] = self._discovered(tensor)
        return found

    def _discovered(self, tensor: torch.Tensor) -> Any:
        memory = memory_of(tensor)
        relative = memory not in self._owners and any(memory_of(t) == memory for t in self._meaning)
        if not self.open and (relative or tensor.grad_fn is not None):
            return Refused(
                self.refusal(
                    "a tensor that was made from another one outside of what can be traced",
                    required="tensors made by torch functions inside the model, or independent of it",
                    instead="the same with torch functions, or .detach() of it",
                )
            )
        try:
            node = self._leaf(tensor)
        except ChainruleError as error:
            return Refused(error)
        self._owners.setdefault(memory, f"the closed-over tensor {node.params['name']!r}")
        return node

    def node_of(self, tensor: torch.Tensor) -> Node:
        """The node of a tensor.

        Raises:
            ChainruleError: the graph cannot hold it.
        """
        meaning = self.meaning(tensor)
        if isinstance(meaning, Refused):
            raise meaning.error
        if isinstance(meaning, Deferred) or tensor.is_complex():
            raise self.refusal("a complex result", required="real numbers", instead="torch.view_as_real(...) of it")
        if meaning is FOLDED and tensor.is_meta:  # a constant without numbers can only be named
            meaning = self._meaning[tensor] = self._leaf(tensor)
        return lowering.constant_of(tensor) if meaning is FOLDED else meaning

    def known_node(self, tensor: torch.Tensor) -> Node | None:
        """The node of a tensor that depends on inputs; None for every other."""
        meaning = self._meaning.get(tensor)
        return meaning if isinstance(meaning, Node) else None

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's numbers change with the inputs, as far as is known."""
        return self.meaning(tensor) is not FOLDED

    # ---- writes --------------------------------------------------------------------------------------------
    def on_memory_of(self, written: torch.Tensor) -> list[tuple[torch.Tensor, Any]]:
        """Other tensors on the memory that is about to be written, with what they mean."""
        memory = memory_of(written)
        alive = [t for t in self._meaning if t is not written and memory_of(t) == memory]
        found = []
        for tensor in alive:
            try:
                found.append((tensor, self.part_of(tensor) if tensor.is_complex() else self.node_of(tensor)))
            except ChainruleError as error:
                found.append((tensor, Refused(error)))  # cannot be expressed, and still cannot afterwards
        return found

    def part_of(self, tensor: torch.Tensor) -> Any:
        """What a tensor is as an operand of complex calls: a Node, Deferred, or itself as a constant.

        Raises:
            ChainruleError: the graph cannot hold it.
        """
        meaning = self.meaning(tensor)
        if isinstance(meaning, Refused):
            raise meaning.error
        if meaning is FOLDED:
            return deferred.constant(tensor)
        return meaning

    def renew(self, before: Sequence[tuple[torch.Tensor, Any]], written: torch.Tensor, origin: Origin) -> None:
        """After a write: what the other tensors on the memory mean now."""
        value = self.meaning(written)
        for tensor, meant in before:
            if isinstance(value, Refused) or isinstance(meant, Refused):
                self._meaning[tensor] = value if isinstance(value, Refused) else meant
                continue
            try:
                if isinstance(value, Deferred) or isinstance(meant, Deferred):
                    now = deferred.after_write(tensor, meant, written, value)
                    self._meaning[tensor] = self._meaning[tensor] if now is None else now
                    continue
                now = after_write(tensor, meant, written, value)
            except (UnsupportedOpError, ShapeError) as error:
                self._meaning[tensor] = Refused(UnsupportedOpError(error.what).located(str(origin)))
                continue
            if now is not None and (not torch.is_grad_enabled() or _base(tensor) is not _base(written)):
                # Written behind autograd's back: another value, and the derivative that it had, or none.
                behind = [now, meant] if tensor.requires_grad else [now]
                now = apply(OPS["straight_through" if tensor.requires_grad else "stop_gradient"], *behind)
                (self._meaning[tensor],) = self.originated([now], origin, cut=False)
            elif now is not None:
                (self._meaning[tensor],) = self.originated([now], origin)


def _base(tensor: torch.Tensor) -> torch.Tensor:
    """What a view is one of, for autograd: a detached tensor shares memory with another one, but no history."""
    return tensor if tensor._base is None else tensor._base


def memory_of(tensor: torch.Tensor) -> int:
    # Sparse tensors have no memory of their own; they are refused wherever they are used.
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else -id(tensor)
