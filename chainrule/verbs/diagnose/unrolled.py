"""Recurrences that are written as loops: whether weights that are used repeatedly take a new step's input each time.

The gradient by such a weight is a sum over the steps, and its largest terms decide; in a deep network whose layers
share a weight, nothing new comes in between two uses, and what is before them gets the product alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.verbs.diagnose.layers import Layer
from chainrule.verbs.diagnose.torch_ops import RECURRENT
from chainrule.verbs.diagnose.values import Value

_USES = 4  # as many points as a trend takes
_LOOKED_AT = 12  # uses
_PICKS = frozenset(
    "select slice narrow unbind index index_select split split_with_sizes chunk tensor_split gather take "
    "embedding squeeze".split()
)


def through_steps(layers: Sequence[Layer]) -> list[Layer]:
    """The uses of the weight that is used most often, first step first; empty where it is no recurrence."""
    uses: dict[str, list[Layer]] = {}
    for x in layers:
        uses.setdefault(x.parameter, []).append(x)
    shared = [own for own in uses.values() if len(own) >= _USES]
    if not shared:
        return []
    most = max(shared, key=len)
    if all(x.call.name in RECURRENT and x.call.name.endswith("_cell") for x in most):
        return most
    stops = {x.value for own in shared for x in own}
    seen: set[Value] = set()
    fresh: set[int] = set()  # places in the sequence of steps
    for own in shared:
        for k, x in enumerate(own[:_LOOKED_AT]):
            picked = _picked(x, stops) - seen
            seen |= picked
            if picked:
                fresh.add(k)
    return most if len(fresh) >= min(len(most), _LOOKED_AT) - 1 else []


def _picked(layer: Layer, stops: set[Value]) -> set[Value]:
    """Parts of the batch, or of what was computed from it, that go into a use and come from no use before it."""
    found, derived = set(), {}
    order: list[Value] = []
    stack, visited = list(layer.call.inputs), set()
    while stack:
        v = stack.pop()
        if v in visited:
            continue
        visited.add(v)
        order.append(v)
        if v not in stops and v.producer is not None and v.data:
            stack.extend(v.producer.inputs)
    made = sorted(order, key=lambda v: -1 if v.producer is None else v.producer.index)
    for v in made:
        above = () if v.producer is None else v.producer.inputs
        derived[v] = v in stops or any(derived.get(u, False) for u in above)
        if v.data and not derived[v] and v.producer is not None and v.producer.name in _PICKS:
            found.add(v)
    return found
