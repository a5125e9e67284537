"""What a report is made of: every verb asked once, on one case with one trace; what cannot be made says why.

A part that fails takes no other part with it, and none is left out in silence: its reason stands in ``missing``, on the
page and in the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from chainrule.errors import ChainruleError
from chainrule.render import terminal

if TYPE_CHECKING:
    from chainrule.verbs.case import Case
    from chainrule.verbs.chain import Chain
    from chainrule.verbs.fit import FitResult

Progress = Callable[[str], None]


@dataclass(eq=False)
class Parts:
    """The results of the verbs on a case.

    Attributes:
        case: what was asked about. made: part -> result. missing: part -> why there is none.
    """

    case: Case
    made: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """A result by its part's name; None where it could not be made."""
        if name not in ORDER:
            raise AttributeError(name)
        return self.made.get(name)


ORDER = ("trace", "derive", "moments", "diagnose", "chain", "initialize", "plan", "fit")


def parts_of(
    case: Case, *, seeds: int, fit: FitResult | int | None, chain: Chain | None, progress: Progress | None = None
) -> Parts:
    """Asks every verb; a line of progress for each.

    Raises:
        ChainruleError: neither the trace nor the diagnosis can be made, so there is nothing to report.
    """
    found = Parts(case)
    errors: dict[str, BaseException] = {}
    asked: dict[str, Callable[[], Any]] = {
        "trace": lambda: case.trace,
        "derive": lambda: case.equations,
        "moments": lambda: case.moments,
        "diagnose": lambda: case.diagnosis,
        "chain": lambda: _chain(case, seeds, "moments" in found.made) if chain is None else chain,
        "initialize": lambda: _start(case),
        "plan": lambda: _plan(case),
        "fit": lambda: _trained(case, fit),
    }
    for name in ORDER:
        if name == "fit" and fit is None:
            continue
        began = perf_counter()
        try:
            found.made[name] = asked[name]()
        except Exception as error:
            errors[name] = error
            found.missing[name] = _reason(error, found.missing)
        if progress is not None:
            said = found.missing[name] if name in found.missing else _said(name, found.made[name])
            outcome = f"not made: {said}" if name in found.missing else said
            progress(f"{name:11}{perf_counter() - began:6.1f} s   {outcome}")
    if "trace" in errors and "diagnose" in errors:
        first = errors["trace"]
        raise first if isinstance(first, ChainruleError) else errors["diagnose"]
    return found


def _reason(error: Exception, missing: dict[str, str]) -> str:
    if not isinstance(error, ChainruleError):
        said = " ".join(str(error).split())
        return f"internal error, {type(error).__name__}{f': {said}' if said else ''}"
    said = "; ".join(p for p in (error.what, error.given, f"write {error.instead}" if error.instead else "") if p)
    same = next((part for part, reason in missing.items() if reason == said), None)
    return f"for the same reason as {same}" if same else " ".join(said.split())


def _chain(case: Case, seeds: int, predicted: bool) -> Any:
    from chainrule.verbs.chain import chain

    return chain(case, seeds=seeds if predicted else 0, predicted=predicted)


def _start(case: Case) -> Any:
    from chainrule.verbs.initialize import initialize_

    return initialize_(case, dry_run=True)


def _plan(case: Case) -> Any:
    from chainrule.verbs.checkpoint.plan import plan

    return plan(case)


def _trained(case: Case, fit: FitResult | int | None) -> Any:
    if not isinstance(fit, int):
        return fit
    from chainrule.verbs.fit.trial import trial

    return trial(case, fit)


# ---- progress ----------------------------------------------------------------------------------------------
def _said(name: str, made: Any) -> str:
    """A part in a few words, for its line of progress."""
    match name:
        case "trace":
            return f"{len(made.graph.nodes):,} operations, {len(made.calls)} module calls"
        case "derive":
            return f"{len(made.steps)} equations"
        case "moments":
            return f"{len(made.rows)} module calls, both passes"
        case "diagnose":
            kinds = [f"{f.kind} at {f.where}" for f in made.findings if f.severity != "info"]
            return _listed(kinds) or "nothing wrong found"
        case "chain":
            return f"{len(made.links)} factors, {made.seeds} redraws"
        case "initialize":
            return f"{len(made.parameters)} parameters"
        case "plan":
            return f"{terminal.size(made.baseline_bytes)}, down to {terminal.size(made.minimum_bytes)}"
        case _:
            return str(made)


def _listed(words: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest
