"""The annotated chain: the product of factors of a backward pass, with everything known about each factor.

One row per factor, from the loss back to the input: which layer, the factor as an equation, its shape, the gain of the
gradient predicted without running and measured over redrawn weights, the bytes that must be kept for it, and its
multiplications. ``derive`` fills the equations, ``moments`` the gains, ``cost`` bytes and counts, ``diagnose`` the
findings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.errors import MissingExtraError, ModelError
from chainrule.interpreters.cost import multiplications, nbytes
from chainrule.ir import Node, shape_text, toposort
from chainrule.verbs.derive import DeriveResult, derive
from chainrule.verbs.notebook import axes_for, html_table, number, over_depth
from chainrule.verbs.steps import Step


@dataclass(frozen=True)
class Link:
    """One factor of the chain.

    Attributes:
        layer: module path and kind. factor: the equation that this factor is part of. shape: of the derivative.
        gain_predicted, gain_measured: rms of the gradient after the factor over rms before it (for the loss: rms of its
            gradient). gain_error: standard error of the measured one. None where unknown.
        bytes: values of the forward pass that its derivatives read. multiplications: of the gradient itself.
        finding: kind of what is wrong here, empty if nothing is.
        name: of the quantity whose gradient this is. module: dotted path of the module that the gradient passes.
        rms: of the gradient itself, predicted.
    """

    layer: str
    factor: str
    shape: tuple[Any, ...]
    gain_predicted: float | None
    gain_measured: float | None
    gain_error: float | None
    bytes: int | None
    multiplications: Any
    finding: str = ""
    name: str = ""
    module: str = ""
    rms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return self.__dict__ | {
            "shape": [str(s) for s in self.shape],
            "multiplications": str(self.multiplications),
        }


@dataclass(frozen=True, eq=False)
class Chain:
    """The annotated chain of a network or a formula.

    Attributes:
        links: from the loss to the input; their product is the gradient at the input.
        gradients: (parameter, equation, shape) in the same notation.
        product: the gradient at the input written out; empty where the chain branches.
        seeds: redraws behind the measured gains.
    """

    links: tuple[Link, ...]
    gradients: tuple[tuple[str, str, tuple[Any, ...]], ...]
    product: str
    seeds: int

    def __str__(self) -> str:
        lines = [
            f"{k.layer:24} {k.factor:48} ({shape_text(k.shape)})"
            + (f"  gain {k.gain_predicted:.3f}" if k.gain_predicted is not None else "")
            for k in self.links
        ]
        lines += [f"{'':24} {equation:48} ({shape_text(shape)})" for _, equation, shape in self.gradients]
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Gains from the loss to the input, predicted (line) and measured (dots), on matplotlib axes; returns them.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        ax, links = axes_for(ax), self.links[1:]
        names = [k.module or k.layer for k in links]
        over_depth(ax, names, [k.gain_predicted for k in links], "predicted", "tab:orange")
        over_depth(ax, names, [k.gain_measured for k in links], "measured", "black", style=".")
        ax.axhline(1.0, color="0.7", linewidth=0.8)
        ax.set(title="gain of each factor", xlabel="from the loss to the input")
        if links:
            ax.legend(frameon=False)
        return ax

    def _repr_html_(self) -> str:
        head = ("layer", "factor", "shape", "gain predicted", "measured", "bytes kept", "multiplications", "finding")
        rows = [
            (k.layer, k.factor, shape_text(k.shape), number(k.gain_predicted), number(k.gain_measured),
             "" if k.bytes is None else f"{k.bytes:,}", str(k.multiplications), k.finding)
            for k in self.links
        ]  # fmt: skip
        return html_table(head, rows, self.product if len(self.product) < 200 else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.chain/1",
            "links": [k.to_dict() for k in self.links],
            "gradients": [
                {"parameter": n, "equation": e, "shape": [str(s) for s in shape]} for n, e, shape in self.gradients
            ],
            "product": self.product,
            "seeds": self.seeds,
        }


def chain(
    source: Any,
    batch: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    *,
    seeds: int = 16,
    predicted: bool = True,
    shapes: Mapping[str, Any] | None = None,
    wrt: str | None = None,
) -> Chain:
    """The annotated chain of a model (or Case), or of a formula.

    Args:
        source: a Case, a model with batch and loss, or text of the formula language.
        batch, loss, optimizer: of a model, as for all verbs.
        seeds: redraws of the weights for the measured gains; 0 measures nothing. predicted: False predicts none.
        shapes, wrt: for formulas: dimensions, and the variable at the chain's end (by default the first).

    Raises:
        FormulaError, ShapeError: a formula. ModelError, UnsupportedOpError: a model.

    >>> import chainrule as cr
    >>> [link.factor for link in cr.chain("f = w*x; h = sin(f); l = (h - y)^2", wrt="x").links]
    ['dl/dh = 2 * (h - y)', 'dl/df = dl/dh * cos(f)', 'dl/dx = dl/df * w']
    """
    if isinstance(source, str):
        return _formula_chain(source, shapes, wrt)
    try:  # models need torch, formulas must work without
        from chainrule.frontends.torch.trace import identifier_of_path
        from chainrule.verbs.case import as_case
        from chainrule.verbs.model_moments import measured, predict
    except ModuleNotFoundError as error:
        raise MissingExtraError("the chain of a model", error.name or "torch", "torch") from error
    case = as_case(source, batch, loss, optimizer)
    if case.trace.loss is None:
        raise ModelError("the chain of a model starts at its loss", required='loss=..., loss="model" or objective=...')
    equations = case.equations
    expected = {n: _mean(g.second) for n, g in predict(case).backward.items()} if predicted else {}
    sampled = measured(case, seeds).backward if seeds else {}
    layers, modules = _layers(case.trace), _module_of(case.trace, identifier_of_path)
    findings = {where: f.kind for f in case.findings for where in f.where.split(", ")}
    inputs = {leaf.params["name"] for leaf in case.trace.batch_inputs.values()}
    parameters = {leaf.params["name"] for leaf in case.trace.parameters.values()}
    links, gradients = [], []
    for step in equations.steps:
        name, equation = step.wrt, f"{step.symbol} = {step.closed_form.text}"
        if name in equations.program.variables and name not in inputs:
            gradients.append((name, equation, step.shape))
            continue
        children = equations.program.children(name)
        child = children[-1]
        module = modules(child)
        layer = ", ".join(dict.fromkeys(layers.get(c) or modules(c) or c for c in children))
        before = None if child == equations.of else child
        error, gain = _measured_gain(sampled, name, before)
        links.append(
            Link(
                layer=layer,
                factor=equation,
                shape=step.shape,
                gain_predicted=_gain(expected.get(name), expected.get(before) if before else 1.0),
                gain_measured=gain,
                gain_error=error,
                bytes=_bytes_kept(equations, children, parameters),
                multiplications=_multiplications(step),
                finding=findings.get(layer.split(" ")[0], ""),
                name=name,
                module=module,
                rms=_gain(expected.get(name), 1.0),
            )
        )
    return Chain(tuple(links), tuple(gradients), _product(links), seeds)


def _formula_chain(source: str, shapes: Mapping[str, Any] | None, wrt: str | None) -> Chain:
    target = wrt or derive(source, shapes=shapes, wrt="all").wrt[0]
    result = derive(source, shapes=shapes, wrt=target)
    links = []
    for step in result.steps:
        children = result.program.children(step.wrt)
        links.append(
            Link(
                layer=children[-1] if children else step.of,
                factor=_factored(step),
                shape=step.shape,
                gain_predicted=None,
                gain_measured=None,
                gain_error=None,
                bytes=None,
                multiplications=_multiplications(step),
            )
        )
    return Chain(tuple(links), (), _product(links), 0)


def _factored(step: Step) -> str:
    """``dl/df = dl/dh * cos(f)``: known derivatives by symbol, local factors written out."""
    if not step.terms:
        return f"{step.symbol} = {step.closed_form.text}"
    return (
        f"{step.symbol} = {step.expression.simplified().text}"
        if _has_tensors(step)
        else f"{step.symbol} = "
        + " + ".join(" * ".join(_factor_text(f, step) for f in term.factors) for term in step.terms)
    )


def _has_tensors(step: Step) -> bool:
    return any(f.shape for t in step.terms for f in t.factors)


def _factor_text(factor: Any, step: Step) -> str:
    if factor.symbol.startswith(f"d{step.of}/") and factor.symbol != step.symbol and len(step.terms[0].factors) > 1:
        return factor.symbol
    written = factor.expression.text
    return f"({written})" if factor.expression.node.op.precedence <= 10 else written


def _product(links: Sequence[Link]) -> str:
    """The gradient at the input as one product, each factor put into the next; empty where the chain branches."""
    symbol, product = "", ""
    for link in links:
        name, _, factor = link.factor.partition(" = ")
        uses = len(re.findall(rf"{re.escape(symbol)}(?!\w)", factor)) if symbol else 0
        if symbol and (uses != 1 or len(re.findall(r"\bd\w+/d\w+", factor)) != 1):
            return ""
        if symbol:
            # Products group to the left, so a known derivative in front needs no brackets unless it is a sum.
            front = factor.startswith((symbol, f"({symbol})"))
            inner = f"({product})" if not front or _is_sum(product) else product
            factor = (
                factor.replace(f"({symbol})", inner, 1) if f"({symbol})" in factor else factor.replace(symbol, inner, 1)
            )
        symbol, product = name, factor
    return f"{symbol} = {product}" if links else ""


def _is_sum(text: str) -> bool:
    depth = 0
    for k, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0 and k and text[k - 1 : k + 2] in (" + ", " - "):
            return True
    return False


# ---- columns -----------------------------------------------------------------------------------------------
def _layers(traced: Any) -> dict[str, str]:
    """Name in the graph -> module path and kind, innermost module first; the loss by its own name."""
    names = traced.graph.name_of()
    found: dict[str, str] = {}
    for call in traced.calls:
        for output in call.outputs:
            if output in names:
                found.setdefault(names[output], f"{call.path} {call.kind}".strip())
    if traced.loss is not None:
        name = names.get(traced.loss, "loss")
        found[name] = next((c.kind for c in traced.calls if traced.loss in c.outputs and c.path == "loss"), "loss")
        if found[name] == "loss":
            found[name] = f"loss {traced.loss.op.name}"
    return found


def _module_of(traced: Any, identifier: Callable[[str], str]) -> Callable[[str], str]:
    """Name of a value -> path of its module; a value inside of one ends in its path (``u2_h_0_attn``)."""
    names = traced.graph.name_of()
    exact = {names[o]: call.path for call in reversed(traced.calls) for o in call.outputs if o in names}
    paths = {identifier(call.path): call.path for call in traced.calls if call.path}

    def path(name: str) -> str:
        return exact.get(name) or paths.get(name.partition("_")[2], "")

    return path


def _mean(value: Any) -> float | None:
    return None if value is None else float(np.mean(value))


def _gain(after: float | None, before: float | None) -> float | None:
    return None if after is None or not before else float(np.sqrt(after / before))


def _measured_gain(measured: Mapping[str, Any], name: str, before: str | None) -> tuple[float | None, float | None]:
    """Standard error and value of sqrt(mean after / mean before) over seeds (leave-one-out)."""
    if name not in measured or (before is not None and before not in measured):
        return None, None  # a value inside of a module: no draw looked at it
    after = measured[name]
    base = measured[before] if before is not None else np.ones_like(after)
    if np.mean(base) == 0:
        return None, None
    gain = float(np.sqrt(np.mean(after) / np.mean(base)))
    n = len(after)
    if n < 2:
        return None, gain
    with np.errstate(all="ignore"):  # in all draws but one there may be no gradient at all: then there is no error
        left_out = np.array([np.sqrt(np.delete(after, k).mean() / np.delete(base, k).mean()) for k in range(n)])
        error = float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2)))
    return (error if np.isfinite(error) else None), gain


def _bytes_kept(equations: DeriveResult, children: Sequence[str], parameters: set[str]) -> int | None:
    """Bytes of the forward values that the derivatives of ``children`` read, parameters not counted."""
    program = equations.program
    kept: dict[Node, None] = {}
    for step in equations.steps:
        if any(child in program.children(step.wrt) for child in children):
            for leaf in toposort([step.closed_form.node]):
                name = leaf.params.get("name", "") if leaf.is_leaf else ""
                if (name in program.node or name in program.variables) and name not in parameters:
                    kept[leaf] = None
    total = nbytes(list(kept))
    return total if isinstance(total, int) else None


def _multiplications(step: Step) -> Any:
    return multiplications([step.closed_form.node])
