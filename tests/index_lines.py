"""What a line of index notation means, by brute force: an interpreter of the printed text, one element at a time.

It knows nothing of the graph that was printed. Letters are loops; the range of a summed letter is the size of a
dimension that it reads. What stands in matrix notation, ``inv(X)_ij``, is evaluated as a formula and then read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

import chainrule as cr

ELEMENTWISE: dict[str, Callable[..., float]] = {
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": lambda x: abs(x),
    "sign": lambda x: float(np.sign(x)),
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "sinh": math.sinh,
    "cosh": math.cosh,
    "tanh": math.tanh,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "erf": math.erf,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "heaviside": lambda x: float(x >= 0),
    "leaky_relu": lambda x, a: x if x > 0 else a * x,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "maximum": lambda a, b: max(a, b),
    "minimum": lambda a, b: min(a, b),
    "where": lambda c, a, b: a if c else b,
}
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}
_NAME = re.compile(r"[^\W\d]\w*")
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
_BRACKETS = {"(": ")", "[": "]"}

Env = dict[str, int]
Reader = Callable[[Env], float]


@dataclass
class Line:
    """The right-hand side of a line.

    Attributes:
        arrays: name -> value, scalars too. sizes: named dimensions. shapes: as the formula was declared with.
    """

    text: str
    arrays: Mapping[str, Any]
    sizes: Mapping[str, int]
    shapes: Mapping[str, str]
    at: int = 0
    ranges: dict[str, int] = field(default_factory=dict)
    partners: dict[str, str] = field(default_factory=dict)
    bound: list[str] = field(default_factory=list)
    tables: dict[str, np.ndarray] = field(default_factory=dict)

    def evaluate(self, letters: str, shape: tuple[int, ...]) -> np.ndarray:
        """All elements, the free letters in order."""
        self.bound += letters
        self.ranges.update(zip(letters, shape, strict=True))
        read = self.sum()
        assert self.at == len(self.text), f"not read: {self.text[self.at :]!r} of {self.text!r}"
        result = np.empty(shape)
        for point in product(*map(range, shape)):
            result[point] = read(dict(zip(letters, point, strict=True)))
        return result

    # ---- grammar -------------------------------------------------------------------------------------------
    def peek(self, *symbols: str) -> str:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1
        return next((s for s in symbols if self.text.startswith(s, self.at)), "")

    def take(self, *symbols: str) -> str:
        found = self.peek(*symbols)
        self.at += len(found)
        return found

    def sum(self) -> Reader:
        total = self.negated() if self.take("-") else self.product()
        while sign := self.take("+", "-"):
            total = _combine(sign, total, self.product())
        return total

    def negated(self) -> Reader:
        inner = self.product()
        return lambda env: -inner(env)

    def product(self) -> Reader:
        value = self.operand()
        while sign := self.take("*", "/"):
            value = _combine(sign, value, self.operand())
        return value

    def operand(self) -> Reader:
        self.peek()
        summed = re.match(r"sum_(\w|\{[^}]*\})+ ", self.text[self.at :])
        if summed is None:
            return self.power()
        self.at += summed.end()
        return self.over(summed.group().strip(), self.product, math.fsum)

    def over(self, head: str, body: Callable[[], Reader], collect: Callable[[list[float]], float]) -> Reader:
        letters = _labels(head.partition("_")[2])
        assert not set(letters) & set(self.bound), f"{letters} is captured in {self.text!r}"
        before = len(self.bound)
        self.bound += letters
        inner = body()
        del self.bound[before:]
        for letter in letters:  # what only identities read has the range of their other index
            partner = self.partners.pop(letter, letter)
            self.ranges.setdefault(letter, self.ranges.get(partner, 0 if collect is math.fsum else 1))
        ranges = [self.ranges.pop(letter) for letter in letters]
        assert all(ranges), f"a range is not known in {self.text!r}"
        return lambda env: collect(
            [inner(env | dict(zip(letters, point, strict=True))) for point in product(*map(range, ranges))]
        )

    def power(self) -> Reader:
        base = self.primary()
        if not self.take("^"):
            return base
        exponent = self.negated() if self.take("-") else self.power()
        return lambda env: base(env) ** exponent(env)

    def primary(self) -> Reader:
        self.peek()
        number = _NUMBER.match(self.text, self.at)
        if number:
            self.at = number.end()
            return lambda env: float(number.group())
        if self.peek("("):
            end = _closing(self.text, self.at)
            if self.text.startswith("_", end):
                return self.element_of_formula(self.at, end)
            self.take("(")
            inner = self.sum()
            assert self.take(")")
            return inner
        if self.take("["):
            condition = self.condition()
            assert self.take("]")
            return lambda env: float(condition(env))
        name = _NAME.match(self.text, self.at)
        assert name, f"not understood: {self.text[self.at :]!r} of {self.text!r}"
        if self.text.startswith("(", name.end()):
            return self.call(name.group(), name.end())
        return self.element(name)

    def condition(self) -> Reader:
        left = self.sum()
        sign = self.take(*COMPARE)
        if not sign:
            return left
        right = self.sum()
        return lambda env: COMPARE[sign](left(env), right(env))

    def call(self, name: str, opening: int) -> Reader:
        end = _closing(self.text, opening)
        if self.text.startswith("_", end) or (name not in ELEMENTWISE and name[:4] not in ("max_", "min_")):
            return self.element_of_formula(self.at, end)
        self.at = opening + 1
        if name not in ELEMENTWISE:
            found = self.over(name, self.sum, {"max": max, "min": min}[name[:3]])
        else:
            arguments = [self.condition()]
            while self.take(","):
                arguments.append(self.sum())
            found = _call(ELEMENTWISE[name], arguments)
        assert self.take(")")
        return found

    # ---- elements ------------------------------------------------------------------------------------------
    def element(self, match: re.Match[str]) -> Reader:
        name, self.at = match.group(), match.end()
        if name.endswith("_") and self.text.startswith("{", self.at):
            return self.read(self.array(name[:-1]), self.labels())
        if name in self.bound:
            return lambda env: float(env[name])
        if name in self.sizes:
            return lambda env: float(self.sizes[name])
        if name in self.arrays and np.ndim(self.arrays[name]) == 0:
            return lambda env: float(self.arrays[name])
        base, _, letters = name.rpartition("_")
        if base == "delta" and base not in self.arrays:
            i, j = letters
            self.partners |= {i: j, j: i}
            return lambda env: float(env[i] == env[j])
        return self.read(self.array(base), list(letters))

    def array(self, name: str) -> Any:
        if name == "delta" and name not in self.arrays:
            return np.eye(9)
        assert name in self.arrays, f"unknown name {name!r} in {self.text!r}"
        return self.arrays[name]

    def element_of_formula(self, start: int, end: int) -> Reader:
        source = self.text[start:end]
        if source not in self.tables:
            formula = cr.formula(source, {k: v for k, v in self.shapes.items() if re.search(rf"\b{k}\b", source)})
            self.tables[source] = np.asarray(formula.evaluate(**self.arrays, **self.sizes))
        self.at = end
        if not self.text.startswith("_", end):
            return self.read(self.tables[source], [])
        self.at += 1
        if self.text.startswith("{", self.at):
            return self.read(self.tables[source], self.labels())
        letters = _NAME.match(self.text, self.at)
        assert letters
        self.at = letters.end()
        return self.read(self.tables[source], list(letters.group()))

    def labels(self) -> list[str]:
        end = self.text.index("}", self.at)
        found, self.at = self.text[self.at + 1 : end].split(","), end + 1
        return found

    def read(self, array: Any, labels: list[str]) -> Reader:
        assert np.ndim(array) == len(labels), f"{labels} of rank {np.ndim(array)} in {self.text!r}"
        for label, size in zip(labels, np.shape(array), strict=True):
            if label in self.bound and not (size == 9 and np.array_equal(array, np.eye(9))):
                self.ranges.setdefault(label, size)
            elif label[-2:-1] == "-" and label[-1] in self.bound:  # reversed
                self.ranges.setdefault(label[-1], size)
        places = [compile(label, label, "eval") for label in labels]

        def value(env: Env) -> float:
            at = tuple(int(eval(p, {"__builtins__": {}}, {**self.sizes, **env})) for p in places)
            assert all(0 <= i < n for i, n in zip(at, np.shape(array), strict=True)), f"{labels} at {at}"
            return float(array[at])

        return value


def _combine(sign: str, a: Reader, b: Reader) -> Reader:
    return {
        "+": lambda env: a(env) + b(env),
        "-": lambda env: a(env) - b(env),
        "*": lambda env: a(env) * b(env),
        "/": lambda env: float(np.divide(a(env), b(env))),  # Python's division raises at 0
    }[sign]


def _call(function: Callable[..., float], arguments: list[Reader]) -> Reader:
    return lambda env: function(*(a(env) for a in arguments))


def _labels(text: str) -> list[str]:
    return text[1:-1].split(",") if text.startswith("{") else list(text)


def _closing(text: str, opening: int) -> int:
    """The position behind the bracket that closes the one at ``opening``."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] in _BRACKETS) - (text[place] in _BRACKETS.values())
        if depth == 0:
            return place + 1
    raise AssertionError(f"a bracket is not closed in {text!r}")


def free_letters(left: str) -> str:
    """The letters on the left of a line, in order: ``dz_i/dh_j`` gives ``ij``."""
    return "".join(_subscripts(left))


def _subscripts(left: str) -> Iterator[str]:
    for part in re.split("[/ ]", left):
        yield part.rpartition("_")[2] if "_" in part else ""
