"""torch's own database of ops as a test of the front end: ``python -m benchmarks.opinfo [names...]``.

Every entry of OpInfo that has autograd and float64 samples is traced, its vjp derived with a random cotangent, the
emitted code run, and the result compared with torch.autograd; then the same for the derivative of that derivative.
An entry is

    right        every sample tried is right, by declared ops alone
    opaque       every sample is right, some by an opaque node (torch's own backward of one undeclared call)
    partly       some samples right, for the others UnsupportedOpError
    unsupported  UnsupportedOpError for all
    wrong        a gradient differs (never acceptable)
    exception    anything else was raised (never acceptable)
    skipped      nothing to compare, with the reason

``--samples N`` per entry (12, spread over torch's list), ``--seconds S`` per entry (30), ``--all`` prints every entry,
``--undeclared`` counts what the refusals name, ``--bits`` names the entries whose value is not eager's bit for bit.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from chainrule.backends import torch as backend
from chainrule.errors import UnsupportedOpError
from chainrule.frontends.torch import trace
from chainrule.interpreters.differentiate import vjp
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Graph, Node, constant, variable
from chainrule.ops.contraction import sum_axes
from chainrule.ops.movement import broadcast

TOLERANCE = 1e-8  # relative to the largest entry of the tensor, or to 1
LARGEST = 2000  # elements of a sample's tensors
SEED = 42  # of every run; the one that the random entries of OpInfo set themselves


@dataclass
class Row:
    """What happened to one entry: counts of outcomes over samples, and the first message of each kind."""

    name: str
    first: Counter[str] = field(default_factory=Counter)
    second: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    bit_equal: int = 0
    compared: int = 0

    def note(self, order: Counter[str], outcome: str, message: str = "") -> None:
        order[outcome] += 1
        if message:
            self.messages.setdefault(outcome, message)


def verdict(counts: Counter[str]) -> str:
    """One word for an entry."""
    for worst in ("wrong", "exception"):
        if counts[worst]:
            return worst
    if counts["right"] or counts["opaque"]:
        return "partly" if counts["unsupported"] else "opaque" if counts["opaque"] else "right"
    return "unsupported" if counts["unsupported"] else "skipped"


# ---- samples -----------------------------------------------------------------------------------------------
def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def replaced(value: Any, others: Iterator[torch.Tensor]) -> Any:
    """The same structure with the tensors taken from ``others``."""
    if isinstance(value, torch.Tensor):
        return next(others)
    if isinstance(value, dict):
        return {key: replaced(part, others) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(part, others) for part in value)
    return value


def chosen(samples: Sequence[Any], count: int) -> list[Any]:
    """``count`` of them, evenly spread."""
    if len(samples) <= count:
        return list(samples)
    return [samples[round(k * (len(samples) - 1) / (count - 1))] for k in range(count)]


def floats(value: Any) -> list[torch.Tensor]:
    """The outputs that can have a derivative."""
    return [t for t in tensors_in(value) if t.is_floating_point() or t.is_complex()]


# ---- one sample --------------------------------------------------------------------------------------------
def measure(info: Any, sample: Any, row: Row, generator: torch.Generator) -> None:
    """Adds the outcome of one sample to its row."""
    structure = (sample.input, sample.args, sample.kwargs)
    given = list(tensors_in(structure))
    if sum(t.numel() for t in given) > LARGEST:
        return row.note(row.first, "skipped: large sample")
    if any(t.layout != torch.strided or t.is_complex() for t in given):
        return row.note(row.first, "skipped: sparse or complex operand")

    def program(*tensors: torch.Tensor) -> Any:
        # Some ops write into operands without a gradient (running statistics): inputs of a program are not written.
        own = (t if t.requires_grad or not t.is_floating_point() else t.clone() for t in tensors)
        first, args, kwargs = replaced(structure, own)
        found = sample.output_process_fn_grad(info.op(first, *args, **kwargs))
        return tuple(floats(found))

    def eager() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(SEED)
        return program(*held)

    def copies() -> list[torch.Tensor]:
        return [t.detach().clone().requires_grad_(t.requires_grad) for t in given]

    held = copies()
    wrt = [k for k, t in enumerate(held) if t.requires_grad]
    try:
        outputs = [o for o in eager() if o.requires_grad]
    except Exception as error:
        return row.note(row.first, f"skipped: torch itself raises {type(error).__name__}")
    if not outputs or not wrt:
        return row.note(row.first, "skipped: no derivative")
    if any(o.is_complex() for o in outputs):
        kept = "skipped: complex output"
        try:
            trace(program, copies())
        except UnsupportedOpError:
            return row.note(row.first, kept)
        except Exception as error:
            return row.note(row.first, "exception", _line(error))
        return row.note(row.first, kept)
    cotangents = [torch.randn(o.shape, dtype=o.dtype, generator=generator) for o in outputs]
    expected = torch.autograd.grad(outputs, [held[k] for k in wrt], cotangents, create_graph=True, allow_unused=True)
    expected = [torch.zeros_like(held[k]) if e is None else e for e, k in zip(expected, wrt, strict=True)]

    try:
        traced = trace(lambda *tensors: list(program(*tensors)), copies(), strict=False, follow=True)
        if any(n.op.family == "opaque" and n.op.name.endswith("random") for n in traced.graph.nodes):
            return row.note(row.first, "skipped: an undeclared random op")
        opaque = [n.params["call"].name for n in traced.graph.nodes if n.op.family == "opaque"]
        leaves = list(traced.batch_inputs.values())
        differentiable = [n for n, o in zip(traced.outputs, eager(), strict=True) if o.requires_grad]
        values: dict[Node, torch.Tensor] = dict(zip(leaves, (t.detach() for t in held), strict=True))
        values |= {leaf: t for leaf, t in traced.values.items() if leaf not in values}
        seeds = [variable(f"cotangent {k}", n.type) for k, n in enumerate(differentiable)]
        values |= dict(zip(seeds, cotangents, strict=True))
        targets = [leaves[k] for k in wrt]
        found = [_or_zero(g, t) for g, t in zip(vjp(differentiable, seeds, targets), targets, strict=True)]
        ours = run([*found, *traced.outputs], values)
    except UnsupportedOpError as error:
        return row.note(row.first, "unsupported", _line(error))
    except Exception as error:
        return row.note(row.first, "exception", f"{type(error).__name__}: {_line(error)}")
    forward = eager()
    row.compared += 1
    row.bit_equal += all(_same(a, b) for a, b in zip(ours[len(found) :], forward, strict=True))
    fault = next(filter(None, map(differs, ours, [*expected, *forward])), "")
    if fault:
        return row.note(row.first, "wrong", fault)
    row.note(row.first, "opaque" if opaque else "right", ", ".join(sorted(set(opaque))))
    second(row, found, targets, seeds, values, expected, [held[k] for k in wrt], generator)


def second(
    row: Row,
    found: Sequence[Node],
    targets: Sequence[Node],
    seeds: Sequence[Node],
    values: dict[Node, torch.Tensor],
    expected: Sequence[torch.Tensor],
    held: Sequence[torch.Tensor],
    generator: torch.Generator,
) -> None:
    """The derivative of <gradient, direction> by every operand."""
    parts = [torch.randn(e.shape, dtype=e.dtype, generator=generator) for e in expected]
    try:
        total = sum((e * d).sum() for e, d in zip(expected, parts, strict=True))
        assert isinstance(total, torch.Tensor)
        linear = not total.requires_grad  # nothing left to differentiate: the second derivative is zero
        reference = [None for _ in held] if linear else torch.autograd.grad(total, held, allow_unused=True)
    except Exception as error:
        return row.note(row.second, f"skipped: torch's own second derivative raises {type(error).__name__}")
    try:
        directions = [variable(f"direction {k}", g.type) for k, g in enumerate(found)]
        along: Node | None = None
        for g, d in zip(found, directions, strict=True):
            product = sum_axes(g * d)
            along = product if along is None else along + product
        assert along is not None
        twice = vjp([along], [constant(1.0, along.type.dtype)], targets)
        ours = run(
            [_or_zero(g, t) for g, t in zip(twice, targets, strict=True)],
            values | dict(zip(directions, parts, strict=True)),
        )
    except UnsupportedOpError as error:
        return row.note(row.second, "unsupported", f"second: {_line(error)}")
    except Exception as error:
        return row.note(row.second, "exception", f"second: {type(error).__name__}: {_line(error)}")
    zeros = [torch.zeros_like(h) if r is None else r for r, h in zip(reference, held, strict=True)]
    fault = next(filter(None, map(differs, ours, zeros)), "")
    row.note(row.second, "wrong" if fault else "right", f"second: {fault}" if fault else "")


def run(outputs: Sequence[Node], values: dict[Node, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The emitted code on the sample's tensors."""
    graph = simplify(Graph(tuple(values), tuple(outputs)), exact=True)
    torch.manual_seed(SEED)
    return backend.run(graph, values)


def _or_zero(g: Node | None, like: Node) -> Node:
    return broadcast(constant(0.0, like.type.dtype), like.shape) if g is None else g


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def differs(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """How two tensors differ beyond the tolerance, or "". Where torch has nan, a number is accepted."""
    theirs = theirs.detach()
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{ours.dtype}{tuple(ours.shape)} for {theirs.dtype}{tuple(theirs.shape)}"
    undefined = theirs.isnan() & ours.isfinite()  # a rule of torch's that gives nan: nothing to compare with
    ours, theirs = ours[~undefined], theirs[~undefined]
    finite = theirs.isfinite()
    if not torch.equal(finite, ours.isfinite()) or not torch.equal(ours[~finite].isnan(), theirs[~finite].isnan()):
        return f"not finite elsewhere: {ours.flatten()[:4].tolist()} for {theirs.flatten()[:4].tolist()}"
    if not finite.any():
        return ""
    difference = (ours[finite] - theirs[finite]).abs().max().item()
    scale = max(1.0, theirs[finite].abs().max().item())
    allowed = TOLERANCE if theirs.dtype == torch.float64 else 1e-5
    return "" if difference <= allowed * scale else f"differs by {difference:.2g} of {scale:.2g}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:180]


# ---- the table ---------------------------------------------------------------------------------------------
def entries() -> list[tuple[str, Any]]:
    """(name, OpInfo) of every entry with autograd and float64 samples."""
    from torch.testing._internal.common_methods_invocations import op_db

    return [
        (f"{info.name}.{info.variant_test_name}" if info.variant_test_name else info.name, info)
        for info in op_db
        if info.supports_autograd and info.supports_dtype(torch.float64, "cpu")
    ]


def row_of(name: str, info: Any, count: int, seconds: float) -> Row:
    """All samples of one entry."""
    row, generator, start = Row(name), torch.Generator().manual_seed(7), perf_counter()
    torch.manual_seed(0)
    for sample in chosen(list(info.sample_inputs("cpu", torch.float64, requires_grad=True)), count):
        if perf_counter() - start > seconds:
            row.note(row.first, "skipped: time")
            continue
        measure(info, sample, row, generator)
    return row


def summary(rows: Sequence[Row], order: Callable[[Row], Counter[str]]) -> str:
    """How many entries of each verdict."""
    found = Counter(verdict(order(row)) for row in rows)
    return ", ".join(
        f"{found[k]} {k}" for k in ("right", "opaque", "partly", "unsupported", "wrong", "exception", "skipped")
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opinfo")
    parser.add_argument("names", nargs="*", help="entries whose name contains one of these")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--all", action="store_true", help="print the entries that are right too")
    parser.add_argument("--bits", action="store_true", help="print the entries whose forward pass is not bit-equal")
    parser.add_argument("--undeclared", action="store_true", help="count what the refusals name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name, info in entries():
        if options.names and not any(n == name or n in name for n in options.names):
            continue
        row = row_of(name, info, options.samples, options.seconds)
        rows.append(row)
        shown = (verdict(row.first), verdict(row.second))
        if options.all or set(shown) - {"right", "skipped"} or shown[0] == "skipped":
            counts = " ".join(f"{k}={v}" for k, v in sorted(row.first.items()))
            twice = " ".join(f"{k}={v}" for k, v in sorted(row.second.items()))
            print(f"{name:44} {shown[0]:12}{counts} | {shown[1]} {twice}", flush=True)
            for message in row.messages.values():
                print(f"    {message}", flush=True)
    print(f"\n{len(rows)} entries; first derivatives:  {summary(rows, lambda r: r.first)}")
    print(f"{len(rows)} entries; second derivatives: {summary(rows, lambda r: r.second)}")
    right = sum(r.first["right"] + r.first["opaque"] for r in rows)
    print(f"samples right: {right}, forward bit-equal: {sum(r.bit_equal for r in rows)} of them")
    if options.bits:
        rounded = [f"{r.name} {r.compared - r.bit_equal}/{r.compared}" for r in rows if r.bit_equal < r.compared]
        print(f"not bit-equal: {', '.join(rounded)}")
    reasons: Counter[str] = Counter()
    for row in rows:
        for order in (row.first, row.second):
            reasons.update({k: v for k, v in order.items() if k.startswith("skipped")})
    for reason, count in reasons.most_common():
        print(f"    {count:5} samples {reason}")
    if options.undeclared:
        said = [row.messages.get("unsupported", "") + " " + row.messages.get("opaque", "") for row in rows]
        named = Counter(op for text in said for op in set(re.findall(r"(aten\.[\w.]+)", text)))
        print("undeclared: " + ", ".join(f"{op} {n}" for op, n in named.most_common()))


if __name__ == "__main__":
    main()
