"""Instants of a backward pass, for lower bounds: what is there anyway while a task runs, and what is read later."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from chainrule.planning.problem import Problem

_ABOUT = 0.97


class Instants:
    """One instant per task of the backward pass that needs a cotangent, numbered in the order in which they run.

    Attributes:
        makers: tasks that may be repeated or kept: those of the forward pass, and early ones. made: storage -> maker.
        operands: per instant, storages of makers that the running task reads.
        there: per instant, bytes that every schedule holds: the backward pass's own, and operands.
        before: per instant, bytes of the backward pass's own just before it.
    """

    def __init__(self, problem: Problem, backward: Sequence[int]) -> None:
        self.problem, self.backward = problem, list(backward)
        tasks, sizes, n = problem.tasks, problem.sizes, len(backward)
        early = problem.early
        self.makers = [t for t in range(len(tasks)) if t < problem.forward or t in early]
        self.made = {s: t for t in self.makers for s in tasks[t].writes if s not in problem.resident}
        self.operands = [frozenset(s for s in tasks[t].reads if s in self.made) for t in backward]
        born = dict.fromkeys(problem.cotangents, 0)
        last: dict[int, int] = {}
        self.last_read: dict[int, int] = {}
        for k, t in enumerate(backward):
            for s in tasks[t].reads:
                (self.last_read if s in self.made else last)[s] = k
            born.update(dict.fromkeys(tasks[t].writes, k))
        alive, ahead = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64)
        for s, k in born.items():
            if s in problem.resident:
                continue
            end = n if s in problem.gradients else last.get(s, k) + 1
            if s in problem.cotangents and s not in last and s not in problem.gradients:
                continue
            alive[k] += sizes[s]
            alive[end] -= sizes[s]
            start = k if s in problem.cotangents else k + 1
            if start < end:
                ahead[start] += sizes[s]
                ahead[end] -= sizes[s]
        held = sum(sizes[s] for s in problem.returned - problem.gradients)
        work = np.array([tasks[t].work for t in backward], dtype=np.int64)
        read = np.array([sum(sizes[s] for s in o - problem.returned) for o in self.operands], dtype=np.int64)
        self.there = np.cumsum(alive)[:n] + work + read + held
        self.before = np.cumsum(ahead)[:n] + held

    def wanted(self, at: int) -> set[int]:
        """Storages of makers that are read after an instant."""
        return {s for s, k in self.last_read.items() if k > at}

    def spread(self, count: int) -> list[int]:
        """Instants with much there, more of them early in the backward pass: most is still needed then."""
        n = len(self.backward)
        edges = sorted({round(n * (i / count) ** 2) for i in range(count + 1)})
        return sorted({0} | self._fullest(edges)) if n else []

    def evenly(self, count: int) -> list[int]:
        """Instants with much there, evenly."""
        n = len(self.backward)
        return sorted(self._fullest(sorted({round(n * i / count) for i in range(count + 1)}))) if n else []

    def _fullest(self, edges: Sequence[int]) -> set[int]:
        """Per stretch the first instant with about as much there as any: more is still needed then."""
        stretches = [(a, self.there[a:b]) for a, b in pairwise(edges)]
        return {a + int((x >= _ABOUT * x.max()).argmax()) for a, x in stretches}
