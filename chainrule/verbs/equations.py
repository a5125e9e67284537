"""A derivation as lines: text, LaTeX, or HTML for notebooks, in matrix notation or in index notation."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from chainrule.interpreters.latex import LatexPrinter
from chainrule.interpreters.mathml import mathml
from chainrule.ir import shape_text
from chainrule.verbs.assumptions import assumption_lines
from chainrule.verbs.blocks import Block, grouped
from chainrule.verbs.expression import Expression
from chainrule.verbs.index_lines import IndexLines
from chainrule.verbs.steps import Step

if TYPE_CHECKING:
    from chainrule.verbs.derive import DeriveResult


def as_text(result: DeriveResult, notation: str, lines_too: bool = False, blocks: bool = True) -> str:
    """Definitions and steps, one line each, with the factors of every term below it.

    ``lines_too``: and the lines that lead from the chain rule to the closed form, each with its rule. ``blocks``: a
    model's repeated blocks are written once.
    """
    index = IndexLines(result.program.symbol, result.layout)
    indexed = notation == "index"
    if result.from_model and result.definitions and not indexed and not lines_too:
        return "\n".join(str(part) for part in model_lines(result, blocks))
    lines = [index.definition(n, e) if indexed else f"{n} = {e.text}" for n, e in result.definitions]
    lines += [""] if lines else []
    for step in result.steps:
        lines.append(_index_step(step, index) if indexed else str(step))
        lines += _factor_lines(step, index, indexed)
        lines += _chain_lines(step)
        lines += [f"    = {line}   ({rule})" for line, rule in step.lines] if lines_too else []
        lines += [] if step.value is None else [f"    value: {_shown(step.value)}"]
    return "\n".join([*lines, *_named_answers(result, indexed), *_conventions(result)])


def model_lines(result: DeriveResult, blocks: bool) -> list[str | Block]:
    """The forward and the backward pass of a model, each line an equation of the formula language; shapes beside.

    ``blocks``: what repeats is written once, with an index.
    """
    forward = [_with_shape(f"{n} = {e.text}", e.shape) for n, e in result.definitions]
    backward = [_with_shape(f"{s.symbol} = {s.closed_form.text}", s.shape, s.note, s.value) for s in result.steps]
    parts = [grouped(lines) if blocks else lines for lines in (forward, backward)]
    return [*parts[0], "", *parts[1], *(f"# {line}" for line in _conventions(result))]


def _with_shape(line: str, shape: tuple[Any, ...], note: str = "", value: Any = None) -> str:
    sizes = f"({shape_text(shape)})" if shape else ""
    given = "" if value is None else f"value: {np.array2string(np.asarray(value), precision=8, separator=', ')}"
    remarks = "; ".join(" ".join(part.split()) for part in (sizes, note, given) if part)
    return f"{line}   # {remarks}" if remarks else line


def as_latex(result: DeriveResult, notation: str) -> str:
    """An ``aligned`` environment: one line per step."""
    index = IndexLines(result.program.symbol, result.layout)
    rows = [_latex_step(s, index, notation == "index", " &= ") for s in result.steps]
    body = " \\\\\n".join(rows)
    return f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"


def as_html(result: DeriveResult) -> str:
    """A table of definitions and steps as MathML, which browsers show without any script."""
    index = IndexLines(result.program.symbol, result.layout)
    symbol = LatexPrinter().symbol
    rows = [_row(f"{symbol(n)} = {e.latex}", f"{n} = {e.text}", e) for n, e in result.definitions]
    rows += [_row(_latex_step(s, index, False, " = "), str(s), s.closed_form, s.note) for s in result.steps]
    notes = "".join(f"<p>{escape(line)}</p>" for line in _conventions(result))
    return f"<table>{''.join(rows)}</table>{notes}"


def _row(latex: str, text: str, value: Expression, note: str = "") -> str:
    shape = escape(shape_text(value.shape))
    return f"<tr><td style='text-align:left'>{equation(latex, text)}</td><td>{shape}</td><td>{escape(note)}</td></tr>"


def equation(latex: str, text: str) -> str:
    """One equation: as MathML, or its text where that does not cover it."""
    shown = mathml(latex)
    return f"<code>{escape(text)}</code>" if shown is None else f'<span title="{escape(text)}">{shown}</span>'


def _named_answers(result: DeriveResult, indexed: bool) -> list[str]:
    """The answers in which repeated quantities have a name: ``df/dz = diag(p) - p @ p'   where p = softmax(z)``."""
    lines = []
    for step in result.steps:
        answer = result.derivatives.get(step.wrt) if step.of == result.of and not indexed else None
        if answer is not None and answer.where:
            meanings = ", ".join(f"{name} = {body}" for name, body in answer.where)
            lines.append(f"{step.symbol} = {answer.text}   where {meanings}")
    return lines


def _conventions(result: DeriveResult) -> list[str]:
    """What a reader must know to use a matrix answer, and what each mode costs."""
    lines = assumption_lines(list(result.program.variables.values()), result.wrt)
    if any(len(s.shape) > 1 for s in result.steps):
        lines.append(f"layout: {result.layout}" + (" (the book's)" if result.layout == "denominator" else ""))
    return [*lines, *result.bracketing.lines()] if result.is_counted else lines


def _index_step(step: Step, index: IndexLines) -> str:
    line = index.derivative(step.of, step.wrt, step.closed_form, step.order, step.symbol)
    return line + (f"   ({step.note})" if step.note else "")


def _latex_step(step: Step, index: IndexLines, indexed: bool, equals: str) -> str:
    if indexed:
        return index.latex(step.of, step.wrt, step.closed_form, step.order, equals)
    printer = LatexPrinter()
    left = printer.symbol(step.symbol)
    chain = " + ".join(" ".join(printer.symbol(f.symbol) for f in t.factors) for t in step.terms)
    middle = f"{equals}{chain} = " if chain and chain != left else equals
    return f"{left}{middle}{step.closed_form.latex}"


def _factor_lines(step: Step, index: IndexLines, indexed: bool) -> list[str]:
    """The factors of a step, one line each; tensors of order three and up by their element."""
    lines = []
    for term in step.terms:
        for f in term.factors:
            if f.symbol == step.symbol and len(term.factors) == 1:
                continue
            if f.expression is None or any(g.expression is None for g in term.factors):
                continue
            shape = f"   ({shape_text(f.shape)})" if f.shape else ""
            by_element = indexed or f.expression.node.type.rank > 2
            line = index.factor(f.symbol, f.expression) if by_element else ""
            lines.append(f"    {line or f'{f.symbol} = {f.expression.text}'}{shape}")
    return list(dict.fromkeys(lines))


def _chain_lines(step: Step) -> list[str]:
    """The whole product of local derivatives, where the step itself shows only its first factor, and the sizes."""
    products = [" ".join(f.symbol for f in path) for path in step.chain]
    lines = []
    if len(products) == 1 and len(step.chain[0]) > 2:
        lines.append(f"    {step.symbol} = {products[0]}")
    return [*lines, f"    {step.sizes}"] if step.sizes and len(step.chain) == 1 and len(step.chain[0]) > 1 else lines


def _shown(value: Any) -> str:
    return np.array2string(np.asarray(value), precision=8, separator=", ").replace("\n", "\n    ")
