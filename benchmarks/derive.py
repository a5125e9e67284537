"""The open problems of ``derive``: right, as short as the printed answer, parsed back, and how fast.

Run: python -m benchmarks.derive [ids ...] [--modes]

size: operators and operands of the printed form over those of the answer, counted twice: on the parsed graph, and
(text) on the text as written, where norm(x) is one operator.  trip: the text parses back to the same graph.
--modes: the same derivative in all modes, as one formula and as assignments.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

import chainrule as cr
from chainrule.frontends.formula import parse_program, tree
from chainrule.frontends.formula.lexer import tokenize
from chainrule.frontends.formula.parser import assigned_names, parse_tokens
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import Graph, Node, substitute_nodes, toposort, tree_size, variable
from chainrule.verbs.derive import DeriveResult
from chainrule.verbs.expression import Expression, random_sizes, resolve
from tests import further_matrix_problems, further_problems
from tests.problems import DOMAINS, PROBLEMS, Problem

FURTHER = (*further_problems.FURTHER, *further_matrix_problems.FURTHER)
ALL = (*PROBLEMS, *FURTHER)

LIMIT = 30  # seconds for one problem
TOLERANCE = 1e-9  # relative to the largest element


class TooSlow(Exception):
    """A problem ran into the limit."""


@contextmanager
def time_limit(seconds: int = LIMIT) -> Iterator[None]:
    """Raises TooSlow in the block when the time is up."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- one problem -------------------------------------------------------------------------------------------
def derive(problem: Problem, mode: str = "reverse", formula: str = "") -> DeriveResult:
    """The derivation of a problem."""
    return cr.derive(
        formula or problem.formula,
        wrt=problem.wrt,
        shapes=problem.shapes,
        mode=mode,
        order=problem.order,
        layout=problem.layout,
        cotangent=problem.cotangent,
    )


def assigned(problem: Problem) -> set[str]:
    """The names that the formula assigns."""
    return {s.name for s in parse_program(problem.formula, problem.shapes).statements if s.name}


def names_of(problem: Problem, derived: DeriveResult) -> dict[str, Node]:
    """The names that an answer may use: variables and what the formula assigns."""
    program = derived.program
    return {n: program.symbol[n] for n in program.order if n in assigned(problem)} | dict(program.variables)


def parsed(source: str, given: Mapping[str, Node], shapes: Mapping[str, str]) -> Graph:
    """A text that uses given names, unsimplified."""
    return parse_program(source, {k: v for k, v in shapes.items() if k not in given}, given=given).graph


def node_size(source: str, given: Mapping[str, Node], shapes: Mapping[str, str]) -> int:
    """Operators and operands of the parsed graph; an assigned name is counted once, where it is assigned."""
    program = parse_program(source, {k: v for k, v in shapes.items() if k not in given}, given=given)
    image: dict[Node, Node] = {}
    total = 0
    for statement in program.statements:
        total += tree_size(substitute_nodes([statement.node], image)[0])
        if statement.name and statement.node.inputs:
            image[statement.node] = variable(statement.name, statement.node.type)
    return total


def text_size(source: str, variables: set[str]) -> int:
    """Operators and operands of the text as written; brackets, commas, ':' and strings are neither."""
    statements = parse_tokens(
        source, tokenize(source), frozenset(), variables | assigned_names(tokenize(source)).keys()
    )
    return sum(_count(s.expression) for s in statements)


def _count(part: tree.Tree) -> int:
    own = not isinstance(part, tree.String | tree.Sequence | tree.Slice | tree.NewAxis | tree.Dots)
    return own + sum(_count(p) for p in tree.children(part))


def with_where(problem: Problem, derived: DeriveResult) -> str:
    """The printed derivative, with every name that is not the user's as an assignment before it."""
    expression = derived[problem.wrt]
    own = assigned(problem)
    program = derived.program
    lines = {n: f"{n} = {Expression(program.local[n]).text}" for n in program.order if n not in own}
    needed: set[str] = set()
    nodes = [expression.node]
    for name in reversed(program.order):
        if name in lines and program.symbol[name] in toposort(nodes):
            needed.add(name)
            nodes.append(program.local[name])
    before = [line for name, line in lines.items() if name in needed]
    return "; ".join([*before, *(f"{name} = {body}" for name, body in expression.where), expression.text])


def points(nodes: list[Node], problem: Problem, count: int = 3) -> Iterator[tuple[dict[Node, Any], dict[str, int]]]:
    """Random values of the leaves, as the problem's domain wants them, and sizes."""
    nodes = toposort(nodes)
    leaves = sorted({n for n in nodes if n.is_leaf and "name" in n.params}, key=lambda n: n.params["name"])
    for trial in range(count):
        generator = np.random.default_rng([7, trial])
        sizes = random_sizes(nodes, generator)
        for larger, smaller in problem.larger.items():
            sizes[larger] = max(sizes[larger], sizes[smaller] + 1 + trial)
        values = {}
        for leaf in leaves:
            shape = tuple(s if isinstance(s, int) else _size(s, sizes) for s in leaf.shape)
            make = DOMAINS.get(problem.domain.get(leaf.params["name"], ""))
            values[leaf] = make(generator, shape) if make else generator.standard_normal(shape)
        yield values, sizes


def _size(size: Any, sizes: Mapping[str, int]) -> int:
    return sum(c * int(np.prod([sizes[name] for name in monomial])) for monomial, c in size.terms)


def agree(a: Node, b: Node, problem: Problem) -> str:
    """Empty if two nodes have the same values at three points, else how they differ."""
    if a.shape != b.shape:
        return f"shape {a.shape}, not {b.shape}"
    for values, sizes in points([a, b], problem):
        x, y = (np.asarray(v) for v in evaluate([a, b], values, sizes))
        if x.shape != y.shape:
            return f"shape {x.shape}, not {y.shape}"
        if not np.all(np.isfinite(y)):
            return "the answer is not finite at a point"
        error = float(np.max(np.abs(x - y), initial=0)) / max(float(np.max(np.abs(y), initial=0)), 1e-300)
        if not error <= TOLERANCE:
            return f"relative error {error:.1e}"
    return ""


@dataclass
class Row:
    """One line of the table."""

    id: str
    text: str = ""
    wrong: str = ""
    trip: str = ""
    size: int = 0
    answer_size: int = 0
    text_size: int = 0
    answer_text_size: int = 0
    seconds: float = 0.0

    @property
    def ratio(self) -> float:
        """Printed size over the answer's; infinite without a result."""
        return self.size / self.answer_size if self.size else float("inf")

    @property
    def text_ratio(self) -> float:
        """The same, counted on the text."""
        return self.text_size / self.answer_text_size if self.text_size else float("inf")


def measure(problem: Problem) -> Row:
    """Derives one problem and compares it with its answer. Never raises."""
    row = Row(problem.id)
    if problem.missing:
        row.wrong = row.trip = f"the language has no {', '.join(problem.missing)}"
        return row
    start = perf_counter()
    try:
        with time_limit():
            derived = derive(problem)
            row.text = derived[problem.wrt].text
            row.seconds = perf_counter() - start
    except Exception as error:
        row.seconds = perf_counter() - start
        row.wrong = row.trip = f"{type(error).__name__}: {_first_line(error)}"
        return row
    row.text = with_where(problem, derived)
    given = names_of(problem, derived)
    for check in (_correct, _sizes, _round_trip):
        try:
            with time_limit():
                check(problem, derived, given, row)
        except Exception as error:
            what = f"{type(error).__name__}: {_first_line(error)}"
            if check is _round_trip:
                row.trip = what
            else:
                row.wrong = row.wrong or f"{check.__name__}: {what}"
    return row


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:100]


def _correct(problem: Problem, derived: DeriveResult, given: Mapping[str, Node], row: Row) -> None:
    expression = derived[problem.wrt]
    answer = Expression(parsed(problem.answer, given, problem.shapes).outputs[-1], expression.definitions)
    row.wrong = agree(expression.full, answer.full, problem)


def _sizes(problem: Problem, derived: DeriveResult, given: Mapping[str, Node], row: Row) -> None:
    printed = with_where(problem, derived)
    row.answer_size = node_size(problem.answer, given, problem.shapes)
    row.answer_text_size = text_size(problem.answer, set(given))
    row.text_size = text_size(printed, set(given))
    row.size = node_size(printed, given, problem.shapes)


def _round_trip(problem: Problem, derived: DeriveResult, given: Mapping[str, Node], row: Row) -> None:
    """From the text alone, with the shapes of the variables and the names that the formula assigns."""
    again = parsed(with_where(problem, derived), given, problem.shapes).outputs[-1]
    program = derived.program
    invented = {n: d for n, d in program.definitions.items() if n not in given.values()}
    node = resolve(derived[problem.wrt].node, invented)
    if again is node or simplify(again) is simplify(node):
        return
    row.trip = f"comes back as {text(simplify(again))}"


# ---- modes -------------------------------------------------------------------------------------------------
def modes(problem: Problem) -> str:
    """Empty if direct, forward and reverse mode agree, as assignments and as one formula; else what does not."""
    if problem.missing:
        return f"the language has no {', '.join(problem.missing)}"
    faults = []
    reference: Node | None = None
    for form in FORMS:
        for mode in ("direct", "forward", "reverse"):
            try:
                with time_limit():
                    node = derive(problem, mode, FORMS[form](problem))[problem.wrt].full
                    reference = node if reference is None else reference
                    fault = agree(node, reference, problem)
            except Exception as error:
                fault = f"{type(error).__name__}: {_first_line(error)}"
            if fault:
                faults.append(f"{mode}, {form}: {fault}")
    return "; ".join(faults)


def statements_of(problem: Problem) -> Sequence[tree.Assignment]:
    """The syntax trees of a formula."""
    source = problem.formula
    tokens = tokenize(source)
    return parse_tokens(source, tokens, frozenset(), {*problem.shapes, *assigned_names(tokens)})


def written(part: tree.Tree, source: str, piece: Callable[[tree.Tree, str], str]) -> str:
    """The text of a tree, bracketed throughout; ``piece(tree, text)`` says what stands in another's place."""

    def operand(t: tree.Tree) -> str:
        return piece(t, written(t, source, piece))

    match part:
        case tree.Negative():
            return f"-{operand(part.operand)}"
        case tree.Transposed():
            return f"{operand(part.operand)}'"
        case tree.Binary() | tree.Comparison():
            return f"{operand(part.left)} {part.symbol} {operand(part.right)}"
        case tree.Iverson():
            return f"[{written(part.condition, source, piece)}]"
        case tree.Index():
            return f"{operand(part.operand)}[{', '.join(source[i.start : i.end] for i in part.items)}]"
        case tree.Call():
            return f"{part.name}({', '.join(operand(a) for a in part.arguments)})"
    return source[part.start : part.end]


def joined(problem: Problem) -> str:
    """Assignments as one formula: every name replaced by what it means."""
    meaning: dict[str, str] = {}

    def piece(part: tree.Tree, body: str) -> str:
        if isinstance(part, tree.Name):
            return meaning.get(part.name, body)
        return f"({body})" if tree.children(part) else body

    statements = statements_of(problem)
    for statement in statements:
        meaning[statement.name] = f"({written(statement.expression, problem.formula, piece)})"
    return problem.formula if not statements[-1].name else meaning[statements[-1].name][1:-1]


def split(problem: Problem) -> str:
    """One assignment for every operator and call."""
    lines: list[str] = []

    def piece(part: tree.Tree, body: str) -> str:
        if not tree.children(part):
            return body
        lines.append(f"part{len(lines) + 1} = {body}")
        return f"part{len(lines)}"

    for statement in statements_of(problem):
        body = written(statement.expression, problem.formula, piece)
        lines.append(f"{statement.name or 'out'} = {body}")
    return "; ".join(lines)


FORMS = {"as it is": lambda p: p.formula, "as assignments": split, "as one formula": joined}


# ---- the table ---------------------------------------------------------------------------------------------
def report(rows: list[Row]) -> None:
    """Prints the summary."""
    count = len(rows)
    right = [r for r in rows if not r.wrong]
    print(f"\nright {len(right)} of {count}")
    for name, ratios in (
        ("size ratio (graph)", {r.id: r.ratio for r in right}),
        ("size ratio (text) ", {r.id: r.text_ratio for r in right}),
    ):
        worst = sorted(ratios, key=lambda k: -ratios[k])[:3]
        print(
            f"{name} of those right: at most 1.2 for {sum(v <= 1.2 for v in ratios.values())} of {count}, "
            f"at most 2 for {sum(v <= 2 for v in ratios.values())}, worst "
            + ", ".join(f"{ratios[w]:.2f} ({w})" for w in worst)
        )
    print(f"round trip exact for {sum(not r.trip for r in rows)}")
    slowest = max(rows, key=lambda r: r.seconds)
    print(
        f"slowest {slowest.seconds:.2f} s ({slowest.id}), over 1 s: {sum(r.seconds > 1 for r in rows)}, "
        f"all {sum(r.seconds for r in rows):.1f} s"
    )


def main() -> None:
    """Prints the table."""
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")]
    chosen = [p for p in ALL if not wanted or p.id in wanted]
    if "--modes" in sys.argv:
        faults = {p.id: modes(p) for p in chosen}
        for id, fault in faults.items():
            print(f"{id}  {fault or 'same'}", flush=True)
        print(f"\nall modes agree for {sum(not f for f in faults.values())} of {len(faults)}")
        return
    print("id   right  trip  size         text         seconds  printed")
    rows = []
    for problem in chosen:
        row = measure(problem)
        rows.append(row)
        sizes = f"{row.size:3}/{row.answer_size:<3} {row.ratio:4.2f}"
        written = f"{row.text_size:3}/{row.answer_text_size:<3} {row.text_ratio:4.2f}"
        marks = f"{'no' if row.wrong else 'yes':5}  {'no' if row.trip else 'yes':4}"
        print(f"{row.id}  {marks}  {sizes}  {written}  {row.seconds:7.2f}  {row.text[:300]}", flush=True)
        for fault in dict.fromkeys([row.wrong, row.trip and f"round trip: {row.trip[:200]}"]):
            if fault:
                print(f"       {fault}")
        if row.ratio > 1.2 or row.text_ratio > 1.2 or row.wrong:
            print(f"       answer: {problem.answer}")
    for title, table in (("the open problems", PROBLEMS), ("the second table", FURTHER)):
        of_table = [r for r in rows if r.id in {p.id for p in table}]
        if of_table:
            print(f"\n{title}", end="")
            report(of_table)


if __name__ == "__main__":
    main()
