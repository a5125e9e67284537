"""What all parts of a plan stand on: the network's shape, its fields as far as they are chosen, and the choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from chainrule.frontends.torch import Trace
from chainrule.ir import Node
from chainrule.verbs.initialize.graph_roles import Use
from chainrule.verbs.initialize.laws import Constant, Law, Layout, scaled
from chainrule.verbs.initialize.propagate import Propagation
from chainrule.verbs.initialize.roles import Role
from chainrule.verbs.initialize.structure import Structure

CLOSE = 1.02  # ratio within which a correction is not worth making


@dataclass
class Chosen:
    """A parameter while its start is being chosen."""

    name: str
    leaf: Node
    role: Role
    shape: tuple[int, ...]
    law: Law | None = None
    why: str = ""
    fixed: bool = False  # set by the user, frozen or kept


@dataclass
class Ground:
    """The program, its shape, its fields, and what has been chosen so far."""

    traced: Trace
    shape: Structure
    flow: Propagation
    chosen: Mapping[Node, Chosen]

    def give(self, chosen: Chosen, law: Law | None, why: str) -> None:
        chosen.law, chosen.why = law, why
        if law is None:
            return
        if isinstance(law, Constant):
            self.flow.set_weight(chosen.leaf, chosen.name, law.value**2, law.value)
        else:
            self.flow.set_weight(chosen.leaf, chosen.name, law.std**2)

    def correct(self, value: Node, target: float, why: str) -> None:
        """Scales the last parameters before ``value`` so that its mean square is ``target``."""
        for _ in range(3):
            made = self.flow.second(value)
            producers = [(n, self.chosen[leaf]) for n, leaf in self.shape.producers(value)]
            free = [(n, c) for n, c in producers if c.law is not None and not c.fixed]
            if not made or not free or max(made / target, target / made) < 1.0001:
                return
            factor = math.sqrt(target / made)
            for node, chosen in free:
                law = chosen.law
                assert law is not None
                if chosen.role.kind == "embedding":
                    continue
                old = self.flow.release(node)
                self.give(chosen, scaled(law, factor), f"{why}, E[f^2] = {target:.3g}")
                if old is not None:
                    self.flow.force(node, old * factor**2, chosen.name)
                self.flow.forget(node)

    def read(self, node: Node, use: Use) -> float:
        """The mean square of what a weight reads."""
        data = [i for i in node.inputs if i in self.shape.alive]
        return (self.flow.second(data[0]) if data else None) or 1.0

    def layout(self, chosen: Chosen, use: Use) -> Layout | None:
        layout = use.layout
        usable = layout is not None and use.direct and 0 not in chosen.shape and min(layout.sizes(chosen.shape)) > 1
        return layout if usable and chosen.role.parts == 1 else None
