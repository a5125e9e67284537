"""Slips of writing: one factor, term, sign, exponent or transpose of an expression gone wrong, anywhere in it."""

from __future__ import annotations

from collections.abc import Iterator

from chainrule.errors import ChainruleError
from chainrule.interpreters.text import text
from chainrule.ir import Node, substitute_nodes, toposort
from chainrule.ops.contraction import einsum
from chainrule.verbs.slip_question import Candidate

_LONG = 40


def breaks(root: Node, limit: int = 60) -> Iterator[Candidate]:
    """The expression with one slip in it, for every place and every slip that fits there."""
    order = toposort([root])[-limit:]
    for node in [*(n for n in order if n.inputs), *(n for n in order if not n.inputs)]:  # bare numbers last
        for kind, sentence, wrong in _broken(node):
            if wrong.shape == node.shape and wrong is not node:
                yield Candidate(kind, sentence, substitute_nodes([root], {node: wrong})[0])


def _short(node: Node) -> str:
    written = text(node)
    return written if len(written) <= _LONG else written[: _LONG - 3] + "..."


def _varies(node: Node) -> bool:
    return any("name" in n.params for n in toposort([node]) if n.is_leaf)


def _left_out(factor: Node) -> tuple[str, str]:
    """Kind and sentence of a factor that is missing."""
    if _varies(factor):
        return "missing upstream term", f"the factor {_short(factor)} is left out"
    if factor.number is not None:
        return "missing factor", f"{_short(factor)} is left out"
    return "normalisation", f"the factor {_short(factor)} is left out"


def _broken(node: Node) -> Iterator[tuple[str, str, Node]]:
    number = node.number
    if number is not None and node.is_leaf and not isinstance(number, bool) and node.type.is_float and number:
        yield "missing factor", f"{number / 2:g} where {number:g} is right", node * 0.5
        yield "missing factor", f"{number * 2:g} where {number:g} is right", node * 2.0
        yield "sign", f"of {number:g}", -node
        return
    name = node.op.name
    if name in ("add", "sub"):
        a, b = node.inputs
        yield "forgotten path", f"the term {_short(b)} is left out", _as(a, node)
        yield "forgotten path", f"the term {_short(a)} is left out", _as(b if name == "add" else -b, node)
        yield "sign", f"of the term {_short(b)}", a - b if name == "add" else a + b
        yield "sign", f"of the term {_short(a)}", b - a if name == "add" else -a - b
        for factor, much in ((2.0, "1/2 is"), (0.5, "2 is")):
            yield (
                "missing factor",
                f"{much} missing in the term {_short(b)}",
                a + factor * b if name == "add" else a - factor * b,
            )
            yield (
                "missing factor",
                f"{much} missing in the term {_short(a)}",
                factor * a + b if name == "add" else factor * a - b,
            )
    elif name == "mul":
        for kept, gone in (node.inputs, node.inputs[::-1]):
            kind, sentence = _left_out(gone)
            yield kind, sentence, kept
    elif name == "div":
        a, b = node.inputs
        kind, sentence = _left_out(b)
        yield "normalisation" if not _varies(b) else kind, f"the division by {_short(b)} is left out", a
        yield "power rule", f"{_short(b)} multiplies instead of dividing", a * b
        yield "power rule", f"the division by {_short(b)} is done twice", a / (b * b)
        if b.op.name == "pow":
            yield "power rule", f"the denominator {_short(b)} has another exponent", a / b.inputs[0]
    elif name == "neg":
        yield "sign", f"of {_short(node.inputs[0])}", node.inputs[0]
    elif name == "pow":
        base, exponent = node.inputs
        for step in (1.0, -1.0):
            yield "power rule", f"the exponent of {_short(base)} is off by one", base ** (exponent + step)
        yield "power rule", f"the exponent of {_short(base)} is left out", base
        yield "sign", f"of the exponent of {_short(base)}", base ** (-exponent)
    elif "operands" in node.params:
        yield from _broken_contraction(node)
    elif node.op.family == "elementwise" and len(node.inputs) == 1:
        yield "missing upstream term", f"the function {node.op.name} is left out", node.inputs[0]


def _as(side: Node, node: Node) -> Node:
    return side if side.shape == node.shape else side * 1.0


def _broken_contraction(node: Node) -> Iterator[tuple[str, str, Node]]:
    operands, result = node.params["operands"], node.params["result"]
    for k, x in enumerate(node.inputs):
        others = [o for j, o in enumerate(operands) if j != k]
        rest = [i for j, i in enumerate(node.inputs) if j != k]
        own = operands[k]
        if len(own) == 2 and x.shape[0] == x.shape[1]:
            swapped = [*operands[:k], own[::-1], *operands[k + 1 :]]
            yield "missing transpose", f"of {_short(x)}", einsum((swapped, result), *node.inputs)
        if not rest:
            continue
        for renamed in [own, own[::-1]] if len(own) == 2 else [()]:
            image = {renamed[0]: renamed[1]} if renamed else {}
            indices = [tuple(image.get(i, i) for i in o) for o in others]
            kind, sentence = _left_out(x)
            try:
                yield kind, sentence, einsum((indices, tuple(image.get(i, i) for i in result)), *rest)
            except ChainruleError:
                continue
