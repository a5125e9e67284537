"""Texts of all kinds through the verbs: a result or a ChainruleError. (The long run is ``benchmarks/fuzz.py``.)"""

from __future__ import annotations

import random

import pytest

import chainrule as cr
from benchmarks.fuzz import questions, source, tried
from chainrule.errors import ChainruleError


@pytest.mark.parametrize("start", range(0, 1000, 250))
def test_parsing_any_text_gives_an_expression_or_a_chainrule_error(start: int):
    for number in range(start, start + 250):
        text = source(random.Random(number))
        try:
            cr.formula(text)
        except ChainruleError as error:
            assert str(error)


def test_verbs_give_a_result_or_a_chainrule_error():
    for number in range(12):
        rng = random.Random(number)
        for _, ask in questions(rng, source(rng)):
            try:
                ask()
            except ChainruleError as error:
                assert str(error)


@pytest.mark.slow
def test_many_formulas_have_no_fault():
    faults = [(o, text) for number in range(2000) for _, o, _, text in tried(number) if o.startswith("FAULT")]
    assert not faults


@pytest.mark.parametrize("text", ["(" * 10_000 + "x" + ")" * 10_000, "+".join(["x"] * 10_000), "x" + "^1" * 200])
def test_long_formulas_are_derived(text: str):
    d = cr.derive(text, wrt="x", mode="direct")
    assert d["x"].evaluate(x=1.5) == pytest.approx(max(1, text.count("+") + 1), rel=1e-12)
