"""What diagnose returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chainrule.verbs.kinds import KINDS, SEVERITIES, Finding
from chainrule.verbs.notebook import axes_for, html_table, over_depth

CHECKED = tuple(KINDS)


@dataclass(frozen=True)
class LayerSignal:
    """One weight layer in the strip.

    Attributes:
        name: of the module. forward, backward: rms of its output, and of the gradient there.
        dead, squashed: share of its units. finding: the kind of finding there, or "".
        reached: whether the gradient of the loss reaches it.
    """

    name: str
    forward: float
    backward: float
    dead: float | None = None
    squashed: float | None = None
    finding: str = ""
    reached: bool = True


@dataclass(frozen=True)
class DiagnoseResult:
    """What keeps a model from training, root causes first.

    Attributes:
        findings: one per cause, the most decisive first. checked: the kinds that were looked for.
        notes: what could not be examined, and why. strip: the layers in order, with what was measured.
        passes: forward and backward passes that it took.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...] = CHECKED
    notes: tuple[str, ...] = field(default=())
    strip: tuple[LayerSignal, ...] = field(default=())
    passes: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing above ``info`` was found."""
        return not self.worst("warning")

    def worst(self, severity: str) -> tuple[Finding, ...]:
        """The findings at least as severe."""
        least = SEVERITIES.index(severity)
        return tuple(f for f in self.findings if SEVERITIES.index(f.severity) >= least)

    def __str__(self) -> str:
        lines = [str(f) for f in self.findings]
        if self.ok:
            lines.insert(0, f"nothing wrong found ({len(self.checked)} kinds of fault looked for)")
        return "\n".join([*lines, *self.notes])

    def plot(self, ax: Any = None) -> Any:
        """rms of the pre-activations and of their gradients over the layers, on matplotlib axes; returns them.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        ax, names = axes_for(ax), [s.name for s in self.strip]
        over_depth(ax, names, [s.forward for s in self.strip], "rms of z", "tab:blue")
        over_depth(ax, names, [s.backward for s in self.strip], "rms of dL/dz", "tab:orange")
        for k, layer in enumerate(self.strip):
            if layer.finding:
                ax.axvline(k, color="tab:red", linewidth=1, label=layer.finding)
        if names:
            ax.legend(frameon=False)
        return ax

    def _repr_html_(self) -> str:
        if not self.findings:
            return f"<p><b>Nothing wrong found</b> ({len(self.checked)} kinds of fault looked for).</p>"
        head = ("", "kind", "where", "cause", "measured", "fix")
        rows = [(f.severity, f.kind, f.where, f.cause, f.measured, f.fix) for f in self.findings]
        return html_table(head, rows, "; ".join(self.notes))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what ``--json`` prints."""
        return {
            "schema": "chainrule.diagnose/1",
            "ok": self.ok,
            "findings": [f.to_dict() for f in self.findings],
            "checked": list(self.checked),
            "notes": list(self.notes),
            "strip": [s.__dict__ for s in self.strip],
            "passes": self.passes,
        }
