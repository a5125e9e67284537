"""What a schedule is: kernels in order, and which values have memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chainrule.backends.native.access import sizes
from chainrule.ir import Node


@dataclass(eq=False)
class Kernel:
    """One loop nest.

    Attributes:
        number: order of creation. core: the accumulation or scatter, or None. roots: what it stores, in order.
        reads: stored values that it loads, with whether each is read at the kernel's own index only.
        after: kernels that must run before.
    """

    number: int
    core: Node | None
    roots: list[Root] = field(default_factory=list)
    reads: dict[Node, bool] = field(default_factory=dict)
    after: set[Kernel] = field(default_factory=set)

    @property
    def shape(self) -> tuple[int, ...]:
        """The index space of its results."""
        return sizes(self.core) if self.core is not None else sizes(self.roots[0].node)


@dataclass(frozen=True)
class Root:
    """A value that a kernel stores: into its own buffer, or (``into``) into that of a leaf or part of a placement."""

    node: Node
    into: Node | None = None
    part: int | None = None


@dataclass(frozen=True)
class Schedule:
    """Kernels in order; ``stored``: nodes with memory; ``placed``: node -> (placement, which operand of it)."""

    kernels: list[Kernel]
    stored: set[Node]
    placed: Mapping[Node, tuple[Node, int]]
