"""The shape of a traced network: where its residual streams are, and its plain chains.

Everything is read off the graph: an addition is a residual one where one of its operands, followed back through ops
that only move or scale a value, is an ancestor of the other. Names of modules play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from chainrule.frontends.torch import Trace
from chainrule.ir import OPS, Node
from chainrule.verbs.initialize.graph_roles import Use, nodes_of, uses, views

_ADDS = (OPS["add"], OPS["sub"])
_SCALES = (OPS["mul"], OPS["div"])
_NORMALIZING = "norm"  # in the name of every composite that divides by a statistic of its input


@dataclass(frozen=True)
class Merge:
    """An addition of two values that depend on the data.

    Attributes:
        node: the addition. kind: ``residual`` (skip and branch), ``projection`` (the skip has a weight of its own) or
            ``peers``. skip, branch: its operands; for peers in their order.
        root: the ancestor that skip and branch share.
    """

    node: Node
    kind: str
    skip: Node
    branch: Node
    root: Node | None


@dataclass(frozen=True)
class Link:
    """Two weights of a plain chain with one function of one number between them: node -> argument -> phi -> after.

    ``norm``: the name of what normalises between the first weight and phi, or "".
    """

    node: Node
    after: Node
    phi: Callable[[np.ndarray], np.ndarray]
    argument: Node
    norm: str = ""


class Structure:
    """A traced program as a network.

    Args:
        traced: the program. values: numbers of parameters that act inside of activations (the slope of a PReLU).
    """

    def __init__(self, traced: Trace, values: Mapping[Node, float]) -> None:
        self.traced, self.values = traced, values
        self.order = nodes_of(traced)
        self.index = {node: k for k, node in enumerate(self.order)}
        self.views = views(traced)
        self.uses = uses(traced)
        self.users: dict[Node, list[Node]] = {node: [] for node in self.order}
        for node in self.order:
            for i in dict.fromkeys(node.inputs):
                self.users[i].append(node)
        batch = {leaf for leaf in traced.batch_inputs.values() if leaf.type.is_float}
        self.alive: set[Node] = set()
        self.weighted: dict[Node, list[tuple[Node, Use]]] = {}
        for leaf, found in self.uses.items():
            for use in found:
                if use.kind in ("weight", "embedding"):
                    self.weighted.setdefault(use.node, []).append((leaf, use))
        for node in self.order:
            if node in batch or node in self.weighted or any(i in self.alive for i in node.inputs):
                self.alive.add(node)
        self._ancestors: dict[Node, int] = {}
        for node in self.order:
            bits = 0
            for i in node.inputs:
                bits |= self._ancestors[i] | (1 << self.index[i])
            self._ancestors[node] = bits

    # ---- walking -------------------------------------------------------------------------------------------
    def is_ancestor(self, a: Node, b: Node) -> bool:
        """Whether ``b`` depends on ``a``."""
        return bool(self._ancestors[b] >> self.index[a] & 1)

    def passed(self, node: Node) -> Node | None:
        """The operand that ``node`` moves, shifts or scales by numbers, and otherwise lets through."""
        alive = [i for i in node.inputs if i in self.alive]
        if len(alive) != 1 or node in self.weighted:
            return None
        (operand,) = alive
        if node.op.family == "linear" or "operands" in node.params:
            return operand if len(node.inputs) == 1 else None
        if node.op in _ADDS or node.op.name == "where":
            return operand
        if node.op in _SCALES:
            if node.op is _SCALES[1] and node.inputs[0] is not operand:
                return None
            return operand if not any(i in self.views for i in node.inputs) else None
        if node.op.name == "padded_rows" or node.op.family == "cast":
            return operand
        return None

    def back(self, node: Node) -> Iterator[Node]:
        """The value and what it is a moved or scaled copy of, backwards."""
        at: Node | None = node
        while at is not None:
            yield at
            at = self.passed(at)

    def scale_of(self, node: Node) -> Node | None:
        """The parameter by which ``node`` multiplies its value element by element, if it ends with that."""
        if node.op is _SCALES[0]:
            return next((self.views[i] for i in node.inputs if i in self.views), None)
        for leaf, found in self.uses.items():
            if node.op.expansion is not None and any(u.node is node and u.kind == "scale" for u in found):
                return leaf
        return None

    def producers(self, node: Node) -> list[tuple[Node, Node]]:
        """(use, parameter) of the parameters that set the scale of a value: the last ones on every path to it."""
        for at in self.back(node):
            node = at
        if node in self.weighted:
            return [(node, leaf) for leaf, _ in self.weighted[node]]
        scale = self.scale_of(node)
        if scale is not None:
            return [(node, scale)]
        merge = self.merge_at.get(node)
        if merge is not None:
            if merge.kind == "peers":
                return self.producers(merge.skip) + self.producers(merge.branch)
            return []
        alive = [i for i in node.inputs if i in self.alive]
        if node.op.family == "elementwise" and len(alive) == 1:
            return self.producers(alive[0])
        if node.op is _SCALES[0]:  # a gate: the factor that is linear in a weight
            for operand in alive:
                *_, first = self.back(operand)
                if first in self.weighted or self.scale_of(first) is not None:
                    return self.producers(first)
        return []

    # ---- merges --------------------------------------------------------------------------------------------
    @cached_property
    def merges(self) -> tuple[Merge, ...]:
        """Every addition of two values that depend on the data, in order."""
        found: dict[Node, Merge] = {}
        for node in self.order:
            if node.op in _ADDS and len(node.inputs) == 2 and all(i in self.alive for i in node.inputs):
                a, b = node.inputs
                if a is b:
                    continue
                merge = self._merge(node, a, b, found)
                if merge is not None:
                    found[node] = merge
        return tuple(found.values())

    @cached_property
    def merge_at(self) -> dict[Node, Merge]:
        """addition -> merge."""
        return {m.node: m for m in self.merges}

    def _merge(self, node: Node, a: Node, b: Node, before: Mapping[Node, Merge]) -> Merge | None:
        for skip, branch in ((a, b), (b, a)):
            for root in self._stream(skip, before):
                if root in self.alive and self.is_ancestor(root, branch) and self._weights(root, branch):
                    return Merge(node, "residual", skip, branch, root)
        shared = self._ancestors[a] & self._ancestors[b]
        root = next((n for n in reversed(self.order) if n in self.alive and shared >> self.index[n] & 1), None)
        if root is not None:
            counts = (self._weights(root, a), self._weights(root, b))
            if min(counts) == 0:
                return None  # a function of one value, written with an addition
            if min(counts) == 1 and max(counts) >= 2:
                skip, branch = (a, b) if counts[0] == 1 else (b, a)
                return Merge(node, "projection", skip, branch, root)
        return Merge(node, "peers", a, b, root)

    def _stream(self, node: Node, before: Mapping[Node, Merge]) -> Iterator[Node]:
        """The value and what it was before residual branches were added: branches beside each other share a root."""
        at: Node | None = node
        while at is not None:
            last = at
            for last in self.back(at):
                yield last
            merge = before.get(last)
            at = merge.skip if merge is not None and merge.kind == "residual" else None

    def _weights(self, root: Node, end: Node) -> int:
        """How many weights there are between an ancestor and a value."""
        return sum(
            (w is end or self.is_ancestor(w, end)) and self.is_ancestor(root, w)
            for w, leaves in self.weighted.items()
            if any(use.kind == "weight" for _, use in leaves)
        )

    @cached_property
    def streams(self) -> dict[Node, tuple[int, int]]:
        """residual addition -> (its number in its stream from 0, how many the stream has)."""
        before: dict[Node, Node | None] = {}
        residual = {m.node for m in self.merges if m.kind != "peers"}
        for m in self.merges:
            if m.kind == "peers":
                continue
            at: Node | None = m.skip if m.kind == "residual" else m.root
            while at is not None and at not in residual:
                at = self.passed(at) or self._normalized(at) or self._activated(at)
            before[m.node] = at
        number: dict[Node, int] = {}
        for node, at in before.items():
            number[node] = 0 if at is None else number[at] + 1
        length: dict[Node, int] = {}
        for node in reversed(list(before)):
            length.setdefault(node, number[node] + 1)
            at = before[node]
            if at is not None:
                length[at] = max(length.get(at, 0), length[node])
        return {node: (number[node], length[node]) for node in before}

    def _normalized(self, node: Node) -> Node | None:
        """The value that ``node`` is a normalised form of."""
        if node.op.expansion is not None and _NORMALIZING in node.op.name and node.inputs[0] in self.alive:
            return node.inputs[0]
        scale = self.scale_of(node)
        if scale is not None and node.op is _SCALES[0]:
            return next((i for i in node.inputs if i in self.alive), None)
        if node.op is _SCALES[0]:  # x * rsqrt(mean(x^2) + eps)
            for x, r in (node.inputs, node.inputs[::-1]):
                if r.op.name in ("rsqrt", "reciprocal") and self.is_ancestor(x, r):
                    return x
        return None

    def _activated(self, node: Node) -> Node | None:
        """The operand of an activation on the stream (after the addition, as in the first residual networks)."""
        alive = [i for i in node.inputs if i in self.alive]
        return alive[0] if node.op.family == "elementwise" and len(alive) == 1 and len(node.inputs) == 1 else None

    # ---- chains --------------------------------------------------------------------------------------------
    @cached_property
    def chains(self) -> tuple[tuple[Link, ...], ...]:
        """Maximal plain chains: weight, function of one number, weight, ..., with nothing else in between."""
        links = {}
        for node, leaves in self.weighted.items():
            if all(use.kind == "weight" for _, use in leaves):
                link = self._link(node)
                if link is not None:
                    links[node] = link
        entered = {link.after for link in links.values()}
        found = []
        for node in links:
            if node in entered:
                continue
            chain, at = [], node
            while at in links:
                chain.append(links[at])
                at = links[at].after
            leaves = [leaf for link in chain for leaf, _ in self.weighted[link.node]]
            leaves += [leaf for leaf, _ in self.weighted[chain[-1].after]]
            if len(set(leaves)) == len(leaves) and all(len(self.uses[leaf]) == 1 for leaf in leaves):
                found.append(tuple(chain))
        return tuple(found)

    def _link(self, node: Node) -> Link | None:
        start, norm = self._forward(node), ""
        if start is not None and len(self.users[start]) == 1 and self._normalized(self.users[start][0]) is start:
            (user,) = self.users[start]
            start, norm = self._forward(user), user.op.name
        if start is None:
            return None
        region: list[Node] = []
        inside = {start}
        for n in self.order[self.index[start] + 1 :]:
            alive = [i for i in n.inputs if i in self.alive]
            if not alive or not any(i in inside for i in alive):
                continue
            if n.op.family == "elementwise" and all(i in inside for i in alive) and n not in self.weighted:
                region.append(n)
                inside.add(n)
                if len(region) > 40:
                    return None
            elif len(region) and not any(set(self.users[i]) - inside for i in inside if i is not region[-1]):
                break
        exits = [n for n in inside if any(u not in inside for u in self.users[n])]
        if len(exits) != 1 or not region or exits[0] is start:
            return None
        end = exits[0]
        if any(i not in inside and self._number(i) is None for n in region for i in n.inputs):
            return None
        after = self._forward(end, to_weight=True)
        if after is None:
            return None
        inner = [n for n in region if n is end or self.is_ancestor(n, end)]
        return Link(node, after, self._function(start, inner, end), start, norm)

    def _forward(self, node: Node, to_weight: bool = False) -> Node | None:
        """Where a value goes if it goes to one place: the last moved copy of it, or the weight that it meets."""
        at = node
        while True:
            users = self.users[at]
            if len(users) != 1:
                return None if to_weight or not users else at
            (user,) = users
            if user in self.weighted and to_weight:
                leaves = self.weighted[user]
                fits = (
                    len(leaves) == 1
                    and leaves[0][1].kind == "weight"
                    and sum(i in self.alive for i in user.inputs) == 1
                )
                return user if fits else None
            if self.passed(user) is not at:
                return None if to_weight else at
            at = user

    def _number(self, node: Node) -> float | None:
        """The one number that an operand inside an activation is."""
        if node.number is not None:
            return float(node.number)
        if node in self.values:
            return self.values[node]
        if node in self.views:
            return self.values.get(self.views[node])
        if len(node.inputs) == 1 and node.op.family == "linear":
            return self._number(node.inputs[0])
        return None

    def _function(self, start: Node, region: list[Node], end: Node) -> Callable[[np.ndarray], np.ndarray]:
        def phi(x: np.ndarray) -> np.ndarray:
            table: dict[Node, Any] = {start: x}
            with np.errstate(all="ignore"):
                for n in region:
                    operands = [table[i] if i in table else self._number(i) for i in n.inputs]
                    table[n] = n.op.value(*operands, **n.params)
            return np.broadcast_to(np.asarray(table[end], dtype=float), x.shape)

        return phi
