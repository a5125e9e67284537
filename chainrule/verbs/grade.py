"""Many claims from a table: each checked by itself, a row that cannot be read stops none of the others.

The table is CSV with a header: ``formula``, ``wrt`` and ``claim``, and where wanted ``shapes`` (``A=m,n; x=n``),
``assume`` (``A=symmetric``), ``layout``, ``order``, ``cotangent`` and ``name`` (or ``student``). Commas, semicolons or
tabs separate columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chainrule.errors import ChainruleError, FormulaError
from chainrule.verbs.check import check
from chainrule.verbs.verdict import CheckResult

REQUIRED = ("formula", "wrt", "claim")
OPTIONAL = ("shapes", "assume", "layout", "order", "cotangent", "name", "student")


@dataclass(frozen=True)
class Grade:
    """One row: its line in the file, whose it is, and the verdict, or why there is none.

    Attributes:
        verdict: ``"right"``, ``"wrong"`` or ``"broken"``. result: of the check. error: what is wrong with the row.
    """

    line: int
    name: str
    claim: str
    result: CheckResult | None
    error: str = ""

    @property
    def verdict(self) -> str:
        if self.result is None:
            return "broken"
        return "right" if self.result.holds else "wrong"

    @property
    def comment(self) -> str:
        """The slip and the right answer, or what is wrong with the row; empty where nothing is."""
        if self.result is None:
            return self.error.splitlines()[0]
        if self.result.holds:
            return f"equal except at {self.result.except_at}" if self.result.except_at else ""
        return f"{self.result.slip or 'no usual slip'} (correct: {self.result.correct.text})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        checked = self.result.to_dict() if self.result is not None else None
        return {
            "line": self.line,
            "name": self.name,
            "claim": self.claim,
            "verdict": self.verdict,
            "error": self.error,
            "check": checked,
        }


@dataclass(frozen=True)
class Grades:
    """All rows of a table, in its order."""

    rows: tuple[Grade, ...]

    def count(self, verdict: str) -> int:
        """How many rows have this verdict."""
        return sum(row.verdict == verdict for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{r.line:>4}  {r.name}  {r.verdict}  {r.claim}  {r.comment}".rstrip() for r in self.rows]
        return "\n".join([*lines, self.total])

    @property
    def total(self) -> str:
        """One line: how many are right, wrong and broken."""
        counts = [f"{self.count(v)} {v}" for v in ("right", "wrong", "broken")]
        return f"{len(self.rows)} answers: {', '.join(counts)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.grades/1",
            "answers": len(self.rows),
            **{verdict: self.count(verdict) for verdict in ("right", "wrong", "broken")},
            "rows": [row.to_dict() for row in self.rows],
        }


def grade(text: str) -> Grades:
    """Checks every row of a table of claims.

    Raises:
        FormulaError: there is no header with the columns ``formula``, ``wrt`` and ``claim``.

    >>> print(grade("formula,wrt,claim\\ny = x^2,x,2*x\\ny = x^2,x,x\\ny = x^2,x,2*"))
       2    right  2*x
       3    wrong  x  missing factor 2 (correct: 2 * x)
       4    broken  2*  nothing after the operator '*' (line 1, column 2)
    3 answers: 1 right, 1 wrong, 1 broken
    """
    return Grades(tuple(_graded(line, row) for line, row in _rows(text)))


def _rows(text: str) -> Iterator[tuple[int, Mapping[str, str] | str]]:
    """(line, row by column), or (line, what is wrong with it)."""
    first = text.lstrip("\ufeff").partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=delimiter)
    header = [h.strip().lower() for h in _next(reader) or []]
    _check_header(header, first)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, f"the row cannot be read: {error}"
            continue
        if cells is None:
            return
        if not any(c.strip() for c in cells):
            continue
        if len(cells) > len(header):
            yield (
                line,
                f"{len(cells)} cells where the header has {len(header)} (quote a cell that contains {delimiter!r})",
            )
        else:
            yield line, dict(zip(header, cells, strict=False))


def _next(reader: Any) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error:
        return None


def _check_header(header: list[str], first: str) -> None:
    missing = [c for c in REQUIRED if c not in header]
    unknown = [c for c in header if c not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown or len(set(header)) < len(header):
        what = (
            f"no column {missing[0]!r}"
            if missing
            else f"an unknown column {unknown[0]!r}"
            if unknown
            else "a column twice"
        )
        raise FormulaError(
            f"the table of answers has {what}",
            given=first[:100].strip() or "an empty file",
            required=f"a header line with {', '.join(REQUIRED)}; if wanted {', '.join(OPTIONAL)}",
            instead="formula,wrt,claim",
        )


def _graded(line: int, row: Mapping[str, str] | str) -> Grade:
    if isinstance(row, str):
        return Grade(line, "", "", None, row)
    cell = {k: v.strip() for k, v in row.items()}
    name, claim = cell.get("name") or cell.get("student") or "", cell.get("claim", "")
    empty = [c for c in REQUIRED if not cell.get(c)]
    if empty:
        return Grade(line, name, claim, None, f"the cell {empty[0]!r} is empty")
    try:
        result = check(
            cell["formula"],
            wrt=cell["wrt"],
            claim=claim,
            shapes=_pairs(cell.get("shapes", ""), "A=m,n; x=n"),
            assume=_pairs(cell.get("assume", ""), "A=symmetric"),
            layout=cell.get("layout") or "denominator",
            order=_order(cell.get("order", "")),
            cotangent=cell.get("cotangent") or None,
        )
    except ChainruleError as error:
        return Grade(line, name, claim, None, str(error))
    return Grade(line, name, claim, result)


def _order(text: str) -> int:
    if text and not text.isdigit():
        raise FormulaError(f"the order {text!r} is no whole number", required="1, 2 or nothing")
    return int(text or 1)


def _pairs(text: str, example: str) -> dict[str, str]:
    found = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, equals, shape = (p.strip() for p in part.partition("="))
        if not name or not equals:
            raise FormulaError(f"{text!r} is not of the form NAME=VALUE; ...", instead=example)
        found[name] = shape
    return found
