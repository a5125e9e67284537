"""Repeated blocks of equations written once: ``for k = 1, 2, ..., 12:`` with ``f_k`` in place of ``f_1``, ``f_2``, ...

Lines repeat when they are equal up to numbers in names that all move by the same step, ``h_1`` to ``h_2`` and ``f_2``
to ``f_3``; so putting the numbers back gives exactly the equations. Sizes belong to the line: blocks of other sizes
are no repetition. The first or last one may read something else by name (the embedding in place of a block before it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(r"[^\W\d]\w*|\d+(?:\.\d+)?(?:e-?\d+)?|\s+|.", re.DOTALL)
_MAX_LINES = 400  # of one block
_MIN_SAVED = 3  # lines
_MAX_EXCEPTIONS = 4  # names that the first or last block has in place of others

Tokens = tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Equations that repeat.

    Attributes:
        lines: with ``{k}``, ``{k-1}`` where a number moves. indices: the values of k, in the order of computation.
        exceptions: index -> (name by the pattern, name that stands there instead).
    """

    lines: tuple[str, ...]
    indices: tuple[int, ...]
    exceptions: tuple[tuple[int, tuple[tuple[str, str], ...]], ...] = ()

    def written(self, k: int) -> list[str]:
        """The equations of one index."""
        lines = [_HOLE.sub(lambda m: _number(k + int(m[1] or 0)), line) for line in self.lines]
        for name, other in dict(self.exceptions).get(k, ()):
            lines = ["".join(other if t == name else t for t in _tokens(line)) for line in lines]
        return lines

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.indices)) if len(self.indices) < 4 else _range_text(self.indices)
        lines = [f"for k = {shown}:", *(f"    {line}" for line in self.lines)]
        for k, pairs in self.exceptions:
            lines += [f"    (k = {k}: {other} in place of {name})" for name, other in pairs]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        exceptions = {str(k): [list(pair) for pair in pairs] for k, pairs in self.exceptions}
        return {"lines": list(self.lines), "indices": list(self.indices), "exceptions": exceptions}


def _number(value: int) -> str:
    return str(value) if value >= 0 else f"minus{-value}"  # there is no such name: another one stands there


_HOLE = re.compile(r"\{k([+-]\d+)?\}")


def _range_text(indices: Sequence[int]) -> str:
    return f"{indices[0]}, {indices[1]}, ..., {indices[-1]}"


def grouped(lines: Sequence[str]) -> list[str | Block]:
    """The lines in order, with repetitions as blocks.

    >>> found = grouped([f"f_{k} = W_{k} @ f_{k - 1}" for k in range(1, 9)])
    >>> print(found[0])
    for k = 1, 2, ..., 8:
        f_{k} = W_{k} @ f_{k-1}
    """
    tokens = [_tokens(line) for line in lines]
    plain = [_without_numbers(t) for t in tokens]
    found: list[str | Block] = []
    at = 0
    while at < len(lines):
        best = _longest(at, tokens, plain)
        if best is None:
            found.append(lines[at])
            at += 1
        else:
            found.append(best)
            at += len(best.lines) * len(best.indices)
    return found


def _longest(at: int, tokens: Sequence[Tokens], plain: Sequence[Tokens]) -> Block | None:
    """The repetition that begins here and covers most lines; of those the one of fewest lines."""
    best: tuple[int, int, Block] | None = None
    for period in range(1, min(_MAX_LINES, (len(tokens) - at) // 2) + 1):
        candidates = [_repeated(at, period, tokens, plain)]
        if at + 3 * period <= len(tokens):
            candidates.append(_after_other_first(at, period, tokens, plain))
        for block in candidates:
            if block is None or period * (len(block.indices) - 1) < _MIN_SAVED:
                continue
            covered = period * len(block.indices)
            if best is None or (covered, -period) > best[:2]:
                best = covered, -period, block
    return None if best is None else best[2]


def _repeated(at: int, period: int, tokens: Sequence[Tokens], plain: Sequence[Tokens]) -> Block | None:
    first = list(range(at, at + period))
    if any(plain[k] != plain[k + period] for k in first):
        return None
    step = _step([(tokens[k], tokens[k + period]) for k in first])
    if not step:
        return None
    count = 2
    while at + (count + 1) * period <= len(tokens):
        pairs = [(tokens[k + (count - 1) * period], tokens[k + count * period]) for k in first]
        alike = all(plain[k] == plain[k + count * period] for k in first)
        if not alike or _step(pairs) != step or not _same_places(first, period, count, tokens):
            break
        count += 1
    start = min(_moving(tokens[k], tokens[k + period]) for k in first if tokens[k] != tokens[k + period])
    lines = tuple(_pattern(tokens[k], tokens[k + period], start) for k in first)
    # The block is counted by the number that most of its names carry.
    shift = _commonest(lines)
    lines = tuple(_HOLE.sub(lambda m: _hole(int(m[1] or 0) - shift), line) for line in lines)
    block = Block(lines, tuple(start + shift + step * n for n in range(count)))
    return _with_other_last(block, at + count * period, step, tokens)


def _same_places(first: Sequence[int], period: int, count: int, tokens: Sequence[Tokens]) -> bool:
    """Whether the numbers that move here are those that moved from the first to the second block."""
    for k in first:
        a, b = tokens[k], tokens[k + period]
        c, d = tokens[k + (count - 1) * period], tokens[k + count * period]
        for moved, again in zip(_moves(a, b), _moves(c, d), strict=True):
            if moved != again:
                return False
    return True


def _after_other_first(at: int, period: int, tokens: Sequence[Tokens], plain: Sequence[Tokens]) -> Block | None:
    """A repetition whose first block reads something else by name."""
    rest = _repeated(at + period, period, tokens, plain)
    if rest is None:
        return None
    step = rest.indices[1] - rest.indices[0]
    k = rest.indices[0] - step
    exceptions = _exceptions(rest, k, tokens[at : at + period])
    if not exceptions:
        return None
    return Block(rest.lines, (k, *rest.indices), ((k, exceptions), *rest.exceptions))


def _with_other_last(block: Block, at: int, step: int, tokens: Sequence[Tokens]) -> Block:
    k = block.indices[-1] + step
    exceptions = _exceptions(block, k, tokens[at : at + len(block.lines)])
    if not exceptions:
        return block
    return Block(block.lines, (*block.indices, k), (*block.exceptions, (k, exceptions)))


def _exceptions(block: Block, k: int, tokens: Sequence[Tokens]) -> tuple[tuple[str, str], ...]:
    """(name by the pattern, name that is there); empty where the lines differ otherwise, or too much."""
    expected = [_tokens(line) for line in Block(block.lines, (k,)).written(k)]
    if len(expected) != len(tokens):
        return ()
    other: dict[str, str] = {}
    for wanted, given in zip(expected, tokens, strict=True):
        if len(wanted) != len(given):
            return ()
        for a, b in zip(wanted, given, strict=True):
            if not (a == b or (_is_name(a) and _is_name(b))) or other.setdefault(a, b) != b:
                return ()
    changed = tuple((a, b) for a, b in other.items() if a != b)
    return changed if len(changed) <= _MAX_EXCEPTIONS and 2 * len(changed) < len(other) else ()


# ---- names and their numbers -------------------------------------------------------------------------------
def _tokens(line: str) -> Tokens:
    return tuple(_TOKEN.findall(line))


def _is_name(token: str) -> bool:
    return not token[0].isdigit() and (token[0] == "_" or token[0].isalpha())


def _parts(name: str) -> list[str]:
    """``h_12_fc`` as ``["h_", "12", "_fc"]``: every second one is a number."""
    return re.split(r"(\d+)", name)


def _without_numbers(tokens: Tokens) -> Tokens:
    return tuple("#".join(_parts(t)[::2]) if _is_name(t) else t for t in tokens)


def _moves(a: Tokens, b: Tokens) -> list[int]:
    """By how much each number in a name moves."""
    pairs = [
        (p, q) for s, t in zip(a, b, strict=True) if _is_name(s) for p, q in zip(_parts(s), _parts(t), strict=True)
    ]
    return [int(q) - int(p) for p, q in pairs if p.isdigit()]


def _step(pairs: Sequence[tuple[Tokens, Tokens]]) -> int:
    """The one step by which numbers move; 0 where there is none or more than one."""
    steps = {m for a, b in pairs for m in _moves(a, b)} - {0}
    return steps.pop() if len(steps) == 1 else 0


def _moving(a: Tokens, b: Tokens) -> int:
    """The smallest number that moves."""
    found = [
        int(p) for s, t in zip(a, b, strict=True) if s != t for p, q in zip(_parts(s), _parts(t), strict=True) if p != q
    ]
    return min(found)


def _pattern(a: Tokens, b: Tokens, start: int) -> str:
    """The line with ``{k}`` for numbers that move, k being ``start`` here."""
    written = []
    for s, t in zip(a, b, strict=True):
        if s == t:
            written.append(s)
            continue
        parts = zip(_parts(s), _parts(t), strict=True)
        written.append("".join(p if p == q else _hole(int(p) - start) for p, q in parts))
    return "".join(written)


def _hole(offset: int) -> str:
    return f"{{k{offset:+d}}}" if offset else "{k}"


def _commonest(lines: Sequence[str]) -> int:
    offsets = [int(m[1] or 0) for line in lines for m in _HOLE.finditer(line)]
    return max(sorted(set(offsets)), key=offsets.count)
