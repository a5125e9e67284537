"""The kinds of slip that ``check`` recognises, and one recognised slip in words."""

from __future__ import annotations

from dataclasses import dataclass

# Every kind of slip, as ``CheckResult.slip_kind`` gives it.
SLIPS = (
    "missing factor",
    "sign",
    "missing transpose",
    "missing upstream term",
    "missing inner derivative",
    "forgotten broadcast sum",
    "forgotten path",
    "wrong order",
    "elementwise product",
    "layout",
    "wrong variable",
    "power rule",
    "symmetric only",
    "normalisation",
    "value instead of derivative",
    "a term too many",
    "a factor too many",
    "zero",
    "special case",
    "shape",
)
_TITLES = {
    "sign": "wrong sign",
    "wrong order": "wrong order of a matrix product",
    "elementwise product": "elementwise product and matrix product confused",
    "wrong variable": "derivative by the wrong variable",
    "power rule": "power or division rule",
    "symmetric only": "right for symmetric matrices only",
    "zero": "not zero",
}


@dataclass(frozen=True)
class Slip:
    """A recognised mistake: one of :data:`SLIPS`, and a sentence that names the place."""

    kind: str
    sentence: str

    def __str__(self) -> str:
        title = _TITLES.get(self.kind, self.kind)
        if self.kind == "missing factor":
            return f"{title} {self.sentence}"
        return f"{title}: {self.sentence}" if self.sentence else title


NONE = Slip("", "")
