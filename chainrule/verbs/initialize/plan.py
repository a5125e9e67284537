"""``auto`` and ``critical``: every weight from the moments that reach it, in the order of the program.

1. A weight is chosen so that what it makes has mean square 1, given the predicted mean square of what it reads.
2. Where values meet, the weights before are corrected: the branches of a residual stream together add as much as the
   stream has, times one half, by their last parameter; peers share; logits of attention stay at most 1; a head is
   small.
3. A plain chain of many activations gets orthogonal weights, mirrored where the activation is not odd.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from chainrule.frontends.torch import Trace
from chainrule.ir import Node, TensorType
from chainrule.ir.field import Field
from chainrule.ops.fields.registry import sizes
from chainrule.verbs.fields import redrawn
from chainrule.verbs.initialize.chain_plan import Chains
from chainrule.verbs.initialize.derived import Derived
from chainrule.verbs.initialize.graph_roles import Use, norms
from chainrule.verbs.initialize.ground import Chosen, Ground
from chainrule.verbs.initialize.laws import Constant, Normal, Stacked, scaled
from chainrule.verbs.initialize.logit_plan import Logits
from chainrule.verbs.initialize.merge_plan import Merges
from chainrule.verbs.initialize.propagate import Propagation
from chainrule.verbs.initialize.result import Predicted
from chainrule.verbs.initialize.roles import Role
from chainrule.verbs.initialize.schemes import KEPT, Choice, fixed, orthogonal
from chainrule.verbs.initialize.structure import Structure


class Planner:
    """The start of every parameter of a traced model.

    Args:
        traced: the program. roles: parameter -> role. given: leaf -> moments of what is not chosen here (data,
            buffers, frozen parameters). overrides: leaf -> law that the user asked for. statistics: leaf -> moments
            of what may stay as it is. computed: weights that are functions of parameters.
        critical: chains of any length at their critical point, with the biases that it needs.
    """

    def __init__(
        self,
        traced: Trace,
        roles: Mapping[Node, tuple[str, Role]],
        given: Mapping[Node, Field],
        overrides: Mapping[Node, Choice],
        statistics: Mapping[Node, Field],
        critical: bool = False,
        computed: Sequence[Derived] = (),
    ) -> None:
        self.statistics = statistics
        chosen: dict[Node, Chosen] = {}
        slopes: dict[Node, float] = {}
        for leaf, (name, role) in roles.items():
            shape = tuple(int(s) for s in leaf.shape)  # type: ignore[arg-type]
            chosen[leaf] = Chosen(name, leaf, role, shape, fixed=leaf in given or leaf in overrides)
            state = given.get(leaf)
            if role.kind == "scale" and not math.isnan(role.value):
                slopes[leaf] = role.value
            elif state is not None and state.array is not None and np.ptp(state.array) == 0:
                slopes[leaf] = state.mean_value
        shape_of = Structure(traced, slopes)
        flow = Propagation(shape_of.order, given)
        for weight, direction, _ in norms(traced):
            flow.directions.setdefault(direction, []).append(weight)
        self.ground = Ground(traced, shape_of, flow, chosen)
        for k, weight in enumerate(computed):
            state = redrawn(f"computed {k}", sizes(weight.node.shape), 0.0, weight.second)
            flow.know(weight.node, state)
        for leaf, choice in overrides.items():
            if leaf in chosen:
                self.ground.give(chosen[leaf], choice.law, choice.why)
        self.chains = Chains(self.ground, critical)
        self.merges, self.logits = Merges(self.ground), Logits(self.ground)

    def choices(self) -> dict[str, Choice]:
        """name -> choice, for every parameter that is not fixed."""
        for chosen in self.ground.chosen.values():
            if not chosen.fixed and chosen.role.kind in ("bias", "scale", "recurrent", "other"):
                self._simple(chosen)
        shape = self.ground.shape
        for node in shape.order:
            for leaf, use in shape.weighted.get(node, ()):
                self._weight(self.ground.chosen[leaf], node, use)
            for operand in node.inputs:
                leaf = shape.views.get(operand)
                if leaf is not None and node not in shape.views and self.ground.chosen[leaf].role.kind == "position":
                    self._position(self.ground.chosen[leaf], node)
            merge = shape.merge_at.get(node)
            if merge is not None:
                self.merges.meet(merge)
            self.logits.attend(node)
        self.logits.head()
        self.merges.balance()
        result = {}
        for chosen in self.ground.chosen.values():
            if chosen.law is None and not chosen.fixed and chosen.role.kind in ("weight", "embedding", "position"):
                self._unused(chosen)
            if not chosen.fixed:
                result[chosen.name] = Choice(chosen.law, chosen.why or KEPT)
        return result

    def _simple(self, chosen: Chosen) -> None:
        role = chosen.role
        if role.kind == "recurrent":
            law = orthogonal(role.layout, chosen.shape, 1.0, role.parts) or Normal(1 / math.sqrt(max(role.fans[0], 1)))
            return self.ground.give(chosen, law, "from step to step: keeps lengths, gate by gate")
        if role.kind == "bias" and role.forget >= 0:
            parts = tuple(Constant(1.0 if k == role.forget else 0.0) for k in range(role.parts))
            law = Stacked(parts, chosen.shape)
            self.ground.flow.set_weight(chosen.leaf, chosen.name, 1.0 / role.parts)
            chosen.law, chosen.why = law, "the forget gate starts open"
            return None
        choice = fixed("lecun", role, chosen.shape)
        if role.kind == "scale" and math.isnan(role.value):
            if chosen.leaf in self.statistics:
                self.ground.flow.keep(chosen.leaf, self.statistics[chosen.leaf])
            choice = Choice(None, "a scale of its own: left as it is")
        return self.ground.give(chosen, choice.law, choice.why)

    def _weight(self, chosen: Chosen, node: Node, use: Use) -> None:
        if use.kind == "embedding":
            if chosen.law is None and not chosen.fixed:
                self._table(chosen)
            return
        fan_in = max(use.fans[0], 1)
        first = chosen.law is None and not chosen.fixed
        if not first:
            if isinstance(node.type, TensorType) and self.ground.flow.second(node) is None:
                self.ground.flow.assume(node, (chosen.law.std**2 if chosen.law else 1 / fan_in) * fan_in)
            nodes = [u.node for u in self.ground.shape.uses[chosen.leaf] if u.kind == "weight"]
            if node is nodes[-1] and not chosen.fixed and chosen.why.startswith("makes"):
                self._share(chosen, nodes)
            return
        if chosen.role.kind == "recurrent":
            return
        if self.chains.choose(chosen, node, use):
            return None
        self.ground.flow.set_weight(chosen.leaf, chosen.name, 1.0)
        inner = self.ground.flow.product_of(chosen.leaf) if not isinstance(node.type, TensorType) else None
        made = self.ground.flow.second(inner or node)
        if made is None:
            std, told = math.sqrt(1 / fan_in), "what it reads cannot be predicted: taken as 1"
            self.ground.give(chosen, Normal(std), f"fan_in {fan_in}; {told}")
            return self.ground.flow.assume(node, 1.0) if isinstance(node.type, TensorType) else None
        if made == 0:
            return self.ground.give(
                chosen, Normal(1 / math.sqrt(fan_in)), f"reads zeros: 1 / fan_in, fan_in = {fan_in}"
            )
        read = made / fan_in
        self.ground.give(
            chosen,
            Normal(math.sqrt(1 / made)),
            f"makes E[f^2] = 1: fan_in {fan_in}, reads E[h^2] = {read:.3g}",
        )
        return None

    def _table(self, chosen: Chosen) -> None:
        tied = [u for u in self.ground.shape.uses[chosen.leaf] if u.kind == "weight"]
        if tied:
            width = max(tied[0].fans[0], 1)
            return self.ground.give(
                chosen, Normal(math.sqrt(0.25 / width)), f"rows, and the head: logits of E[f^2] = 1/4 at width {width}"
            )
        return self.ground.give(chosen, Normal(1.0), "rows of unit mean square, where a stream begins")

    def _position(self, chosen: Chosen, node: Node) -> None:
        if chosen.law is not None or chosen.fixed:
            return
        shape = self.ground.shape
        others = [i for i in node.inputs if shape.views.get(i) is not chosen.leaf and i in shape.alive]
        found = [s for s in (self.ground.flow.second(i) for i in others) if s]
        beside = max(found, default=1.0)
        part = 1.0 if node.op.name == "concat" else 0.25
        how = "like what it stands beside" if part == 1.0 else "a quarter of what it is added to"
        self.ground.give(chosen, Normal(math.sqrt(part * beside)), f"{how}, E[h^2] = {beside:.3g}")

    def _unused(self, chosen: Chosen) -> None:
        chosen.law, chosen.why = None, "the example does not reach it: left as it is"
        choice = fixed("lecun", chosen.role, chosen.shape)
        if chosen.role.kind != "position" and choice.law is not None:
            chosen.law, chosen.why = choice.law, f"the example does not reach it; {choice.why}"

    def _share(self, chosen: Chosen, nodes: list[Node]) -> None:
        """A weight with several uses: the mean square that it makes is 1 in the mean, of logarithms, over its uses."""
        flow = self.ground.flow
        for _ in range(4):
            now, law = self._made(nodes), chosen.law
            if now is None or abs(now) < 0.01 or not isinstance(law, Normal):
                return
            flow.set_weight(chosen.leaf, chosen.name, (1.01 * law.std) ** 2)
            more = self._made(nodes)
            power = max(((more or now) - now) / math.log(1.01), 1.0)
            why = f"makes E[f^2] = 1 in the mean over its {len(nodes)} uses"
            self.ground.give(chosen, scaled(law, math.exp(-now / power)), why)

    def _made(self, nodes: list[Node]) -> float | None:
        """The mean of the logarithms of mean squares; None where one is not known."""
        found = [self.ground.flow.second(n) for n in nodes]
        return float(np.mean([math.log(f) for f in found if f])) if all(found) else None

    # ---- what it comes to ----------------------------------------------------------------------------------
    def predictions(self) -> tuple[Predicted, ...]:
        """What every called module will put out, and the cotangent that will reach it."""
        flow, leaves = self.ground.flow, list(self.ground.traced.parameters.values())
        leaves = [n for n in leaves if n in self.ground.shape.index]
        loss = self.ground.traced.loss
        flowing = flow.cotangents(loss, leaves) if loss is not None and leaves else {}
        rows: dict[str, Predicted] = {}
        for call in self.ground.traced.calls:
            node = next((o for o in call.outputs if o.type.is_float and o in self.ground.shape.index), None)
            if node is None or not flow.state(node).known or call.path == "loss":
                continue
            state, back = flow.state(node), flowing.get(node)
            rows[call.path] = Predicted(
                call.path,
                state.mean_square,
                _band(state),
                back.mean_square if back is not None else None,
                _band(back) if back is not None else None,
            )
        return tuple(rows.values())


def _band(state: Field) -> tuple[float, float] | None:
    """Where the mean square of one draw of the weights lies in nine draws of ten: log-normal around its median."""
    return state.band if math.isfinite(state.log_spread) and state.mean_square > 0 else None
