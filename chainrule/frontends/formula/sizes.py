"""Sizes: the shapes that a user declares and the sizes inside a formula (``eye(n)``, ``x[:n - 1]``).

A size is an integer or a polynomial of dimension names. Dimension names are a namespace of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from chainrule.errors import FormulaError
from chainrule.frontends.formula import tree
from chainrule.frontends.formula.lexer import Token, tokenize
from chainrule.frontends.formula.parser import parse_tokens
from chainrule.frontends.formula.trampoline import Steps, run
from chainrule.ir import Dim, Shape

Size = int | Dim
_LARGEST, _MOST_TERMS = 2**62, 100


@dataclass(frozen=True)
class Declarations:
    """What ``shapes`` declares: shapes of variables, and names that stand for a function."""

    shapes: Mapping[str, Shape]
    functions: Mapping[str, str]

    @property
    def dimensions(self) -> frozenset[str]:
        """Every dimension name that a shape mentions."""
        return frozenset(n for shape in self.shapes.values() for s in shape if isinstance(s, Dim) for n in s.names)


def declarations(
    shapes: Mapping[str, Any] | None, functions: Container[str] = (), activations: Container[str] = ()
) -> Declarations:
    """Reads ``{"x": "n", "A": "m,n", "T": ("i", 3, "k"), "s": "", "v": 3, "a": "relu"}``.

    ``functions`` are names that nothing can be called; ``activations`` those that a name may stand for.

    >>> declarations({"x": "n", "A": "m, 2*n", "v": 3, "a": "relu"}, activations=["relu"])
    Declarations(shapes={'x': (n,), 'A': (m, 2*n), 'v': (3,)}, functions={'a': 'relu'})

    Raises:
        FormulaError: a key that is no name, or a value that is no shape.
    """
    found: dict[str, Shape] = {}
    stands_for: dict[str, str] = {}
    if shapes is not None and not isinstance(shapes, Mapping):
        raise FormulaError(
            "shapes is not a mapping",
            given=type(shapes).__name__,
            required='{"x": "n", "A": "m,n"}: name to shape',
        )
    for name, spec in (shapes or {}).items():
        if not isinstance(name, str) or [t.kind for t in _tokens(name)] != ["name", "end"]:
            raise FormulaError(f"shapes declares {name!r}, which is not a name", required="letters, digits and '_'")
        if name in functions:
            raise FormulaError(
                f"shapes declares {name!r}, which is a function of the formula language",
                instead="another name",
            )
        if isinstance(spec, str) and spec.strip() in activations:
            stands_for[name] = spec.strip()
        else:
            found[name] = _shape(name, spec)
    return Declarations(found, stands_for)


def _tokens(text: str) -> list[Token]:
    try:
        return tokenize(text)
    except FormulaError:
        return []


def _shape(name: str, spec: Any) -> Shape:
    if isinstance(spec, str):
        return _shape_of_text(name, spec)
    entries = spec if isinstance(spec, (tuple, list)) else (spec,)
    return tuple(s for entry in entries for s in _entry(name, entry))


def _entry(name: str, entry: Any) -> Shape:
    if isinstance(entry, str):
        sizes = _shape_of_text(name, entry)
        if len(sizes) != 1:
            raise _not_a_shape(name, entry)
        return sizes
    if isinstance(entry, Dim):
        return (entry,)
    try:
        number = operator.index(entry)
    except TypeError:
        raise _not_a_shape(name, entry) from None
    if isinstance(entry, bool) or number >= _LARGEST:
        raise _not_a_shape(name, entry)
    return (_positive(name, number),)


def _positive(name: str, value: Size) -> Size:
    """A size with elements: a number is at least 1 (``n - 1`` may be whatever n makes it)."""
    if isinstance(value, int) and value < 1:
        raise FormulaError(
            f"the shape of {name!r} has the size {value}: not a shape",
            given=str(value),
            required="a positive whole number, or the name of a dimension",
        )
    return value


def _not_a_shape(name: str, entry: Any) -> FormulaError:
    return FormulaError(
        f"the shape of {name!r} is not a shape",
        given=repr(entry)[:80],
        required='dimension names or sizes: "n", "m,n", 3, (3, "n"), "" for a scalar',
    )


def _shape_of_text(name: str, text: str) -> Shape:
    """``"m, n"`` or ``"m n"``: sizes with commas or blanks between them."""
    try:
        tokens = [t for t in tokenize(text) if t.kind != "separator"]
        sizes: list[Size] = []
        begin = 0
        for k, token in enumerate(tokens):
            before = tokens[k - 1] if k > begin else None
            ends = token.kind in (",", "end")
            juxtaposed = (
                before is not None and before.kind in ("name", "number", ")") and token.kind in ("name", "number")
            )
            if ends or juxtaposed:
                if k > begin:
                    piece = [*tokens[begin:k], Token("end", "", token.start, token.start)]
                    (statement,) = parse_tokens(text, piece)
                    if statement.name:
                        raise _not_a_shape(name, text)
                    sizes.append(run(size(statement.expression, text, lambda name, _: Dim(name))))
                elif not (ends and token.kind == "end"):
                    raise _not_a_shape(name, text)
                begin = k + (token.kind == ",")
    except FormulaError as error:
        raise FormulaError(
            f"the shape of {name!r}: {error.what}",
            source=error.source,
            position=error.position,
            given=error.given or repr(text[:80]),
            required='dimension names or sizes: "n", "m,n", "2*n", ""',
            instead=error.instead,
        ) from None
    return tuple(_positive(name, s) for s in sizes)


def size(part: tree.Tree, source: str, resolve: Callable[[str, tree.Tree], Size]) -> Steps:
    """The size that an expression means (a step of ``trampoline``): integers and names with ``+ - *``.

    Raises:
        FormulaError: anything else, or a size beyond what is reasonable.
    """
    match part:
        case tree.Number() if part.value == int(part.value) and part.value < _LARGEST:
            return int(part.value)
        case tree.Name():
            return resolve(part.name, part)
        case tree.Negative():
            return _checked(-(yield size(part.operand, source, resolve)), part, source)
        case tree.Binary() if part.symbol in ("+", "-", "*"):
            left = yield size(part.left, source, resolve)
            right = yield size(part.right, source, resolve)
            if part.symbol != "*":
                return _checked(left + right if part.symbol == "+" else left - right, part, source)
            if _terms(left) * _terms(right) > _MOST_TERMS**2:
                raise _too_large(part, source)
            return _checked(left * right, part, source)
    raise FormulaError(
        "not a size",
        source=source,
        position=part.position,
        given=repr(source[part.start : part.end][:40]),
        required="a whole number or dimension names, with + - *",
    )


def _terms(value: Size) -> int:
    return len(value.terms) if isinstance(value, Dim) else 1


def _checked(value: Size, part: tree.Tree, source: str) -> Size:
    numbers = [c for _, c in value.terms] if isinstance(value, Dim) else [value]
    degree = max(len(m) for m, _ in value.terms) if isinstance(value, Dim) else 0
    if len(numbers) > _MOST_TERMS or degree > _MOST_TERMS or any(abs(n) >= _LARGEST for n in numbers):
        raise _too_large(part, source)
    return value


def _too_large(part: tree.Tree, source: str) -> FormulaError:
    return FormulaError(
        "a size too large",
        source=source,
        position=part.position,
        required="sizes below 2^62 with 100 terms at most",
    )
