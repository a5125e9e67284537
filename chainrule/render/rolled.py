"""Rolling up what repeats: a hundred equal blocks are shown as one, with an index k in place of their numbers.

:func:`runs` finds stretches of a sequence that repeat, whatever the items are; :func:`indexed` writes texts that differ
only in numbers once. Both name nothing of models: the page's chain, equations and tables all go through them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

_LONGEST = 120  # items of one block
_LEAST = 3  # blocks, to be rolled up
_SAVED = 4  # items that a roll-up must save
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Run(Generic[Item]):
    """Blocks of items that are alike, in order; a single block is items that do not repeat."""

    blocks: tuple[tuple[Item, ...], ...]

    @property
    def repeats(self) -> bool:
        """Whether there is more than one block."""
        return len(self.blocks) > 1

    @property
    def columns(self) -> list[tuple[Item, ...]]:
        """The items of equal place, one per block."""
        return list(zip(*self.blocks, strict=True))


def runs(items: Sequence[Item], signatures: Sequence[Hashable]) -> list[Run[Item]]:
    """The items in order, as runs of equal signatures; the longest coverage first, then the shortest block.

    >>> [len(run.blocks) for run in runs("xababababy", "xababababy")]
    [1, 4, 1]
    """
    number: dict[Hashable, int] = {}
    marks = [number.setdefault(s, len(number)) for s in signatures]
    found: list[Run[Item]] = []
    alone: list[Item] = []
    at = 0
    while at < len(items):
        period, count = _best(marks, at)
        if count < _LEAST:
            alone.append(items[at])
            at += 1
            continue
        if alone:
            found.append(Run((tuple(alone),)))
            alone = []
        found.append(Run(tuple(tuple(items[at + k * period : at + (k + 1) * period]) for k in range(count))))
        at += period * count
    return [*found, Run((tuple(alone),))] if alone else found


def _best(marks: Sequence[int], at: int) -> tuple[int, int]:
    """(length of a block, how often it follows itself) of what covers most from here."""
    best = (0, 0, 0)
    for period in range(1, min(_LONGEST, (len(marks) - at) // _LEAST) + 1):
        if marks[at] != marks[at + period]:
            continue
        end = at + period
        while end < len(marks) and marks[end] == marks[end - period]:
            end += 1
        count = (end - at) // period
        if count >= _LEAST and period * (count - 1) >= _SAVED and period * count > best[0] * best[1]:
            best = (period, count, 0)
    return best[0], best[1]


@dataclass(frozen=True)
class Indexed:
    """Texts written once.

    Attributes:
        text: the first of them, with k and its neighbours where numbers move. indices: k of every text; empty where
            the numbers do not move together, and the text is the first one as it is.
    """

    text: str
    indices: tuple[int, ...]


def indexed(texts: Sequence[str], base: Sequence[int] = (), braces: bool = False) -> Indexed:
    """The texts as one, ``f_{k+1}`` in place of ``f_{3}, f_{5}, ...``.

    Args:
        texts: of equal blocks. base: the k of every text, if it is known; else its first number that moves.
        braces: write ``f_{k+1}`` for ``f_3``, where the text itself has no braces.

    >>> indexed(["W_{4} f_{3}", "W_{3} f_{2}", "W_{2} f_{1}"])
    Indexed(text='W_{k} f_{k-1}', indices=(4, 3, 2))
    """
    split = [_NUMBER.split(text) for text in texts]
    first = split[0]
    if len(texts) < 2 or any(len(s) != len(first) or s[::2] != first[::2] for s in split):
        return Indexed(texts[0], ())
    places = [p for p in range(1, len(first), 2) if any(s[p] != first[p] for s in split)]
    if not places:
        return Indexed(texts[0], tuple(base))
    numbers = list(base) or [int(s[places[0]]) for s in split]
    written = list(first)
    for p in places:
        line = _line(numbers, [int(s[p]) for s in split])
        if line is None:
            return Indexed(texts[0], ())
        written[p] = f"{{{line}}}" if braces else line
    return Indexed("".join(written), tuple(numbers))


def _line(ks: Sequence[int], numbers: Sequence[int]) -> str | None:
    """The numbers as a multiple of k and a constant, ``3k+1``."""
    if ks[1] == ks[0] or (numbers[1] - numbers[0]) % (ks[1] - ks[0]):
        return None
    slope = (numbers[1] - numbers[0]) // (ks[1] - ks[0])
    offset = numbers[0] - slope * ks[0]
    if slope < 1 or any(n != slope * k + offset for k, n in zip(ks, numbers, strict=True)):
        return None
    return ("" if slope == 1 else str(slope)) + "k" + (f"{offset:+d}" if offset else "")


def moving(texts: Sequence[str]) -> tuple[int, ...]:
    """The first number that moves from text to text; empty if there is none.

    >>> moving(["h.2.fc", "h.1.fc"]), moving(["a", "b"])
    ((2, 1), ())
    """
    split = [_NUMBER.split(text) for text in texts]
    if any(s[::2] != split[0][::2] for s in split):
        return ()
    place = next((p for p in range(1, len(split[0]), 2) if split[0][p] != split[-1][p]), None)
    return () if place is None else tuple(int(s[place]) for s in split)


def pattern(text: str) -> str:
    """A text without its numbers.

    >>> pattern("h.11.attn")
    'h.#.attn'
    """
    return _NUMBER.sub("#", text)


def range_text(indices: Sequence[int]) -> str:
    """The values of k, in order.

    >>> range_text((11, 10, 9, 8, 7)), range_text((4, 2, 0))
    ('11, 10, …, 7', '4, 2, 0')
    """
    if len(indices) < 5:
        return ", ".join(map(str, indices))
    return f"{indices[0]}, {indices[1]}, …, {indices[-1]}"
