"""Quantities that an answer repeats get a name where that makes it shorter, and only there."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import chainrule as cr
from chainrule.cli import cli
from chainrule.ir import tree_size
from tests.problems import PROBLEMS

VECTOR = {"z": "n"}


def test_the_hessian_of_logsumexp():
    d = cr.derive("f = logsumexp(z)", wrt="z", shapes=VECTOR, order=2)
    assert d["z"].text == "diag(p) - p @ p'" and d["z"].where == (("p", "softmax(z)"),)
    assert "d2f/dz2 = diag(p) - p @ p'   where p = softmax(z)" in str(d)
    assert d["z"].size < tree_size(d["z"].node)
    assert d.to_dict()["derivatives"]["z"]["where"] == [["p", "softmax(z)"]]


def test_a_name_that_is_taken_is_not_used_again():
    shapes = {"z": "s", "p": "s"}
    e = cr.derive("f = p' @ p*logsumexp(z)", wrt="z", shapes=shapes, order=2)["z"]
    assert dict(e.where)["p2"] == "softmax(z)"
    e = cr.derive("s*sig(x)*sig(x)*sig(x)*(1 - sig(x))", wrt="x", mode="direct")["x"]
    assert all(name != "s" for name, _ in e.where) and e.where


@pytest.mark.parametrize("source", ["y = x*sig(x)", "y = exp(x)^2 + x", "y = sin(x)*cos(x)", "y = (x + 1)*(x + 1)"])
def test_short_answers_have_no_invented_names(source: str):
    assert cr.derive(source, wrt="x")["x"].where == ()


def test_the_users_own_names_come_first():
    d = cr.derive("p = softmax(z); y = sum(p*p*p) + sum(p*p)", wrt="z", shapes=VECTOR)
    assert not d["z"].where and "p" in d["z"].text and "softmax" not in d["z"].text


def test_one_quantity_has_one_name_in_all_answers():
    d = cr.derive("y = log(sum(exp(A @ x + b)))^3", wrt="x, b", shapes={"A": "m,n", "x": "n", "b": "m"}, order=2)
    meaning: dict[str, str] = {}
    for w in d.wrt:
        for name, text in d[w].where:
            assert meaning.setdefault(name, text) == text
    assert meaning


@pytest.mark.parametrize(
    "problem", [pytest.param(p, id=p.id) for p in PROBLEMS if p.id in ("V10", "V13", "V15", "M33")]
)
def test_named_and_unnamed_text_read_back_as_the_same(problem):
    d = cr.derive(
        problem.formula, wrt=problem.wrt, shapes=problem.shapes, order=problem.order, layout=problem.layout,
        cotangent=problem.cotangent,
    )  # fmt: skip
    e = d[problem.wrt]
    assert e.where and e.size < tree_size(e.node)
    shapes = {n: s for n, s in problem.shapes.items()}
    named = cr.formula(e.text, shapes, where=d)
    assert named.equals(e) and named.simplified().node is cr.formula(e.text, shapes, where=e).simplified().node


def test_evaluation_needs_the_leaves_only():
    e = cr.derive("f = logsumexp(z)", wrt="z", shapes=VECTOR, order=2)["z"]
    assert e.evaluate(z=[0.0, 0.0]).tolist() == [[0.25, -0.25], [-0.25, 0.25]]


def test_a_verdict_and_the_command_line():
    assert "softmax" in str(cr.check("f = logsumexp(z)", wrt="z", claim="diag(z)", shapes=VECTOR, order=2))
    arguments = ["derive", "f = logsumexp(z)", "--shape", "z=n", "--wrt", "z", "--order", "2"]
    assert "where p = softmax(z)" in CliRunner().invoke(cli, arguments).output
    data = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert data["derivatives"]["z"]["text"] == "diag(p) - p @ p'"
