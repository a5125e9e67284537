"""The op that produced the first value that is not finite, in the forward or in the backward pass."""

from __future__ import annotations

import ast
import math

import torch

from chainrule.frontends.torch.places import Edit
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.flow import overflow
from chainrule.verbs.diagnose.patches import Patch
from chainrule.verbs.diagnose.torch_ops import LOG_SOFTMAXES, SOFTMAXES
from chainrule.verbs.diagnose.values import Call, Value, below
from chainrule.verbs.kinds import Finding


def nonfinite(e: Examination) -> list[Finding]:
    """The producer, if the loss or a gradient is not finite."""
    if not math.isfinite(e.seen.loss_number):
        call = forward_producer(e)
        return [_forward(e, call)] if call is not None else [_unknown(e)]
    bad = [n for n, g in e.seen.gradients.items() if g is not None and not _finite(g)]
    if not bad:
        return _swallowed(e)
    call = backward_producer(e)
    grown = overflow(e, f"nonfinite: the gradient of {bad[0]} overflows")
    if grown is not None:
        return [grown]
    if call is None:
        return [_unknown(e, f"the gradient of {bad[0]}")]
    return [_backward(e, call, bad)]


_ARITHMETIC = frozenset("mul pow square exp sum mean add sub matmul mm bmm linear addmm baddbmm cumsum prod".split())


def _swallowed(e: Examination) -> list[Finding]:
    """float16 that overflows on the gradient's way, and a division or a squashing that hides it."""
    for call in e.seen.tape.calls:
        if call.name not in _ARITHMETIC or not all(v.finite for v in call.inputs):
            continue
        lost = [o for o in call.outputs if o.dtype == torch.float16 and o in e.path and not o.finite]
        if not lost:
            continue
        spelled = f"{call.module + ' ' if call.module else ''}{call.name}"
        return [
            Finding(
                "nonfinite", "error", spelled,
                f"{call.name} overflows float16, which ends at 65504; what comes after makes a finite number of inf, "
                "and no gradient comes back through it",
                measured=_ranges(call), expected="numbers below 65504",
                fix="this part in float32 or bfloat16, or scaled before it is squared or summed",
                source=call.place.text,
            )
        ]  # fmt: skip
    return []


def _finite(g: torch.Tensor) -> bool:
    values = g.coalesce().values() if g.is_sparse else g
    return bool(torch.isfinite(values).all())


def forward_producer(e: Examination) -> Call | None:
    """Upwards from the loss through values that are not finite, to a call whose inputs all are."""
    stack, seen = [e.seen.loss], set()
    found: list[Call] = []
    while stack:
        value = stack.pop()
        call = value.producer
        if call is None or call in seen:
            continue
        seen.add(call)
        bad = [v for v in call.inputs if not v.finite]
        if bad:
            stack += bad
        else:
            found.append(call)
    if not found:
        return None
    first = min(found, key=lambda c: c.index)
    return _softmax_of_mask(first) or first


def _softmax_of_mask(call: Call) -> Call | None:
    """The softmax behind a mask of -inf, whose rows hold nothing else: the mask is legal, the empty row is not."""
    if call.name not in _MASKS:
        return None
    for value in below(call.outputs):
        for reader in value.consumers:
            if reader.name in SOFTMAXES | LOG_SOFTMAXES and not any(o.finite for o in reader.outputs):
                return reader
    return None


_MASKS = frozenset({"masked_fill", "where", "add", "triu", "tril", "full", "full_like", "mul", "sub"})


def backward_producer(e: Examination) -> Call | None:
    """The call nearest to the loss with a finite gradient at its output and one that is not at an input."""
    for call in reversed(e.seen.tape.calls):
        outputs = [o for o in call.outputs if o.backward is not None]
        if not outputs or not all(_slope_finite(o) for o in outputs):
            continue
        if any(v.backward is not None and not _slope_finite(v) and _alone(v, call) for v in call.inputs):
            return call
        leaves = [v for v in call.inputs if v.name.startswith("parameter ")]
        for v in leaves:
            g = e.seen.gradients.get(v.name.removeprefix("parameter "))
            if g is not None and not _finite(g) and _alone(v, call):
                return call
    return None


def _alone(value: Value, call: Call) -> bool:
    """Whether no other reader of the value has brought the bad gradient: their outputs' gradients are finite too."""
    others = [c for c in value.consumers if c is not call]
    return all(_slope_finite(o) for c in others for o in c.outputs if o.backward is not None)


def _slope_finite(value: Value) -> bool:
    return value.backward is None or math.isfinite(value.backward[0])


# ---- what is said about it -----------------------------------------------------------------------------------
_ADVICE = {
    "log": "log of zero or less: torch.log(x.clamp_min(1e-8)), or softplus in place of relu in front of it",
    "log2": "log of zero or less: clamp_min(1e-8) in front", "log10": "log of zero or less: clamp_min(1e-8) in front",
    "sqrt": "sqrt below zero, or its derivative at zero: sqrt(x.clamp_min(1e-12))",
    "div": "division by zero: add an epsilon to the denominator",
    "reciprocal": "division by zero: add an epsilon", "rsqrt": "rsqrt of zero: add an epsilon",
    "exp": "exp overflows beyond 88 in float32: clamp its argument, or logsumexp",
    "pow": "a power outside of its domain: clamp the base", "norm": "the norm's derivative at zero: add an epsilon",
    "linalg_vector_norm": "the norm's derivative at zero: (x.square().sum(-1) + 1e-12).sqrt()",
    "ctc_loss": "inputs at least as long as their targets, repeats counted twice; zero_infinity=True leaves others out",
    "acos": "keep the argument inside of (-1, 1)", "asin": "keep the argument inside of (-1, 1)",
    "std": "the derivative of std at no spread: (var + eps).sqrt()",
}  # fmt: skip


def _advice(call: Call) -> str:
    return _ADVICE.get(
        call.name, "keep its argument inside its domain (an epsilon, a clamp, or a stable form such as logsumexp)"
    )


def _ranges(call: Call) -> str:
    shown = []
    for k, v in enumerate(call.inputs[:3]):
        if v.forward is not None:
            made = v.producer.name if v.producer is not None else v.name or "constant"
            shown.append(f"input {k + 1} ({made}, {v.shape}) of size up to {v.forward[0]:.3g}")
    return "; ".join(shown)


def _forward(e: Examination, call: Call) -> Finding:
    spelled = f"{call.module + ' ' if call.module else ''}{call.name}"
    if call.name in SOFTMAXES | LOG_SOFTMAXES and any(not v.finite for v in call.inputs):
        return Finding(
            "nonfinite", "error", spelled,
            f"a row that is masked as a whole: the {call.name} of -inf only is 0/0",
            measured=f"loss {e.seen.loss_number}; {call.name} of {call.inputs[0].shape} gives nan",
            expected="at least one position that is not masked in every row",
            fix="mask with torch.finfo(dtype).min in place of -inf, or leave out samples without any valid position",
            source=call.place.text,
            consequences=("everything computed from it, the loss and all gradients are not finite",),
        )  # fmt: skip
    grown = overflow(e, f"nonfinite at {spelled}: {call.name} overflows")
    if grown is not None:
        return grown
    value = call.outputs[0].forward[0] if call.outputs and call.outputs[0].forward is not None else math.nan
    custom = f" {call.function.__name__}" if call.function is not None else ""
    return Finding(
        "nonfinite", "error", spelled + custom,
        f"{call.name} gives {_number(call, value)} for finite inputs",
        measured=f"loss {e.seen.loss_number}; {_ranges(call)}", expected="finite numbers", fix=_advice(call),
        source=call.place.text, patch=_guard(call),
        consequences=("everything computed from it, the loss and all gradients are not finite",),
    )  # fmt: skip


def _number(call: Call, value: float) -> str:
    if call.name in ("log", "log2", "log10") and value == math.inf:
        return "-inf"
    return str(value)


def _backward(e: Examination, call: Call, bad: list[str]) -> Finding:
    spelled = f"{call.module + ' ' if call.module else ''}{call.name}"
    branch = any(c.name == "where" for o in call.outputs for c in o.consumers)
    cause = f"the derivative of {call.name} is not finite at its input, in the backward pass"
    fix = _advice(call)
    if branch:
        cause += ": where() does not take this branch, and its gradient 0 times inf is nan all the same"
        fix = "where() twice: a safe argument inside of the branch, torch.where(c, f(torch.where(c, x, 1.)), 0)"
    return Finding(
        "nonfinite", "error", spelled, cause,
        measured=f"loss {e.seen.loss_number:.4g} is finite; gradients of {len(bad)} parameters are not; "
        f"{_ranges(call)}",
        expected="finite gradients", fix=fix, source=call.place.text, patch=_guard(call),
    )  # fmt: skip


_GUARDS = {
    "log": "({x}).clamp_min(1e-6)", "log2": "({x}).clamp_min(1e-6)", "log10": "({x}).clamp_min(1e-6)",
    "sqrt": "({x}).clamp_min(1e-6)", "rsqrt": "({x}).clamp_min(1e-6)",
    "exp": "({x}).clamp(max=20.0)", "acos": "({x}).clamp(-1 + 1e-6, 1 - 1e-6)",
    "asin": "({x}).clamp(-1 + 1e-6, 1 - 1e-6)",
}  # fmt: skip


def _guard(call: Call) -> Patch | None:
    """The argument clamped to where the function and its derivative are finite."""
    segment = call.place.segment
    tree = segment.tree if segment is not None else None
    if segment is None:
        return None
    if call.name == "div" and isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Div):
        left, right = _inside(tree.left), ast.unparse(tree.right)
        return Patch(edits=(Edit(segment, f"{left} / ({right} + 1e-6)"),))
    if call.name == "pow" and isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Pow):
        return Patch(edits=(Edit(segment, f"({ast.unparse(tree.left)}).clamp_min(1e-6) ** {_inside(tree.right)}"),))
    shared = _shared(call)
    if shared is not None:
        return shared
    guard = _GUARDS.get(call.name)
    if guard is None or not isinstance(tree, ast.Call):
        return None
    if isinstance(tree.func, ast.Attribute) and not tree.args:
        x = ast.unparse(tree.func.value)
        return Patch(edits=(Edit(segment, f"{guard.format(x=x)}.{tree.func.attr}()"),))
    if len(tree.args) == 1:
        x = ast.unparse(tree.args[0])
        return Patch(edits=(Edit(segment, f"{ast.unparse(tree.func)}({guard.format(x=x)})"),))
    return None


def _shared(call: Call) -> Patch | None:
    """A ReLU or a size whose zeros several ops cannot take is kept above zero where it is made."""
    made = call.inputs[0].producer if call.inputs and call.name in _GUARDS else None
    if made is None or made.name not in ("relu", "abs", "square") or len(call.inputs[0].consumers) < 2:
        return None
    segment = made.place.segment
    if segment is None or not isinstance(segment.tree, ast.Call):
        return None
    return Patch(edits=(Edit(segment, f"{segment.text}.clamp_min(1e-6)"),))


def _inside(tree: ast.expr) -> str:
    """An operand as it is written inside of a product: in brackets where it is a sum or a product itself."""
    written = ast.unparse(tree)
    return f"({written})" if isinstance(tree, (ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Compare, ast.BoolOp)) else written


def _unknown(e: Examination, what: str = "the loss") -> Finding:
    return Finding(
        "nonfinite", "error", what, "it is not finite, and no single op was seen to produce it",
        measured=f"loss {e.seen.loss_number}", expected="finite numbers",
        fix="run in float32 or float64, or with a smaller scale of inputs and weights",
    )  # fmt: skip
