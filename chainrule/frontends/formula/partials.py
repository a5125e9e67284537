"""Which derivative ``dl/df`` is: ``l`` is called in the same text, and ``f`` is one of its arguments.

``d2l/df2`` and ``d2l/dfdg`` are second derivatives, and ``dl/d(x + 1)`` that of a call ``l(x + 1)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chainrule.errors import FormulaError
from chainrule.frontends.formula import tree
from chainrule.frontends.formula.messages import short
from chainrule.frontends.formula.names import Names
from chainrule.frontends.formula.trampoline import Steps
from chainrule.ir import Node, toposort
from chainrule.ops.unknown import FUNCTION, partial

_HIGHEST_ORDER = 9


@dataclass(eq=False)
class _Called:
    """One call of an unknown function: its arguments' names, and their nodes once they are needed."""

    names: tuple[str, ...]
    arguments: tuple[tree.Tree, ...] = ()
    nodes: tuple[Node, ...] | None = None
    being_read: bool = False


class Partials:
    """The calls of unknown functions in a text, and the derivatives that it writes of them."""

    def __init__(self, source: str, names: Names, statements: Sequence[tree.Assignment]) -> None:
        self.source = source
        self.calls: dict[str, list[_Called]] = {}
        symbols = {node: name for name, node in names.given.items()}
        for node in toposort(names.given.values()):
            if node.op is FUNCTION:
                texts = tuple(symbols.get(i, str(i.params.get("name", ""))) for i in node.inputs)
                self.calls.setdefault(node.params["name"], []).append(_Called(texts, nodes=node.inputs))
        stack: list[tree.Tree] = list(reversed(statements)) if names.unknown else []
        while stack:
            part = stack.pop()
            stack.extend(reversed(tree.children(part)))
            if isinstance(part, tree.Index) and isinstance(part.operand, tree.Name):
                name, arguments = part.operand.name, part.items
            elif isinstance(part, tree.Call):
                name, arguments = part.name, part.arguments
            else:
                continue
            if name in names.unknown:
                texts = tuple(a.name if isinstance(a, tree.Name) else "" for a in arguments)
                self.calls.setdefault(name, []).append(_Called(texts, arguments))

    def resolve(self, part: tree.Partial, lower: Callable[[tree.Tree], Any]) -> Steps:
        """The node of a written derivative.

        Raises:
            FormulaError: no call has such an argument, or calls with different arguments do.
        """
        if not 1 <= part.order <= _HIGHEST_ORDER:
            raise self._error(part, f"a derivative of order {part.order}", f"an order from 1 to {_HIGHEST_ORDER}")
        written: list[str | tuple[Node, int]] = []
        for factor in part.wrt:
            if isinstance(factor, str):
                written.append(factor)
            else:
                value = yield lower(factor[0])
                written.append((value.node, factor[1]))
        expressions = any(not isinstance(w, str) for w in written)
        found: set[Node] = set()
        for called in self.calls.get(part.function, []):
            if called.being_read or not (expressions or _matches(written, called.names, (), part.order)):
                continue
            if called.nodes is None:
                called.being_read = True
                nodes = []
                for argument in called.arguments:
                    nodes.append((yield lower(argument)).node)
                called.nodes, called.being_read = tuple(nodes), False
            for wrt in _matches(written, called.names, called.nodes, part.order):
                if all(node.type.is_float for node in called.nodes):
                    found.add(partial(part.function, called.nodes, wrt))
            if len(found) > 1:
                raise self._error(
                    part,
                    f"{short(self.source[part.start : part.end])} is not clear",
                    "one call of the function with that argument",
                )
        if not found:
            raise self._error(
                part,
                f"{part.function!r} has no argument to be differentiated by here",
                f"d{part.function}/df where {part.function}(f) is called in the same text",
            )
        return found.pop()

    def _error(self, part: tree.Partial, what: str, required: str) -> FormulaError:
        calls = [
            f"{part.function}({', '.join(n or '...' for n in c.names)})" for c in self.calls.get(part.function, [])
        ]
        given = ", ".join(dict.fromkeys(calls[:20]))
        return FormulaError(
            what,
            source=self.source,
            position=part.position,
            given=given,
            required=required,
            instead=f"names other than 'd{part.function}' for a division",
        )


def _matches(
    written: Sequence[str | tuple[Node, int]], names: Sequence[str], nodes: Sequence[Node], order: int
) -> set[tuple[int, ...]]:
    """The arguments that a denominator may mean, in its order; as many as the order of the derivative."""
    found: set[tuple[int, ...]] = {()}
    for factor in written:
        if isinstance(factor, str):
            options = _read(factor, names, order)
        else:
            options = {(k,) * factor[1] for k, node in enumerate(nodes) if node is factor[0]}
        found = {done + option for done in found for option in options if len(done) + len(option) <= order}
    return {wrt for wrt in found if len(wrt) == order}


def _read(text: str, names: Sequence[str], order: int) -> set[tuple[int, ...]]:
    """``f``, ``f2`` (an argument of that name, or f twice), ``fdg``: all ways to read them.

    >>> sorted(_read("fdg2", ["f", "g", "g2"], 3))
    [(0, 1, 1), (0, 2)]
    """
    found: set[tuple[int, ...]] = set()
    seen: set[tuple[int, tuple[int, ...]]] = set()
    stack: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    while stack:
        at, done = stack.pop()
        if (at, done) in seen or len(done) >= order:
            continue
        seen.add((at, done))
        for k, name in enumerate(names):
            if not name or not text.startswith(name, at):
                continue
            end = at + len(name)
            digits = re.compile(r"[0-9]{1,2}").match(text, end)
            ways = [(end, 1)] + ([(digits.end(), int(digits[0]))] if digits else [])
            for after, times in ways:
                wrt = done + (k,) * times
                if len(wrt) > order:
                    continue
                if after == len(text):
                    found.add(wrt)
                elif text[after] == "d":
                    stack.append((after + 1, wrt))
    return found
