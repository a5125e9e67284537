"""Slips are found and named, right answers accepted however written, changed answers refused."""

from __future__ import annotations

import pytest

import chainrule as cr
from benchmarks.check import grade, perturbed, right, wrong
from chainrule.verbs.slip_kinds import SLIPS
from tests.claims import MORE_WRONG, RIGHT, WRONG
from tests.problems import PROBLEMS

BY_ID = {p.id: p for p in PROBLEMS}


def test_the_tables_are_what_they_say():
    assert len(WRONG) == 10 and all(len(claims) == 5 for claims in WRONG.values())
    assert {*WRONG, *MORE_WRONG} <= set(SLIPS) and len(RIGHT) == 50


@pytest.mark.parametrize("kind", [*WRONG, *MORE_WRONG])
def test_planted_slips_are_named(kind: str):
    rows = wrong({kind: {**WRONG, **MORE_WRONG}[kind]})
    assert not any(r.holds for r in rows)
    assert all(r.named for r in rows), [(r.id, r.kind, r.slip) for r in rows if not r.named]


def test_right_claims_are_accepted_however_written():
    refused = [(r.id, r.claim, r.slip) for r in right() if not r.holds]
    assert not refused


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_changed_answers_are_refused(count: int):
    accepted = [(r.id, r.claim) for r in perturbed(count, seed=count) if r.holds]
    assert not accepted


@pytest.mark.parametrize(
    "id, claim, said",
    [
        ("V05", "2*X' @ (X @ w - y) + λ*w", "X' @ (X @ w - y)"),
        ("S08", "exp(x) + 2*exp(2*x)", "dy/du is left out"),
        ("M27", "G", "sum over m"),
        ("M25", "G @ W'", "this is dy/dX"),
        ("M33", "P = softmax(Q @ K'/sqrt(d)); (P*(G @ V' - sum(G @ V'*P, 1)[:, None])) @ K", "1/sqrt(d)"),
        ("V10", "p = softmax(x); p - p @ p'", "diag of p"),
        ("V02", "2*A @ x", "A is not symmetric"),
    ],
)
def test_the_sentence_names_the_term(id: str, claim: str, said: str):
    assert said in grade(BY_ID[id], claim).slip


def test_what_has_no_usual_slip_has_none():
    c = cr.check("y = sin(x)", wrt="x", claim="cosh(x) + x^2*log(abs(x) + 7)")
    assert not c.holds and (c.slip, c.slip_kind) == ("", "")
