"""What ``initialize_`` chose and why, as a table, and the sizes of values and gradients before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from chainrule.verbs.initialize.laws import Law
from chainrule.verbs.initialize.measure import Scale

_BASE_WIDTH = 64


@dataclass(frozen=True)
class Parameter:
    """What one parameter starts from.

    Attributes:
        name: its dotted name. shape: of the whole. rule: the law (``normal``, ``orthogonal, gain 1.41``, ``constant
            0``), or ``kept``. std: root mean square of an element around its mean. why: in one line.
        rate: what its learning rate is multiplied by (maximal update parametrization; 1 elsewhere).
        law: the rule as an object, None where it is kept.
    """

    name: str
    shape: tuple[int, ...]
    rule: str
    std: float
    why: str
    rate: float = 1.0
    law: Law | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "rule": self.rule,
            "std": self.std,
            "why": self.why,
            "rate": self.rate,
        }


Band = tuple[float, float]


@dataclass(frozen=True)
class Predicted:
    """What a plan expects of one module's output and of the cotangent that reaches it.

    Attributes:
        name: of the module. second, grad_second: mean square of its output, and of the cotangent.
        band, grad_band: where nine draws of ten lie.
    """

    name: str
    second: float
    band: Band | None
    grad_second: float | None
    grad_band: Band | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(self.__dict__)


@dataclass(frozen=True, eq=False)
class InitializeResult:
    """The start of a model.

    Attributes:
        parameters: one row per parameter, a tied one once, in the model's order. scheme, seed: as given.
        before, after: mean squares of every module's output and cotangent on the example, before and after (empty
            without an example). applied: False for a dry run.
        notes: what else is to be known. prediction: makes :attr:`predicted`.
    """

    parameters: tuple[Parameter, ...]
    scheme: str
    seed: int
    before: tuple[Scale, ...] = ()
    after: tuple[Scale, ...] = ()
    applied: bool = True
    notes: tuple[str, ...] = ()
    prediction: Callable[[], tuple[Predicted, ...]] | None = field(default=None, repr=False)
    tensors: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def predicted(self) -> tuple[Predicted, ...]:
        """What the plan expects of every module, both ways (``auto`` and ``critical``; computed when asked for)."""
        return self.prediction() if self.prediction is not None else ()

    def __getitem__(self, name: str) -> Parameter:
        for row in self.parameters:
            if row.name == name:
                return row
        raise KeyError(f"no parameter {name!r}; there are {', '.join(r.name for r in self.parameters[:8])}, ...")

    def param_groups(self, lr: float, base_width: int = _BASE_WIDTH) -> list[dict[str, Any]]:
        """Groups for an optimizer, by learning rate: ``torch.optim.Adam(r.param_groups(1e-3))``.

        Under ``mup`` a hidden or output weight has ``lr * base_width / fan_in``, everything else ``lr``: what is tuned
        at one width holds at the others. ``base_width`` is the width at which all rates are ``lr``.
        """
        groups: dict[float, list[Any]] = {}
        for row in self.parameters:
            tensor = self.tensors.get(row.name)
            if tensor is not None and tensor.requires_grad:
                rate = lr if row.rate == 1.0 else lr * row.rate * base_width
                groups.setdefault(rate, []).append(tensor)
        return [{"params": params, "lr": rate} for rate, params in groups.items()]

    def plot(self, path: str | None = None) -> Any:
        """Scale of values and gradients over depth, before and after, as a matplotlib figure; also into ``path``.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from chainrule.verbs.initialize.plots import scale_plot  # matplotlib is optional and slow to load

        return scale_plot(self, path)

    def __str__(self) -> str:
        how = "would be initialized" if not self.applied else "initialized"
        lines = [f"{len(self.parameters)} parameters {how} by {self.scheme!r}, seed {self.seed}"]
        lines += _table(
            ("parameter", "shape", "rule", "std", "why"),
            [
                (r.name, "x".join(map(str, r.shape)), r.rule, f"{r.std:.4g}" if r.std else "", r.why)
                for r in self.parameters
            ],
        )
        if self.before or self.after:
            lines += ["", *_table(("module", "", "E[x^2] before", "after", "E[g^2] before", "after"), self._scales())]
        return "\n".join([*lines, *(f"({note})" for note in self.notes)])

    def _scales(self) -> list[tuple[str, ...]]:
        before = {row.name: row for row in self.before}
        rows = []
        for row in self.after or self.before:
            old, new = before.get(row.name), row if self.after else None
            rows.append(
                (
                    row.name or "(model)",
                    row.module,
                    _shown(old.second if old else None),
                    _shown(new.second if new else None),
                    _shown(old.grad_second if old else None),
                    _shown(new.grad_second if new else None),
                )
            )
        return rows

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(r.name)}</td><td>{escape(r.rule)}</td><td>{r.std:.4g}</td><td>{escape(r.why)}</td></tr>"
            for r in self.parameters
        )
        return f"<table><tr><th>parameter</th><th>rule</th><th>std</th><th>why</th></tr>{rows}</table>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.initialize/1",
            "scheme": self.scheme,
            "seed": self.seed,
            "applied": self.applied,
            "parameters": [p.to_dict() for p in self.parameters],
            "before": [s.to_dict() for s in self.before],
            "after": [s.to_dict() for s in self.after],
            "notes": list(self.notes),
        }


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _table(head: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[k]) for row in [head, *body]) for k in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]]
