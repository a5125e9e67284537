"""LaTeX as MathML: all that the printer writes is covered, and nothing is shown wrong in silence."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

import chainrule as cr
from chainrule.interpreters.latex import latex
from chainrule.interpreters.mathml import mathml
from chainrule.ir import OPS, TensorType, apply, variable


class Balanced(HTMLParser):
    """Fails on an end tag that does not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(found: str | None) -> None:
    assert found is not None
    parser = Balanced()
    parser.feed(found)
    parser.close()
    assert not parser.open


@pytest.mark.parametrize("name", [n for n, op in sorted(OPS.items()) if op.family != "leaf" and op.samples])
def test_every_op_prints_latex_that_is_covered(name: str) -> None:
    op = OPS[name]
    sample = op.samples[0]
    inputs = [
        variable(f"x_{k}", TensorType(tuple(a.shape), "float64" if a.dtype.kind == "f" else str(a.dtype)))
        for k, a in enumerate(sample.args)
    ]
    check(mathml(latex(apply(op, *inputs, **sample.params))))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x^2", "<math><msup><mi>x</mi><mn>2</mn></msup></math>"),
        ("f3", "<math><msub><mi>f</mi><mn>3</mn></msub></math>"),
        ("sigma_k^2", "<math><msubsup><mi>σ</mi><mi>k</mi><mn>2</mn></msubsup></math>"),
    ],
)
def test_formulas(source: str, found: str) -> None:
    assert mathml(cr.formula(source).latex) == found


@pytest.mark.parametrize("source", [r"\unheard{x}", "x^2^3", "x^", "{x", "x}", r"\left(x", "a & b", r"\frac{1}"])
def test_what_is_not_covered_is_none(source: str) -> None:
    assert mathml(source) is None


def test_depth_is_no_danger() -> None:
    assert mathml(r"\left(" * 5000 + "x" + r"\right)" * 5000) is None
    assert mathml("{" * 5000) is None


def test_comparisons_are_no_markup() -> None:
    assert "<mi>a</mi><mo>&lt;</mo><mi>b</mi>" in (mathml(cr.formula("[a < b]").latex) or "")


def test_markup_in_names_is_escaped() -> None:
    assert "<b>" not in (mathml(r"\mathrm{<b>} < \operatorname{a&b}") or "<b>")
