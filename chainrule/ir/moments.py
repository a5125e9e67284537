"""The state that moment propagation carries for one value.

``mean`` and ``second`` are arrays that broadcast against the value's shape (dimensions of size 1 are those over which
all elements are alike), or, for formulas, scalar nodes. Rules live with the ops, the propagation in ``interpreters``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chainrule.ir.graph import Node

KINDS = ("exact", "approximate", "probe", "unknown")


@dataclass(frozen=True)
class Moments:
    """First and second moment of the elements of a value over redraws of the random sources.

    Attributes:
        mean, second: E[x] and E[x^2]; None where unknown.
        law: ``given`` (not random), ``normal``, ``uniform`` (on ``bounds``), ``symmetric`` (about zero, otherwise
            unknown) or ``any``.
        limit: where ``law`` is normal for wide layers only, the law that holds at any width: symmetric or any.
        taken: the value whose law this step took as normal though it is so for wide layers only.
        kind: how good ``second`` is: exact, approximate, probe, unknown.
        mean_kind: how good ``mean`` is where that differs.
        sources: names of the random tensors that the value depends on.
        odd: those of them whose change of sign changes the sign of the value, so that it has mean zero given the rest.
        unit_spread: E[v^2] / E[v]^2 of the variance v that all units share given the weights before.
        kurtosis: E[x^4] / E[x^2]^2 of a unit given v (3 for a normal one, 1 for data).
        fresh: the value is a tensor of weights as drawn, with independent elements.
        independent: the elements are independent by declaration, or functions of such elements one by one.
        bounds: of a uniform law in numbers.
        coupled: operands with common sources were taken as independent in this step.
        why: the assumption or source of the last step.
    """

    mean: Any
    second: Any
    law: str = "any"
    limit: str = ""
    taken: Node | None = None
    kind: str = "exact"
    mean_kind: str = ""
    sources: frozenset[str] = frozenset()
    odd: frozenset[str] = frozenset()
    unit_spread: Any = 1.0
    kurtosis: Any = 3.0
    fresh: bool = False
    independent: bool = False
    bounds: tuple[float, float] | None = None
    coupled: bool = False
    why: str = ""

    @property
    def variance(self) -> Any:
        """E[x^2] - E[x]^2, None where either is unknown."""
        return None if self.mean is None or self.second is None else self.second - self.mean * self.mean

    @property
    def kind_of_mean(self) -> str:
        """How good ``mean`` is."""
        return self.mean_kind or self.kind

    @property
    def is_normal(self) -> bool:
        """Whether the law is normal at any width."""
        return self.law == "normal" and not self.limit

    @property
    def is_symmetric(self) -> bool:
        """Whether the law is symmetric about zero at any width, given that its mean is zero."""
        return self.law == "symmetric" or (self.law == "normal" and self.limit != "any")

    @property
    def known(self) -> bool:
        """Whether the second moment is known."""
        return self.second is not None


UNKNOWN = Moments(None, None, kind="unknown")


def worst(*kinds: str) -> str:
    """The least certain of several kinds."""
    return max(kinds, key=KINDS.index)
