"""Plans by hand: these storages are kept, everything else is recomputed once, just before it is needed."""

from __future__ import annotations

from collections.abc import Collection

from chainrule.planning.blocks import chain_of
from chainrule.planning.chain import merged
from chainrule.planning.options import Inside
from chainrule.planning.problem import Problem, Schedule


def keeping(problem: Problem, kept: Collection[int]) -> Schedule:
    """The schedule that keeps ``kept`` (and what cannot be made again) from the forward to the backward pass.

    What is recomputed stays until its last reader: a stretch between two kept values is run again once, as a whole.
    """
    chain = chain_of(problem)
    inside = Inside(problem, merged(chain.blocks), chain.fixed)
    saved = frozenset(s for s in kept if s in inside.made)
    ahead = [*inside.block.forward, *inside.ahead(saved)]
    return Schedule((*ahead, *inside.backward_order(saved)), len(ahead))
