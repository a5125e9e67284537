"""The forward mean squares of a traced network, value by value, while its weights are being chosen.

A thin layer over ``interpreters.fields``: leaves get their laws when they are chosen, values are computed when they
are asked for, and are forgotten again where a weight before them changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from chainrule.interpreters import fields as propagation
from chainrule.ir import Node, TensorType, toposort
from chainrule.ir.field import Field, iid, unknown
from chainrule.ops.fields.registry import sizes
from chainrule.verbs.fields import redrawn

_LIMIT = 1e-300


class Propagation:
    """The fields of the values of a program.

    Args:
        nodes: the program in order. given: the fields of its leaves, as far as they are known already.
    """

    def __init__(self, nodes: list[Node], given: Mapping[Node, Field]) -> None:
        self.image = propagation.expanded(nodes)
        self.directions: dict[Node, list[Node]] = {}  # leaf -> weights that are its rows at other lengths
        self.given = dict(given)
        self.states: dict[Node, Field] = dict(given)
        self.forced: dict[Node, Field] = {}
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
        """A leaf with independent elements of this mean square, or one number where its variance is zero."""
        self.keep(leaf, redrawn(name, sizes(leaf.shape), mean, max(second, mean * mean)))

    def keep(self, leaf: Node, state: Field) -> None:
        """A leaf with this field, or a weight of which it is the direction."""
        for node in (leaf, *(self.image[n] for n in self.directions.get(leaf, ()))):
            self.given.pop(node, None)
            self.forget(node)
            self.given[node] = self.states[node] = state

    def force(self, node: Node, second: float, name: str) -> None:
        """A value whose mean square is known otherwise than by independent weights, and in every draw."""
        image = self.image[node]
        self.forced.pop(image, None)
        found = self.state(node)
        if found.known and found.mean_square > _LIMIT and not found.mean.any():
            f = second / found.mean_square
            state = replace(
                found, second=found.second * f, pairs=found.pairs * f, array=None, law=None, scale={}, own=0.0
            )
        else:
            source = frozenset({name})
            state = iid(sizes(node.shape), 0.0, second, normal=True, sources=source, odd=source, why="known otherwise")
        self.forget(node)
        self.states[image] = self.forced[image] = state

    def know(self, node: Node, state: Field) -> None:
        """A value whose field is known, whatever it is made from."""
        self.forget(node)
        self.states[self.image[node]] = self.forced[self.image[node]] = state

    def assume(self, node: Node, second: float) -> None:
        """A value that cannot be predicted, taken to have this mean square."""
        self.force(node, second, f"assumed {len(self.forced)}")
        image = self.image[node]
        self.states[image] = self.forced[image] = replace(self.forced[image], kind="approximate")

    def release(self, node: Node) -> float | None:
        """Undoes :meth:`force`; the mean square that it had set, or None."""
        old = self.forced.pop(self.image[node], None)
        return None if old is None else old.mean_square

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

    def state(self, node: Node) -> Field:
        """The field of a value."""
        image = self.image[node]
        if image not in self.states:
            self._fill(toposort([image], stop=lambda n: n in self.states))
        found: Any = self.states[image]  # a list where an op has several results
        return found if isinstance(found, Field) else next(f for f in found if isinstance(f, Field))

    def _fill(self, nodes: list[Node]) -> None:
        """Computes what is not known yet of these nodes, in their order."""
        for node in nodes:
            if node not in self.states:
                try:
                    with np.errstate(all="ignore"):
                        self.states[node] = propagation.forward([node], self.states)[node]
                except (OverflowError, FloatingPointError, ZeroDivisionError) as error:  # beyond double precision
                    self.states[node] = unknown(sizes(node.shape), f"no finite prediction: {error}")

    def cotangents(self, output: Node, wrt: list[Node]) -> dict[Node, Field]:
        """node of the program -> the field of its cotangent, where it is known."""
        self._fill(toposort([self.image[output]]))
        try:
            with np.errstate(all="ignore"):
                found = propagation.backward(self.image[output], self.states, [self.image[n] for n in wrt])
        except (OverflowError, FloatingPointError, ZeroDivisionError):  # values beyond double precision
            return {}
        known = {n: f for n, f in found.items() if isinstance(f, Field) and f.known}
        return {n: known[i] for n, i in self.image.items() if i in known}

    def product_of(self, leaf: Node) -> Node | None:
        """The first product that a parameter of a recurrent layer enters, inside of that layer; None for others."""
        for user in self.users.get(leaf, ()):
            if len(user.inputs) == 1 and isinstance(user.type, TensorType):
                found = self.product_of(user)
                if found is not None:
                    return found
            elif "operands" in user.params and len(user.inputs) == 2:
                self.image.setdefault(user, user)
                return user
        return None

    def second(self, node: Node) -> float | None:
        """The mean of E[x^2] over all elements, None where it is not known."""
        state = self.state(node)
        if not state.known:
            return None
        value = state.mean_square
        return value if np.isfinite(value) and value > _LIMIT else (0.0 if value <= _LIMIT else None)
