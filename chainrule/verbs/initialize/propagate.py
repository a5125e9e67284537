"""The forward second moments of a traced network, value by value, while its weights are being chosen.

A thin layer over ``interpreters.moments``: leaves get their laws when they are chosen, values are computed when they
are asked for, and are forgotten again where a weight before them changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from chainrule.interpreters import moments as propagation
from chainrule.ir import Node
from chainrule.ir.moments import UNKNOWN, Moments

_LIMIT = 1e-300


class Propagation:
    """The moments of the values of a program.

    Args:
        nodes: the program in order. given: the moments of its leaves, as far as they are known already.
    """

    def __init__(self, nodes: list[Node], given: Mapping[Node, Moments]) -> None:
        self.image = propagation.expanded(nodes)
        self.given = dict(given)
        self.states: dict[Node, Moments] = dict(given)
        self.forced: dict[Node, Moments] = {}
        self.users: dict[Node, list[Node]] = {}
        seen: set[Node] = set()
        stack = list(dict.fromkeys(self.image[n] for n in nodes))
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            for i in node.inputs:
                self.users.setdefault(i, []).append(node)
                stack.append(i)

    def set_weight(self, leaf: Node, name: str, second: float, mean: float = 0.0) -> None:
        """A leaf with independent elements of this second moment, or one number where its variance is zero."""
        one = (1,) * leaf.type.rank
        if second <= mean**2:
            self._set(leaf, Moments(np.full(one, mean), np.full(one, mean**2), law="given"))
            return
        source = frozenset({name})
        odd = source if mean == 0 else frozenset()
        self._set(
            leaf,
            Moments(np.full(one, mean), np.full(one, second), law="normal", sources=source, odd=odd, fresh=True),
        )

    def _set(self, leaf: Node, state: Moments) -> None:
        self.forget(leaf)
        self.given[leaf] = self.states[leaf] = state

    def keep(self, leaf: Node, state: Moments) -> None:
        """A leaf that stays as it is, of these moments."""
        self._set(leaf, state)

    def force(self, node: Node, second: float, name: str) -> None:
        """A value whose second moment is known otherwise: normal, of mean zero, with a sign of its own."""
        image = self.image[node]
        self.forget(node)
        one, source = (1,) * node.type.rank, frozenset({name})
        state = Moments(np.zeros(one), np.full(one, second), law="normal", sources=source, odd=source)
        self.states[image] = self.forced[image] = state

    def forget(self, node: Node) -> None:
        """Nothing that depends on ``node`` is known any more, nor ``node`` itself unless it is a leaf."""
        stack = [self.image.get(node, node)]
        seen: set[Node] = set()
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            if at not in self.given and at not in self.forced:
                self.states.pop(at, None)
            stack += self.users.get(at, ())

    def state(self, node: Node) -> Moments:
        """The moments of a value."""
        image = self.image[node]
        if image not in self.states:
            try:
                self.states.update(propagation.forward([image], self.states))
            except ValueError:
                self.states[image] = UNKNOWN
        return self.states[image]

    def second(self, node: Node) -> float | None:
        """E[x^2] over all elements, None where it is not known."""
        state = self.state(node)
        if not state.known:
            return None
        value = float(np.mean(state.second))
        return value if np.isfinite(value) and value > _LIMIT else (0.0 if value <= _LIMIT else None)

    def kind(self, node: Node) -> str:
        """exact, approximate, probe or unknown."""
        return self.state(node).kind

    def assume(self, node: Node, second: float) -> None:
        """A value that cannot be predicted, taken to have this second moment."""
        self.force(node, second, f"assumed {len(self.forced)}")
        image = self.image[node]
        self.states[image] = self.forced[image] = replace(self.forced[image], kind="approximate")
