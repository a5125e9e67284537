"""``activation``: what does this function do to a gradient that passes through it?

Takes the name of a function of the language, a formula in one variable, or any elementwise torch callable. The answer
is the derivative, also in terms of the output, where it is largest, where it vanishes, and what the function does to
the size of a signal and of its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from chainrule.ops.quadrature import law_nodes
from chainrule.verbs.curve import Corner, Curve
from chainrule.verbs.expression import Expression
from chainrule.verbs.limits import limit, number_text
from chainrule.verbs.output_form import output_form
from chainrule.verbs.scalar_function import scalar_function

Interval = tuple[float, float]
SATURATED = 0.01  # of the largest |derivative|
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class ActivationResult:
    """What a function of one number z does as an activation, h = f(z).

    Attributes:
        name: as given. formula, derivative: expressions in z, None where an op has no declaration.
        in_output: the derivative as an expression in the output h; None where there is none, ``in_output_note`` says
            why.
        derived_by: ``"algebra"`` or ``"torch autograd"``. note: what else is to be known about the source.
        domain: where it is defined. kinks: points with two slopes, and the declared one. poles: infinite values.
        limits: ``limits["value" | "derivative"]["-inf" | "+inf"]``; None where there is no limit.
        sup_derivative: the supremum of \\|derivative\\|. sup_at: a point, an interval, or ``inf``, ``-inf`` where it is
            approached and not attained.
        saturates: intervals where \\|derivative\\| is below one percent of it (of 1, if it is infinite) up to an end,
            and inner ones where it is exactly zero. saturates_at: ``"both ends"``, ``"-inf"``, ``"+inf"``, ``""``.
        zero_derivative: whether the derivative is zero almost everywhere: gradient descent cannot train through it.
        monotone: ``"increasing"``, ``"decreasing"``, ``"constant"``, ``""``. symmetry: ``"odd"``, ``"even"``, ``""``.
        zero_preserving: whether f(0) = 0.
        mean, second: E[f(z)] and E[f(z)^2] for z ~ N(0, 1), None where they do not exist; what follows as well.
        gain: 1 / sqrt(E[f^2]), the factor that keeps the mean square. backward_gain: 1 / sqrt(E[f'^2]).
        chi: E[f'^2] / E[f^2]: what a layer with that gain does to the mean square of a gradient.
        kappa: E[f^4] / E[f^2]^2, the kurtosis of the output (3 for a normal one).
    """

    name: str
    formula: Expression | None
    derivative: Expression | None
    in_output: Expression | None
    in_output_note: str
    derived_by: str
    note: str
    domain: Interval
    limits: Mapping[str, Mapping[str, float | None]]
    sup_derivative: float
    sup_at: float | Interval
    saturates: tuple[Interval, ...]
    saturates_at: str
    zero_derivative: bool
    kinks: tuple[Corner, ...]
    poles: tuple[float, ...]
    monotone: str
    symmetry: str
    zero_preserving: bool
    mean: float | None
    second: float | None
    gain: float | None
    backward_gain: float | None
    chi: float | None
    kappa: float | None
    curve: Curve = field(repr=False)

    @property
    def verdict(self) -> str:
        """One sentence on what it means for training."""
        if self.zero_derivative:
            return "the derivative is zero almost everywhere: gradient descent cannot train through it"
        if self.saturates_at == "both ends":
            return "saturates at both ends: large inputs of either sign pass no gradient"
        if self.saturates_at:
            side = "negative" if self.saturates_at == "-inf" else "positive"
            exact = " at all" if self._is_zero_at(self.saturates_at) else ""
            return f"saturates for {side} inputs: they pass no gradient{exact}"
        if math.isinf(self.sup_derivative):
            return "the derivative is unbounded: gradients may explode"
        return "does not saturate: every input passes some gradient"

    def _is_zero_at(self, end: str) -> bool:
        low, high = (i for i in self.saturates if (i[0] if end == "-inf" else i[1]) == float(end)).__next__()
        near = high - 1e-3 * max(1.0, abs(high)) if end == "-inf" else low + 1e-3 * max(1.0, abs(low))
        return bool(self.curve.slope(np.array([near]))[0] == 0)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def plot(self, path: str | None = None, ax: Any = None) -> Any:
        """Value and derivative over z: a matplotlib figure, also written to ``path``, or the axes that were given.

        Raises:
            MissingExtraError: matplotlib is not installed. ChainruleError: the file cannot be written.
        """
        from chainrule.verbs.activation_plot import plot  # matplotlib is optional and slow to load

        return plot(self, path, ax)

    def __str__(self) -> str:
        rows = [("f(z)", self.formula.text if self.formula else self.name)]
        rows.append(("f'(z)", self.derivative.text if self.derivative else self.note))
        rows.append(("of h = f(z)", self.in_output.text if self.in_output else f"none: {self.in_output_note}"))
        rows += [("kink", _kink_text(k)) for k in self.kinks[:_SHOWN]]
        if len(self.kinks) > _SHOWN:
            rows.append(("", f"and {len(self.kinks) - _SHOWN} more"))
        if self.poles:
            rows.append(("poles", ", ".join(f"z = {number_text(p)}" for p in self.poles[:_SHOWN])))
        if self.domain != (-math.inf, math.inf):
            rows.append(("defined on", _interval_text(self.domain)))
        for what, label in (("value", "limits"), ("derivative", "limits of f'")):
            low, high = (self._limit_text(what, end) for end in ("-inf", "+inf"))
            rows.append((label, f"{low} at -inf, {high} at +inf"))
        rows.append(("sup |f'|", f"{number_text(self.sup_derivative)} {_at_text(self.sup_at)}"))
        if self.saturates and not self.zero_derivative:
            rows.append(("saturates on", " and ".join(map(_interval_text, self.saturates)) + "  (|f'| < 1 % of that)"))
        traits = [self.monotone, self.symmetry, "f(0) = 0" if self.zero_preserving else ""]
        rows.append(("it is", ", ".join(t for t in traits if t) or "neither monotone, odd, even nor 0 at 0"))
        if self.second is None:
            rows.append(("gain", "none: no mean square for z ~ N(0, 1)"))
        else:
            shown = (("gain", self.gain), ("backward", self.backward_gain), ("chi", self.chi), ("kappa", self.kappa))
            rows.append(("z ~ N(0, 1)", ", ".join(f"{k} {v:.5g}" for k, v in shown if v is not None)))
        width = max(len(label) for label, _ in rows) + 2
        lines = [self.name, *(f"  {label:{width}}{body}" for label, body in rows)]
        if self.note and self.derivative:
            lines.append(f"  ({self.note})")
        return "\n".join([*lines, f"  {self.verdict}"])

    def _limit_text(self, what: str, end: str) -> str:
        if not math.isinf(self.domain[0 if end == "-inf" else 1]):
            return "undefined"
        return number_text(self.limits[what][end])

    def _repr_latex_(self) -> str | None:
        if self.formula is None or self.derivative is None:
            return None
        parts = [f"f(z) &= {self.formula.latex}", f"f'(z) &= {self.derivative.latex}"]
        if self.in_output is not None:
            parts[1] += f" = {self.in_output.latex}"
        return "$$\\begin{aligned}\n" + " \\\\\n".join(parts) + "\n\\end{aligned}$$"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.activation/1",
            "name": self.name,
            "formula": self.formula.text if self.formula else None,
            "derivative": self.derivative.text if self.derivative else None,
            "in_output": self.in_output.text if self.in_output else None,
            "in_output_note": self.in_output_note,
            "derived_by": self.derived_by,
            "note": self.note,
            "domain": list(self.domain),
            "limits": {what: dict(ends) for what, ends in self.limits.items()},
            "sup_derivative": self.sup_derivative,
            "sup_at": list(self.sup_at) if isinstance(self.sup_at, tuple) else self.sup_at,
            "saturates": [list(i) for i in self.saturates],
            "saturates_at": self.saturates_at,
            "zero_derivative": self.zero_derivative,
            "kinks": [vars(k) for k in self.kinks],
            "poles": list(self.poles),
            "monotone": self.monotone,
            "symmetry": self.symmetry,
            "zero_preserving": self.zero_preserving,
            "mean": self.mean,
            "second": self.second,
            "gain": self.gain,
            "backward_gain": self.backward_gain,
            "chi": self.chi,
            "kappa": self.kappa,
            "verdict": self.verdict,
        }


def activation(source: str | Expression | Callable[..., Any]) -> ActivationResult:
    """What a function of one number does to values and gradients.

    Args:
        source: the name of a function of the language (``"relu"``), a formula in one variable
            (``"leaky_relu(z, 0.1)"``), an Expression, or an elementwise torch callable (a module or a function).

    Returns:
        ActivationResult: ``a.derivative``, ``a.in_output``, ``a.limits``, ``a.sup_derivative``, ``a.gain``.

    Raises:
        FormulaError: the text is no function of one variable. ModelError: the callable is random or not elementwise.

    >>> import chainrule as cr
    >>> a = cr.activation("sigmoid")
    >>> a.in_output.text, a.sup_derivative, a.limits["value"]["+inf"]
    ('h * (1 - h)', 0.25, 1.0)
    >>> cr.activation("heaviside").verdict
    'the derivative is zero almost everywhere: gradient descent cannot train through it'
    """
    function = scalar_function(source)
    curve = function.curve
    ends = {"-inf": -1, "+inf": 1}
    reached = {end: math.isinf(edge) for end, edge in zip(ends, curve.domain, strict=True)}
    limits = {
        what: {end: limit(function_, sign) if reached[end] else None for end, sign in ends.items()}
        for what, function_ in (("value", curve.value), ("derivative", curve.slope))
    }
    zero = bool(np.all(np.nan_to_num(curve.slopes) == 0))
    at_ends = (limits["derivative"]["-inf"], limits["derivative"]["+inf"])
    sup, sup_at = _supremum(curve, at_ends)
    level = SATURATED * sup if 0 < sup < math.inf else SATURATED
    saturates = curve.flat(level, at_ends)
    form, why = output_form(function)
    mean, second, fourth, slope2 = _moments(curve)
    return ActivationResult(
        name=function.name,
        formula=Expression(function.node) if function.node is not None else None,
        derivative=Expression(function.slope) if function.slope is not None else None,
        in_output=form,
        in_output_note=why,
        derived_by=function.derived_by,
        note=function.note,
        domain=curve.domain,
        limits=limits,
        sup_derivative=sup,
        sup_at=sup_at,
        saturates=saturates,
        saturates_at=_which_ends(saturates, curve.domain),
        zero_derivative=zero,
        kinks=curve.corners,
        poles=curve.poles,
        monotone=_monotone(curve, sup),
        symmetry=_symmetry(curve),
        zero_preserving=bool(curve.value(np.zeros(1))[0] == 0),
        mean=mean,
        second=second,
        gain=1 / math.sqrt(second) if second else None,
        backward_gain=1 / math.sqrt(slope2) if slope2 else None,
        chi=slope2 / second if second and slope2 is not None else None,
        kappa=fourth / second**2 if second and fourth is not None else None,
        curve=curve,
    )


def _supremum(curve: Curve, at_ends: tuple[float | None, float | None]) -> tuple[float, float | Interval]:
    """The supremum of \\|derivative\\|, and the point, interval or end where it is."""
    sizes = [abs(e) if e is not None else -1.0 for e in at_ends]
    top = curve.steepest
    if math.isinf(top) or math.inf in sizes:
        where = [end for end, size in zip((-math.inf, math.inf), sizes, strict=True) if math.isinf(size)]
        return math.inf, where[-1] if where else curve.steepest_at
    end = max(sizes)
    sup = end if end >= top * (1 - 1e-9) else top
    named = float(sup)
    plateau = curve.plateau(named)
    if plateau is not None:
        return named, plateau
    if end >= top * (1 - 1e-9):
        return named, -math.inf if sizes[0] > sizes[1] else math.inf
    return top, curve.steepest_at


def _which_ends(saturates: tuple[Interval, ...], domain: Interval) -> str:
    low = any(i[0] == domain[0] == -math.inf for i in saturates)
    high = any(i[1] == domain[1] == math.inf for i in saturates)
    return "both ends" if low and high else "-inf" if low else "+inf" if high else ""


def _monotone(curve: Curve, sup: float) -> str:
    if curve.poles:
        return ""
    slopes = curve.slopes[np.isfinite(curve.slopes)]
    jumps = np.array([c.jump for c in curve.corners])
    noise = 1e-13 * min(sup, 1.0)
    if not np.any(slopes) and not np.any(jumps):
        return "constant"
    if np.all(slopes >= -noise) and np.all(jumps >= 0):
        return "increasing"
    return "decreasing" if np.all(slopes <= noise) and np.all(jumps <= 0) else ""


def _symmetry(curve: Curve) -> str:
    x = np.array([0.137, 0.61, 1.23, 2.71, 4.9, 8.3])
    plus, minus = curve.value(x), curve.value(-x)
    if not np.all(np.isfinite(plus) & np.isfinite(minus)):
        return ""
    allowed = 1e-12 * np.maximum(np.abs(plus), 1e-3)
    if np.all(np.abs(plus + minus) <= allowed):
        return "odd"
    return "even" if np.all(np.abs(plus - minus) <= allowed) else ""


def _moments(curve: Curve) -> tuple[float | None, ...]:
    """E[f], E[f^2], E[f^4] and E[f'^2] for a standard normal argument; None where the integral does not converge."""
    edges = [e for e in curve.domain if math.isfinite(e)]
    breaks = [*(c.at for c in curve.corners), *curve.poles, *edges, *curve.bends]
    found = []
    for fine in (False, True):
        x, w = law_nodes("normal", 0.0, 1.0, None, breaks, fine)
        with np.errstate(all="ignore"):
            f, s = curve.value(x), curve.slope(x)
            found.append([float(np.sum(w * v)) for v in (f, f**2, f**4, s**2)])
    both = zip(*found, strict=True)
    values = [b if math.isfinite(b) and abs(a - b) <= 1e-6 * max(abs(b), 1e-9) else None for a, b in both]
    mean, second = values[0], values[1]
    if mean is not None and second is not None and abs(mean) < 1e-13 * math.sqrt(second):
        values[0] = 0.0
    return tuple(values)


# ---- text --------------------------------------------------------------------------------------------------
def _interval_text(interval: Interval) -> str:
    low, high = (x if math.isinf(x) else float(f"{x:.4g}") for x in interval)
    return f"({low:g}, {high:g})"


def _at_text(at: float | Interval) -> str:
    if isinstance(at, tuple):
        low, high = at
        if math.isinf(low) and math.isinf(high):
            return "everywhere"
        if math.isinf(high):
            return f"for z > {number_text(low)}"
        return f"for z < {number_text(high)}" if math.isinf(low) else f"on {_interval_text(at)}"
    if math.isinf(at):
        return f"approached as z -> {'+' if at > 0 else '-'}inf"
    return f"at z = {number_text(at, 5)}"


def _kink_text(kink: Corner) -> str:
    sides = f"slope {number_text(kink.left)} to the left, {number_text(kink.right)} to the right"
    sides += f", declared {number_text(kink.declared)}"
    jump = f", the value jumps by {number_text(kink.jump)}" if kink.jump else ""
    return f"z = {number_text(kink.at)}: {sides}{jump}"
