"""``check`` on claims about the open problems: slips found and named, right answers accepted however written.

Run: python -m benchmarks.check [--perturbed N]

wrong: five claims of each of ten kinds of slip, and some of other kinds. right: fifty other ways to write the answer.
perturbed: derived answers changed at a random place; every one that differs by values must be refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np

import chainrule as cr
from chainrule.errors import ChainruleError
from chainrule.interpreters.text import text
from chainrule.verbs.slip_breaks import breaks
from chainrule.verbs.slip_points import Points, same
from tests.claims import MORE_WRONG, RIGHT, WRONG
from tests.problems import PROBLEMS, Problem

_BY_ID = {p.id: p for p in PROBLEMS}


@dataclass(frozen=True)
class Graded:
    """One claim, with the kind of slip that was planted and the verdict."""

    id: str
    claim: str
    planted: str
    holds: bool
    kind: str
    slip: str
    seconds: float

    @property
    def named(self) -> bool:
        """Whether the planted slip was found and named."""
        return not self.holds and self.kind == self.planted


def grade(problem: Problem, claim: str, planted: str = "") -> Graded:
    """The verdict on one claim about a problem."""
    start = perf_counter()
    try:
        c = cr.check(
            problem.formula,
            wrt=problem.wrt,
            claim=claim,
            shapes=problem.shapes,
            layout=problem.layout,
            order=problem.order,
        )
        holds, kind, slip = c.holds, c.slip_kind, c.slip
    except ChainruleError as error:
        holds, kind, slip = False, "error", str(error)
    return Graded(problem.id, claim, planted, holds, kind, slip, perf_counter() - start)


def wrong(claims: dict[str, list[tuple[str, str]]]) -> list[Graded]:
    """Every planted slip, graded."""
    return [grade(_BY_ID[id], claim, kind) for kind, rows in claims.items() for id, claim in rows]


def right() -> list[Graded]:
    """Every right claim, graded."""
    return [grade(_BY_ID[id], claim) for id, claim in RIGHT]


def perturbed(count: int, seed: int = 0) -> Iterator[Graded]:
    """Derived answers with one random place gone wrong that changes their values."""
    generator = np.random.default_rng(seed)
    left = count
    while left:
        problem = PROBLEMS[int(generator.integers(len(PROBLEMS)))]
        derived = cr.derive(
            problem.formula,
            wrt=problem.wrt,
            shapes=problem.shapes,
            layout=problem.layout,
            order=problem.order,
            mode="direct",
        )
        answer = derived[problem.wrt].full
        changed = list(breaks(answer))
        if not changed:
            continue
        candidate = changed[int(generator.integers(len(changed)))].node
        points = Points([answer, candidate])
        values = points.values([answer, candidate])
        if not len(points) or candidate.shape != answer.shape or None in values or same(*values):
            continue
        left -= 1
        yield grade(problem, text(candidate), "perturbed")


def main(arguments: list[str]) -> None:
    """Prints the tables."""
    for title, rows in (("ten kinds", wrong(WRONG)), ("other kinds", wrong(MORE_WRONG))):
        for r in rows:
            print(f"{'  ' if r.named else '* '}{r.id}  {r.planted:26} {r.kind:26} {r.seconds:5.2f} s  {r.slip[:110]}")
        print(f"{title}: {sum(r.named for r in rows)} of {len(rows)} named, {sum(r.holds for r in rows)} accepted\n")
    rows = right()
    for r in rows:
        if not r.holds:
            print(f"* {r.id}  {r.claim}: {r.slip}")
    print(f"right: {sum(r.holds for r in rows)} of {len(rows)} accepted; slowest {max(r.seconds for r in rows):.2f} s")
    if "--perturbed" in arguments:
        count = int(arguments[arguments.index("--perturbed") + 1])
        found = list(perturbed(count))
        for r in found:
            if r.holds:
                print(f"* {r.id}  accepted: {r.claim}")
        print(f"perturbed: {sum(not r.holds for r in found)} of {count} refused")
        print(f"  with a slip named: {sum(bool(r.kind) for r in found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
