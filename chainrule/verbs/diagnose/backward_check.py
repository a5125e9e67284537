"""Custom ``autograd.Function``s on the gradient's way, held against central differences of their own forward.

A forward whose derivative is zero almost everywhere with a backward that is not is a straight-through estimator, and a
forward that changes nothing is there for its backward (gradient reversal, scaling): both are on purpose.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Callable
from typing import Any

import torch

from chainrule.frontends.torch.places import Edit, Segment
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.patches import Patch
from chainrule.verbs.diagnose.values import Call, tensors_in
from chainrule.verbs.kinds import Finding

_STEP = {torch.float64: 1e-6, torch.float32: 1e-2}
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 0.05}
_DIRECTIONS, _ENTRIES = 3, 200_000


def wrong_backward(e: Examination) -> list[Finding]:
    """Each Function once."""
    found = []
    for function, (call, arguments) in e.seen.tape.functions.items():
        if not any(o in e.path for o in call.outputs) or not call.held:
            continue
        if sum(t.numel() for t in call.held) > _ENTRIES * 10:
            e.subject.notes.append(f"backward of {function.__name__} not checked: its inputs are too large")
            continue
        try:
            finding = _check(e, function, call, arguments)
        except Exception as error:  # a kernel that takes neither float64 nor numbers a little different
            said = f"{type(error).__name__}: {error}".split("\n")[0]
            e.subject.notes.append(f"backward of {function.__name__} not checked: it raised {said}")
            continue
        if finding is not None:
            found.append(finding)
    return found


def _check(e: Examination, function: Any, call: Call, arguments: Any) -> Finding | None:
    with e.subject.safely():
        try:
            pairs, local, staircase = _compare(function, call, arguments, torch.float64)
            dtype = torch.float64
        except RuntimeError:
            pairs, local, staircase = _compare(function, call, arguments, torch.float32)
            dtype = torch.float32
    if not pairs:
        return None
    name = function.__name__
    scale = max(max(abs(a), abs(n)) for a, n, _ in pairs)
    if scale == 0.0:
        return None
    off = [abs(a - n) for a, n, _ in pairs]
    if max(off) <= _TOLERANCE[dtype] * scale:
        return None
    flat = all(abs(n) <= 1e-6 * max(abs(a), 1e-30) for a, n, _ in pairs) or staircase
    same = all(s for _, _, s in pairs)
    where = f"{call.module + ' ' if call.module else ''}{name}"
    if flat or same:
        return Finding(
            "wrong_backward", "info", where,
            "a straight-through estimator: the derivative of its forward is zero almost everywhere" if flat
            else "its forward changes nothing, so it is there for its backward (gradient reversal, scaling)",
            measured=f"<g, J v> {pairs[0][1]:.4g}, backward {pairs[0][0]:.4g}", expected="on purpose", fix="",
            source=call.place.text,
        )  # fmt: skip
    ratios = [a / n for a, n, _ in pairs if n]
    constant = len(ratios) == len(pairs) and max(ratios) - min(ratios) <= 0.02 * abs(ratios[0])
    ratio = ratios[0] if constant else local
    steady = ratio is not None
    advice = "write what torch.autograd derives from its forward"
    if steady and ratio is not None and abs(ratio) > 1e-9:
        factor = 1 / ratio
        nice = "-1" if abs(factor + 1) < 1e-2 else f"{factor:.3g}"
        advice = f"return {nice} times as much from its backward"
    return Finding(
        "wrong_backward", "error", where,
        f"backward of {name} is not the derivative of its forward"
        + (f": it returns {ratio:.3g} times the derivative" if steady else ""),
        measured=f"<g, J v> by its backward {pairs[0][0]:.6g}, by central differences {pairs[0][1]:.6g} ({dtype})",
        expected="equal numbers", fix=advice, source=call.place.text,
        patch=_scaled(function, advice),
        consequences=("every parameter before it is moved by a wrong gradient",),
    )  # fmt: skip


def _scaled(function: Any, advice: str) -> Patch | None:
    """The edit that multiplies what a backward returns, where it is one expression of one return."""
    match = re.fullmatch(r"return (\S+) times as much from its backward", advice)
    if match is None:
        return None
    try:
        lines, start = inspect.getsourcelines(function.backward)
        file = inspect.getsourcefile(function.backward) or ""
    except (OSError, TypeError):
        return None
    body = ast.parse(textwrap.dedent("".join(lines))).body[0]
    returns = [n for n in ast.walk(body) if isinstance(n, ast.Return) and n.value is not None]
    if len(returns) != 1 or isinstance(returns[0].value, ast.Tuple):
        return None
    value, indent = returns[0].value, len(lines[0]) - len(lines[0].lstrip())
    assert value is not None and value.end_lineno is not None and value.end_col_offset is not None
    segment = Segment(
        file, start + value.lineno - 1, value.col_offset + indent, start + value.end_lineno - 1,
        value.end_col_offset + indent, ast.unparse(value),
    )  # fmt: skip
    return Patch(edits=(Edit(segment, f"{match[1]} * ({ast.unparse(value)})"),))


def _compare(
    function: Any, call: Call, arguments: Any, dtype: torch.dtype
) -> tuple[list[tuple[float, float, bool]], float | None, bool]:
    """(by backward, by differences, forward is the identity) in random directions; the ratio entry by entry; steps."""
    held = iter(call.held)
    generator = torch.Generator().manual_seed(0)

    def moved(_: torch.Tensor) -> torch.Tensor:
        value = next(held)
        if not value.is_floating_point():
            return value
        value = value.to(dtype)
        # Off the kinks that zeros sit on.
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        size = float(value.abs().mean()) if value.numel() else 0.0
        return value + 1e-3 * (size or 1.0) * noise

    given = [_replaced(a, moved) for a in arguments]
    needing = [t for t, original in zip(tensors_in(given), tensors_in(arguments), strict=True)
               if t.is_floating_point() and original.requires_grad]  # fmt: skip
    if not needing:
        return [], None, False

    def run(shift: list[torch.Tensor] | None) -> list[torch.Tensor]:
        values = iter(shift) if shift is not None else None
        shifted = [
            _replaced(a, lambda t: next(values) if any(t is n for n in needing) else t)  # type: ignore[arg-type]
            if values is not None else a for a in given
        ]  # fmt: skip
        torch.manual_seed(0)
        out = function.apply(*shifted)
        return [t for t in tensors_in(out) if t.is_floating_point()]

    leaves = [t.detach().clone().requires_grad_() for t in needing]
    outputs = run(leaves)
    cotangents = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    taped = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not taped:
        return [], None, False
    grads = torch.autograd.grad([o for o, _ in taped], leaves, [c for _, c in taped], allow_unused=True)
    same = len(outputs) == len(needing) == 1 and outputs[0].shape == needing[0].shape and torch.allclose(
        outputs[0].detach(), needing[0]
    )  # fmt: skip
    pairs = []
    with torch.no_grad():
        for _ in range(_DIRECTIONS):
            directions = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in needing]
            eps = _STEP[dtype] * max(1.0, max(float(t.abs().mean()) for t in needing))
            plus = run([t + eps * d for t, d in zip(needing, directions, strict=True)])
            minus = run([t - eps * d for t, d in zip(needing, directions, strict=True)])
            numeric = sum(
                float(((p.double() - m.double()) * c.double()).sum())
                for p, m, c in zip(plus, minus, cotangents, strict=True)
            ) / (2 * eps)
            analytic = sum(
                float((g.double() * d.double()).sum()) for g, d in zip(grads, directions, strict=True) if g is not None
            )
            if math.isfinite(numeric) and math.isfinite(analytic):
                pairs.append((analytic, numeric, same))
    return pairs, _ratio(run, needing, outputs, cotangents, grads, dtype), _staircase(run, needing)


def _staircase(run: Callable[..., Any], needing: Any) -> bool:
    """Whether next to no entry of what comes out moves when what goes in moves a little: flat, with jumps between."""
    with torch.no_grad():
        here = run([t.clone() for t in needing])
        there = run([t * (1 + 1e-5) + 1e-5 * float(t.abs().mean()) for t in needing])
    moved = sum(int((a != b).sum()) for a, b in zip(here, there, strict=True))
    return moved <= 0.02 * sum(a.numel() for a in here)


def _ratio(
    run: Callable[..., Any], needing: Any, outputs: Any, cotangents: Any, grads: Any, dtype: Any
) -> float | None:
    """Where the Function acts entry by entry: the median of backward over derivative, if it is the same everywhere."""
    if len(needing) != 1 or len(outputs) != 1 or outputs[0].shape != needing[0].shape or grads[0] is None:
        return None
    eps = _STEP[dtype]
    with torch.no_grad():
        plus, minus = run([needing[0] + eps]), run([needing[0] - eps])
        slope = (plus[0].double() - minus[0].double()) / (2 * eps) * cotangents[0].double()
    solid = slope.abs() > 1e-3 * slope.abs().max()
    ratios = (grads[0].double()[solid] / slope[solid]).flatten()
    if not ratios.numel():
        return None
    middle = float(ratios.median())
    steady = float((ratios - middle).abs().quantile(0.9)) <= 0.02 * abs(middle) if ratios.numel() < 1_000_000 else False
    return middle if steady else None


def _replaced(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_replaced(v, change) for v in value)
    return value
