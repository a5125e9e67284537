"""What the language knows about its functions: which there are, and what each argument is.

Everything is read off the declaration. A function's builder says by its parameters' names what it takes, so a
new one needs no line here:

    size, *sizes   a size: ``eye(n)``, ``ones(m, n)``; ``shape`` takes one in brackets: ``reshape(x, (m, n))``
    axis           whole numbers; several where the default is None: ``mean(x, 0, 1)``
    condition      a comparison: ``where(z > 0, a, b)``
    subscripts     a string: ``einsum("ij,jk->ik", A, B)``
    anything else  a value; a literal number arrives as a Python number if the parameter has a default

An op without a builder takes as many values as its samples.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from chainrule.errors import FormulaError
from chainrule.frontends.formula import tree
from chainrule.ir import OPS, SPELLINGS, Node, Op, toposort
from chainrule.ir.op import Rule
from chainrule.ops.unknown import FUNCTION

IVERSON = "I"  # the book's I[z > 0], where the text has no variable of that name

_KINDS = {
    "size": "size",
    "sizes": "size",
    "shape": "shape",
    "axis": "axis",
    "condition": "condition",
    "subscripts": "text",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function. ``kind`` is ``value size shape axis condition text``."""

    name: str
    kind: str = "value"
    required: bool = True
    several: bool = False

    @property
    def takes_numbers(self) -> bool:
        """Whether a literal number arrives as a Python number."""
        return self.kind == "value" and not self.required and not self.several


def known_functions() -> frozenset[str]:
    """Every name that is a function of the language."""
    return frozenset(SPELLINGS)


def unknown_in(nodes: Iterable[Node]) -> frozenset[str]:
    """The unknown functions that nodes are made of."""
    return frozenset(n.params["name"] for n in toposort(nodes) if n.op is FUNCTION)


def op_called(name: str) -> Op | None:
    """The op that a function is spelled for; None for those that are built from several."""
    return next((op for op in OPS.values() if name in op.names), None)


def activations() -> frozenset[str]:
    """Elementwise functions of one argument: what a name may be declared to stand for."""
    names = [n for op in OPS.values() if op.family == "elementwise" for n in op.names]
    return frozenset(n for n in names if sum(p.required for p in parameters(n)) == 1)


def parameters(name: str) -> tuple[Parameter, ...]:
    """The parameters of a function of the language.

    >>> [p.name for p in parameters("leaky_relu")], len(parameters("maximum"))
    (['x', 'a'], 2)
    """
    op = op_called(name)
    if op is not None and op.build is None and op.samples:
        return _plain(max(len(sample.args) for sample in op.samples))
    return _declared(SPELLINGS[name])


@lru_cache(maxsize=1024)
def _plain(count: int) -> tuple[Parameter, ...]:
    return tuple(Parameter(f"argument {k + 1}") for k in range(count))


@lru_cache(maxsize=1024)
def _declared(build: Rule) -> tuple[Parameter, ...]:
    found = []
    for p in inspect.signature(build).parameters.values():
        kind = _KINDS.get(p.name, "value")
        several = p.kind is p.VAR_POSITIONAL or (kind == "axis" and p.default is None)
        found.append(Parameter(p.name, kind, p.default is p.empty and p.kind is not p.VAR_POSITIONAL, several))
    return tuple(found)


def bind(call: tree.Call, source: str) -> list[tuple[Parameter, Sequence[tree.Tree]]]:
    """The arguments of a call, each with its parameter, in the order of the parameters.

    Raises:
        FormulaError: too few or too many arguments, or a keyword that the function does not have.
    """
    declared = parameters(call.name)
    given: dict[str, list[tree.Tree]] = {}
    position = 0
    for argument in call.arguments:
        if position >= len(declared):
            _wrong_count(call, declared, source, argument.start)
        parameter = declared[position]
        given.setdefault(parameter.name, []).append(argument)
        position += not parameter.several
    for keyword, value in call.keywords:
        names = {p.name: p for p in declared}
        if keyword.name not in names or " " in keyword.name:
            raise FormulaError(
                f"{call.name} has no argument {keyword.name!r}",
                source=source,
                position=keyword.position,
                required=_usage(call.name, declared),
            )
        if keyword.name in given:
            raise FormulaError(f"argument {keyword.name!r} given twice", source=source, position=keyword.position)
        given[keyword.name] = list(value.items) if isinstance(value, tree.Sequence) else [value]
    if any(p.required and p.name not in given for p in declared):
        _wrong_count(call, declared, source, call.position)
    if not call.arguments and not call.keywords:
        _wrong_count(call, declared, source, call.position)
    return [(p, given[p.name]) for p in declared if p.name in given]


def _usage(name: str, declared: Sequence[Parameter]) -> str:
    parts = [
        "*" + p.name if p.several and p.kind != "axis" else p.name + ("" if p.required else "=...") for p in declared
    ]
    return f"{len(parts)} argument{'s' * (len(parts) > 1)}" if " " in parts[0] else f"{name}({', '.join(parts)})"


def _wrong_count(call: tree.Call, declared: Sequence[Parameter], source: str, position: int) -> NoReturn:
    least, most = sum(p.required for p in declared), len(declared)
    open_ended = any(p.several for p in declared)
    count = "at least " + str(max(least, 1)) if open_ended else str(most) if least == most else f"{least} to {most}"
    plural = "" if count in ("1", "at least 1") else "s"
    raise FormulaError(
        f"{call.name} takes {count} argument{plural}, not {len(call.arguments) + len(call.keywords)}",
        source=source,
        position=position,
        given=source[call.start : call.end][:60],
        required=_usage(call.name, declared),
    )


def literal_number(part: tree.Tree) -> float | None:
    """The value of a literal number, signs included, else None."""
    negative = False
    while isinstance(part, tree.Negative):
        part, negative = part.operand, not negative
    return (-part.value if negative else part.value) if isinstance(part, tree.Number) else None


def axes(parts: Sequence[tree.Tree], several: bool, source: str) -> Any:
    """The whole numbers of an ``axis`` argument: one, or a tuple where several may be given."""
    items = [item for part in parts for item in (part.items if isinstance(part, tree.Sequence) else (part,))]
    numbers: list[int] = []
    for item in items:
        number = literal_number(item)
        if number is None or number != int(number) or abs(number) > 1000:
            raise FormulaError(
                "an axis that is not a whole number",
                source=source,
                position=item.start,
                given=repr(source[item.start : item.end][:40]),
                required="0 for the first dimension, -1 for the last",
            )
        numbers.append(int(number))
    if len(numbers) == 1:
        return numbers[0]
    if not several:
        raise FormulaError("several axes where one is taken", source=source, position=parts[0].start)
    return tuple(numbers)
