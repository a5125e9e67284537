"""The report as plain data: what the page shows, for programs."""

from __future__ import annotations

from typing import Any

from chainrule.ir import shape_text
from chainrule.render.plain import plain
from chainrule.render.report.parts import Parts
from chainrule.render.report.writing import SCHEMA


def data(parts: Parts, shown: dict[str, Any]) -> dict[str, Any]:
    """One object with a part per verb; ``not_made`` says why one is missing. Nothing in it depends on the clock."""
    verdict = shown["verdict"]
    return plain(
        {
            "schema": SCHEMA,
            "title": shown["title"],
            "summary": dict(shown["summary"]),
            "verdict": {
                "headline": verdict.headline,
                "cause": verdict.cause,
                "fix": verdict.fix,
                "answers": {a.question: a.answer for a in verdict.answers},
            },
            "not_made": dict(parts.missing),
            "derive": _equations(parts.derive),
            "chain": _dict(parts.chain),
            "moments": _dict(parts.moments),
            "diagnose": _dict(parts.diagnose),
            "initialize": _dict(parts.initialize),
            "plan": _dict(parts.plan),
            "fit": _dict(parts.fit),
            "versions": dict(shown["versions"]),
        }
    )


def _dict(result: Any) -> Any:
    if result is None:
        return None
    found = result.to_dict()
    found.pop("seconds", None)
    return found


def _equations(derived: Any) -> Any:
    """Both passes line by line: the factors of a model's batch are tensors of order four, which nobody reads."""
    if derived is None:
        return None
    return {
        "of": derived.of,
        "wrt": list(derived.wrt),
        "forward": [{"name": n, "text": e.text, "shape": shape_text(e.shape)} for n, e in derived.definitions],
        "backward": [
            {"name": s.symbol, "text": s.closed_form.text, "latex": s.closed_form.latex, "shape": shape_text(s.shape)}
            for s in derived.steps
        ],
    }
