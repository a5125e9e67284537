"""How many threads a step is worth: by what its arithmetic takes, against what threads lose by waiting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chainrule.backends.native import access
from chainrule.backends.native.access import sizes
from chainrule.backends.native.prepare import StepGraph, weight

# Of one core: pairs of multiplication and addition per second in float32, and other instructions on elements.
_PRODUCTS, _ELEMENTS = 5e10, 2.5e10
_WORTH = 4e-5  # seconds of a step for each thread: a few hundred times what they need to meet


@dataclass(frozen=True)
class Threads:
    """As many as are worth it, at most ``most``; or ``most`` of them (``exact``)."""

    most: int = 1
    exact: bool = True

    def of(self, graph: StepGraph) -> int:
        """The number for a step."""
        if self.exact or self.most == 1:
            return self.most
        return max(1, min(self.most, int(seconds(graph) / _WORTH)))


ONE = Threads()


def seconds(graph: StepGraph) -> float:
    """What a step takes one core, roughly."""
    total = 0.0
    for node in graph.order:
        if not hasattr(node.type, "shape"):
            continue
        count = math.prod(sizes(node)) * (2 if node.type.dtype == "float64" else 1)
        found = access.accumulation(node)
        if found is not None:
            terms = count * math.prod(found.sizes)
            total += terms / (_PRODUCTS if len(node.inputs) > 1 else _ELEMENTS)
        elif access.is_elementwise(node):
            total += count * weight(node) / _ELEMENTS
    return total
