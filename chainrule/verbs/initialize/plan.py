"""``auto`` and ``critical``: every weight from the moments that reach it, in the order of the program.

1. A weight is chosen so that what it makes has mean square 1, given the predicted mean square of what it reads.
2. Where values meet, the weights before are corrected: the branches of a residual stream together add as much as the
   stream has, times one half, by their last parameter; peers share; logits of attention stay at most 1; a head is small.
3. A plain chain of many activations gets orthogonal weights, mirrored where the activation is not odd.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from chainrule.frontends.torch import Trace
from chainrule.ir import Node
from chainrule.ir.field import Field
from chainrule.verbs.initialize.gains import averages, critical_point, is_linear, is_odd, mirrored
from chainrule.verbs.initialize.graph_roles import Use
from chainrule.verbs.initialize.laws import Constant, Law, Layout, Normal, Orthogonal, Stacked, scaled
from chainrule.verbs.initialize.propagate import Propagation
from chainrule.verbs.initialize.roles import Role
from chainrule.verbs.initialize.schemes import KEPT, Choice, fixed, orthogonal
from chainrule.verbs.initialize.structure import Link, Merge, Structure

ADDED_BY_BRANCHES = 0.5  # what all branches of a stream together add to its mean square, over what it begins with
HEAD = 0.1  # mean square of what a model with a loss puts out
DEEP = 8  # activations in a chain from which on it is made isometric
LOSS = 1.5  # factor on the mean square of a gradient over a whole chain from which on it is made isometric too
SMALL = 0.1  # mean square at which odd activations are nearly linear
LINEAR = 0.25  # mean square of a chain that is linear anyway
_CLOSE = 1.02  # ratio within which a correction is not worth making


@dataclass
class Chosen:
    """A parameter while its start is being chosen."""

    name: str
    leaf: Node
    role: Role
    shape: tuple[int, ...]
    law: Law | None = None
    why: str = ""
    wanted: list[float] = field(default_factory=list)  # log of the std that each further use would have
    fixed: bool = False  # set by the user, frozen or kept


class Planner:
    """The start of every parameter of a traced model.

    Args:
        traced: the program. roles: parameter -> role. given: leaf -> moments of what is not chosen here (data,
            buffers, frozen parameters). overrides: leaf -> law that the user asked for. statistics: leaf -> moments
            of what may stay as it is.
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
    ) -> None:
        self.traced, self.critical, self.statistics = traced, critical, statistics
        self.chosen: dict[Node, Chosen] = {}
        slopes: dict[Node, float] = {}
        for leaf, (name, role) in roles.items():
            shape = tuple(int(s) for s in leaf.shape)  # type: ignore[arg-type]
            self.chosen[leaf] = Chosen(name, leaf, role, shape, fixed=leaf in given or leaf in overrides)
            state = given.get(leaf)
            if role.kind == "scale" and not math.isnan(role.value):
                slopes[leaf] = role.value
            elif state is not None and state.array is not None and np.ptp(state.array) == 0:
                slopes[leaf] = state.mean_value
        self.shape = Structure(traced, slopes)
        self.flow = Propagation(self.shape.order, given)
        for leaf, choice in overrides.items():
            if leaf in self.chosen:
                self._give(self.chosen[leaf], choice.law, choice.why)
        self.links = {link.after: (link, chain) for chain in self.shape.chains for link in chain}
        self.begins = {chain[0].node: chain for chain in self.shape.chains}
        self.starts: dict[Node, float] = {}  # residual addition -> mean square that its stream began with
        self.bias_of: dict[Node, Node] = {}

    # ---- the walk ------------------------------------------------------------------------------------------
    def choices(self) -> dict[str, Choice]:
        """name -> choice, for every parameter that is not fixed."""
        for chosen in self.chosen.values():
            if not chosen.fixed and chosen.role.kind in ("bias", "scale", "recurrent", "other"):
                self._simple(chosen)
        for node in self.shape.order:
            for leaf, use in self.shape.weighted.get(node, ()):
                self._weight(self.chosen[leaf], node, use)
            for operand in node.inputs:
                leaf = self.shape.views.get(operand)
                if leaf is not None and node not in self.shape.views and self.chosen[leaf].role.kind == "position":
                    self._position(self.chosen[leaf], node)
            merge = self.shape.merge_at.get(node)
            if merge is not None:
                self._merge(merge)
            self._attention(node)
        self._head()
        self._shared()
        self._balance()
        result = {}
        for chosen in self.chosen.values():
            if chosen.law is None and not chosen.fixed and chosen.role.kind in ("weight", "embedding", "position"):
                self._unused(chosen)
            if not chosen.fixed:
                result[chosen.name] = Choice(chosen.law, chosen.why or KEPT)
        return result

    def _give(self, chosen: Chosen, law: Law | None, why: str) -> None:
        chosen.law, chosen.why = law, why
        if law is None:
            return
        if isinstance(law, Constant):
            self.flow.set_weight(chosen.leaf, chosen.name, law.value**2, law.value)
        else:
            self.flow.set_weight(chosen.leaf, chosen.name, law.std**2)

    def _simple(self, chosen: Chosen) -> None:
        role = chosen.role
        if role.kind == "recurrent":
            law = orthogonal(role.layout, chosen.shape, 1.0, role.parts) or Normal(1 / math.sqrt(max(role.fans[0], 1)))
            return self._give(chosen, law, "from step to step: keeps lengths, gate by gate")
        if role.kind == "bias" and role.forget >= 0:
            parts = tuple(Constant(1.0 if k == role.forget else 0.0) for k in range(role.parts))
            law = Stacked(parts, chosen.shape)
            self.flow.set_weight(chosen.leaf, chosen.name, 1.0 / role.parts)
            chosen.law, chosen.why = law, "the forget gate starts open"
            return None
        choice = fixed("lecun", role, chosen.shape)
        if role.kind == "scale" and math.isnan(role.value):
            if chosen.leaf in self.statistics:
                self.flow.keep(chosen.leaf, self.statistics[chosen.leaf])
            choice = Choice(None, "a scale of its own: left as it is")
        return self._give(chosen, choice.law, choice.why)

    # ---- weights -------------------------------------------------------------------------------------------
    def _weight(self, chosen: Chosen, node: Node, use: Use) -> None:
        if use.kind == "embedding":
            if chosen.law is None and not chosen.fixed:
                self._table(chosen)
            return
        fan_in = max(use.fans[0], 1)
        first = chosen.law is None and not chosen.fixed
        if not first:
            if self.flow.second(node) is None:
                self.flow.assume(node, (chosen.law.std**2 if chosen.law else 1 / fan_in) * fan_in)
            elif chosen.law is not None and not chosen.fixed and chosen.role.kind == "weight":
                made = self.flow.second(node) or 0.0
                if made > 0:
                    chosen.wanted.append(-0.5 * math.log(made))
            return
        if chosen.role.kind == "recurrent":
            return
        target, link = 1.0, self.links.get(node)
        if link is not None and self._isometric(link[1]):
            return self._in_chain(chosen, node, use, *link)
        if node in self.begins and self._isometric(self.begins[node]):
            return self._begins_chain(chosen, node, use)
        self.flow.set_weight(chosen.leaf, chosen.name, 1.0)
        made = self.flow.second(node)
        if made is None:
            std, told = math.sqrt(target / fan_in), "what it reads cannot be predicted: taken as 1"
            self._give(chosen, Normal(std), f"fan_in {fan_in}; {told}")
            return self.flow.assume(node, target)
        if made == 0:
            return self._give(chosen, Normal(1 / math.sqrt(fan_in)), f"reads zeros: 1 / fan_in, fan_in = {fan_in}")
        read = made / fan_in
        self._give(
            chosen,
            Normal(math.sqrt(target / made)),
            f"makes E[f^2] = 1: fan_in {fan_in}, reads E[h^2] = {read:.3g}",
        )
        return None

    def _table(self, chosen: Chosen) -> None:
        tied = [u for u in self.shape.uses[chosen.leaf] if u.kind == "weight"]
        if tied:
            width = max(tied[0].fans[0], 1)
            return self._give(
                chosen, Normal(math.sqrt(0.25 / width)), f"rows, and the head: logits of E[f^2] = 1/4 at width {width}"
            )
        return self._give(chosen, Normal(1.0), "rows of unit mean square, where a stream begins")

    def _position(self, chosen: Chosen, node: Node) -> None:
        if chosen.law is not None or chosen.fixed:
            return
        others = [i for i in node.inputs if self.shape.views.get(i) is not chosen.leaf and i in self.shape.alive]
        found = [s for s in (self.flow.second(i) for i in others) if s]
        beside = max(found, default=1.0)
        part = 1.0 if node.op.name == "concat" else 0.25
        how = "like what it stands beside" if part == 1.0 else "a quarter of what it is added to"
        self._give(chosen, Normal(math.sqrt(part * beside)), f"{how}, E[h^2] = {beside:.3g}")

    def _unused(self, chosen: Chosen) -> None:
        chosen.law, chosen.why = None, "the example does not reach it: left as it is"
        choice = fixed("lecun", chosen.role, chosen.shape)
        if chosen.role.kind != "position" and choice.law is not None:
            chosen.law, chosen.why = choice.law, f"the example does not reach it; {choice.why}"

    # ---- plain chains --------------------------------------------------------------------------------------
    def _isometric(self, chain: tuple[Link, ...]) -> bool:
        """Whether independent weights of unit mean square would not do: a deep chain, or one that loses the gradient."""
        if self.critical or len(chain) >= DEEP:
            return True
        lost = 0.0
        for link in chain:
            (leaf, use), *_ = self.shape.weighted[link.node]
            if use.layout is None or use.layout.kernel:
                return False  # short stacks of convolutions keep their kernels
            found = averages(link.phi, 1.0)
            if "batch_norm" in link.norm:
                lost += math.log(math.pi / (math.pi - 1))  # Yang et al. 2019, for relu
            elif not link.norm and found.finite and found.slope > 0:
                lost += math.log(found.slope / found.second)
        return abs(lost) > math.log(LOSS)

    def _layout(self, chosen: Chosen, use: Use) -> Layout | None:
        layout = use.layout
        usable = layout is not None and use.direct and 0 not in chosen.shape and min(layout.sizes(chosen.shape)) > 1
        return layout if usable and chosen.role.parts == 1 else None

    def _size(self, phi: object) -> float:
        """The mean square at which a chain of this odd function runs."""
        return LINEAR if is_linear(phi) else SMALL  # type: ignore[arg-type]

    def _begins_chain(self, chosen: Chosen, node: Node, use: Use) -> None:
        chain = self.begins[node]
        phi, layout = chain[0].phi, self._layout(chosen, use)
        pairs = not self.critical and not is_odd(phi) and self._can_mirror(chain)
        q = self._size(mirrored(phi)) if pairs else (1.0 if self._scale_free(phi) else SMALL)
        if layout is None:
            self.flow.set_weight(chosen.leaf, chosen.name, 1.0)
            made = self.flow.second(node) or float(max(use.fans[0], 1))
            self._give(chosen, Normal(math.sqrt(q / made)), f"begins a chain of {len(chain)}: E[f^2] = {q:g}")
        else:
            read = self._read(node, use)
            law = Orthogonal(math.sqrt(q / read), layout, chosen.shape, "out" if pairs else "")
            self._give(chosen, law, f"begins a chain of {len(chain)} activations: E[f^2] = {q:g}{_pairs(pairs)}")
        self.flow.force(node, q, chosen.name)

    def _scale_free(self, phi: object) -> bool:
        """Whether phi(c u) = c phi(u) for c > 0, as of relu: every mean square is then as good."""
        x = np.array([-2.0, -0.7, 0.4, 1.9])
        return bool(np.allclose(phi(3.0 * x), 3.0 * phi(x), rtol=1e-6, atol=0))  # type: ignore[operator]

    def _can_mirror(self, chain: tuple[Link, ...]) -> bool:
        """Whether every layer of the chain has an even number of units, and pairs of opposite sign say something."""
        for link in chain:
            (leaf, use), *_ = self.shape.weighted[link.node]
            layout = self._layout(self.chosen[leaf], use)
            if layout is None or layout.groups > 1 or layout.batch or layout.sizes(self.chosen[leaf].shape)[0] % 2:
                return False
            if not averages(mirrored(link.phi), SMALL).finite:
                return False
        (leaf, use), *_ = self.shape.weighted[chain[-1].after]
        layout = self._layout(self.chosen[leaf], use)
        return layout is not None and layout.groups == 1 and not layout.batch

    def _in_chain(self, chosen: Chosen, node: Node, use: Use, link: Link, chain: tuple[Link, ...]) -> None:
        q = self.flow.second(link.argument) or 1.0
        layout = self._layout(chosen, use)
        phi, pairs = link.phi, False
        if not self.critical and not is_odd(phi) and self._can_mirror(chain):
            phi, pairs = mirrored(phi), True
        found = averages(phi, q)
        last = link is chain[-1]
        if layout is None or not found.finite:
            self.flow.set_weight(chosen.leaf, chosen.name, 1.0)
            made = self.flow.second(node) or float(max(use.fans[0], 1))
            return self._give(chosen, Normal(math.sqrt(q / made)), f"in a chain: keeps E[f^2] = {q:.3g}")
        bias = 0.0
        if self.critical and not last:
            gain, bias = critical_point(phi, q)
            why = f"critical: gain^2 E[phi'^2] = 1 at E[f^2] = {q:.3g}"
        else:
            gain = math.sqrt(q / found.second)
            why = f"keeps E[f^2] = {q:.3g}; gain^2 E[phi'^2] = {gain**2 * found.slope:.4f}"
        sides = ("in" if last else "both") if pairs else ""
        self._give(chosen, Orthogonal(gain, layout, chosen.shape, sides), why + _pairs(pairs))
        self.flow.force(node, gain**2 * found.second + bias, chosen.name)
        if bias:
            self._bias_beside(node, bias)
        return None

    def _bias_beside(self, node: Node, variance: float) -> None:
        for other in self.chosen.values():
            uses = self.shape.uses[other.leaf]
            beside = [u for u in uses if u.kind == "bias" and (u.node is node or node in u.node.inputs)]
            if beside and not other.fixed:
                other.law, other.why = Normal(math.sqrt(variance)), "the variance that the critical point needs"

    def _read(self, node: Node, use: Use) -> float:
        """The mean square of what a weight reads."""
        data = [i for i in node.inputs if i in self.shape.alive]
        return (self.flow.second(data[0]) if data else None) or 1.0

    # ---- where values meet ---------------------------------------------------------------------------------
    def _merge(self, merge: Merge) -> None:
        if merge.kind == "peers":
            self._peers(merge)
            return
        skip = self.flow.second(merge.skip)
        if merge.kind == "projection" and merge.root is not None:
            kept = self.flow.second(merge.root)
            if kept:
                self._correct(merge.skip, kept, "the skip's own weight keeps the stream's mean square")
                skip = self.flow.second(merge.skip)
        number, count = self.shape.streams[merge.node]
        begun = self._begun(merge) or skip
        if not begun or not skip:
            return
        share = ADDED_BY_BRANCHES / count
        self.starts[merge.node] = begun
        target = share * begun
        self._correct(merge.branch, target, f"ends a branch, {number + 1} of {count}: adds {share:.3g} of the stream")

    def _begun(self, merge: Merge) -> float | None:
        """The mean square with which the stream began since it was last normalised."""
        if merge.kind == "projection":
            return None
        for at in self.shape.back(merge.skip):
            if at in self.starts:
                return self.starts[at]
        return None

    def _peers(self, merge: Merge) -> None:
        sides = [self.shape.producers(o) for o in (merge.skip, merge.branch)]
        weights = [[self.chosen[leaf] for _, leaf in side] for side in sides]
        if all(side and all(c.role.kind == "embedding" and c.law for c in side) for side in weights):
            return self._tables(merge, [(n, self.chosen[leaf]) for side in sides for n, leaf in side])
        for side, other in ((0, 1), (1, 0)):  # a table that is added to something else: a bias by position
            if weights[side] and all(c.role.kind == "embedding" and isinstance(c.law, Normal) for c in weights[side]):
                beside = self.flow.second((merge.skip, merge.branch)[other])
                for c in weights[side]:
                    if beside and not c.fixed and not self._is_tied(c):
                        why = f"a table that is added: a quarter of what is beside it, E[h^2] = {beside:.3g}"
                        self._give(c, Normal(math.sqrt(0.25 * beside)), why)
                return
        if not all(side and all(c.role.kind == "weight" and c.law for c in side) for side in weights):
            return
        total = self.flow.second(merge.node)
        if total and total > _CLOSE:
            for operand in (merge.skip, merge.branch):
                own = self.flow.second(operand)
                if own:
                    self._correct(operand, own / total, "one of several that are added")

    def _is_tied(self, chosen: Chosen) -> bool:
        return any(u.kind == "weight" for u in self.shape.uses[chosen.leaf])

    def _tables(self, merge: Merge, tables: list[tuple[Node, Chosen]]) -> None:
        """Tables that are added: the tokens' own as it is, positions and kinds of tokens small beside it."""

        def rank(entry: tuple[Node, Chosen]) -> tuple[bool, int]:
            node, chosen = entry
            index = node.inputs[-1]
            return not self._of_batch(index), -chosen.shape[0]

        (node, main), *rest = sorted(tables, key=rank)
        beside = self.flow.second(node) or 1.0
        for _, chosen in rest:
            if not chosen.fixed and isinstance(chosen.law, Normal) and "beside" not in chosen.why:
                why = f"a table beside {main.name}: a quarter of its E[h^2] = {beside:.3g}"
                self._give(chosen, Normal(math.sqrt(0.25 * beside)), why)

    def _of_batch(self, index: Node) -> bool:
        """Whether an index comes with the batch."""
        leaves = set(self.traced.batch_inputs.values())
        return index in leaves or any(self.shape.is_ancestor(leaf, index) for leaf in leaves if leaf in self.shape.index)

    def _correct(self, value: Node, target: float, why: str) -> None:
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
                self._give(chosen, scaled(law, factor), f"{why}, E[f^2] = {target:.3g}")
                if old is not None:
                    self.flow.force(node, old * factor**2, chosen.name)
                self.flow.forget(node)

    def _attention(self, node: Node) -> None:
        """Keeps the logits of an attention at a mean square of at most 1."""
        if node.op.name == "attention":
            return self._kernel(node)
        operands = node.params.get("operands")
        if operands is not None and len(operands) == 2 and all(i in self.shape.alive for i in node.inputs):
            scale = self._to_softmax(node)
            if scale is None:
                return
            made = self.flow.second(node)
            if made and made * scale**2 > _CLOSE:
                query = node.inputs[0]
                own = self.flow.second(query)
                if own:
                    self._correct(query, own / (made * scale**2), "queries: logits of E[f^2] = 1")

    def _kernel(self, node: Node) -> None:
        query, key = node.inputs[:2]
        width = int(query.shape[-1])  # type: ignore[arg-type]
        scale = node.params.get("scale") or 1 / math.sqrt(width)
        own, other = self.flow.second(query), self.flow.second(key)
        if own and other and scale**2 * width * own * other > _CLOSE:
            self._correct(query, 1 / (scale**2 * width * other), "queries: logits of E[f^2] = 1")

    def _to_softmax(self, node: Node) -> float | None:
        """What a product is multiplied by on its way into a softmax; None where it does not go there."""
        factor, at = 1.0, node
        for _ in range(12):
            users = [u for u in self.shape.users[at] if u in self.shape.alive]
            for user in users:
                if user.op.sums_to_one is not None:
                    return factor
            onward = [u for u in users if self.shape.passed(u) is at]
            if not onward:
                return None
            (user, *_) = onward
            if user.op.name in ("mul", "div"):
                numbers = [i.number for i in user.inputs if i.number is not None]
                if numbers:
                    factor = factor * float(numbers[0]) if user.op.name == "mul" else factor / float(numbers[0])
            at = user
        return None

    def _head(self) -> None:
        """The last weights of a model with a loss put out little, so that the first gradient is that of a guess."""
        if self.traced.loss is None or self.traced.output is None:
            return
        for output in self.traced.outputs[:1]:
            if output not in self.shape.alive or not output.type.is_float:
                continue
            producers = self.shape.producers(output)
            made = self.flow.second(output)
            weights = [self.chosen[leaf] for _, leaf in producers]
            if made and made > HEAD and weights and all(c.role.kind == "weight" for c in weights):
                self._correct(output, HEAD, "the head")

    def _balance(self) -> None:
        """Branches add no more to the gradient of their stream than to its values.

        A branch that averages over positions (attention, pooling) makes its values small and is scaled up for it;
        gradients that all positions share it does not make small.
        """
        if self.traced.loss is None:
            return
        residual = [m for m in self.shape.merges if m.kind == "residual" and m.root is not None and self._alone(m)]
        leaves = [n for n in self.traced.parameters.values() if n in self.shape.index]
        if not residual or not leaves:
            return
        flowing = self.flow.cotangents(self.traced.loss, leaves)
        for merge in residual:
            into, out = flowing.get(merge.root), flowing.get(merge.node)  # type: ignore[arg-type]
            share = ADDED_BY_BRANCHES / self.shape.streams[merge.node][1]
            if not into or not out or into / out - 1 <= share * _CLOSE:
                continue
            made = self.flow.second(merge.branch)
            if made:
                added = into / out - 1
                why = f"ends a branch: adds {share:.3g} of the stream's gradient, less of its values"
                self._correct(merge.branch, made * share / added, why)

    def _alone(self, merge: Merge) -> bool:
        """Whether the value at which skip and branch part is read by them alone."""
        root = merge.root
        assert root is not None
        return all(u is merge.node or self.shape.is_ancestor(u, merge.node) for u in self.shape.users[root])

    def _shared(self) -> None:
        """A weight with several uses: the mean, in logarithms, of what they ask for."""
        for chosen in self.chosen.values():
            if chosen.wanted and isinstance(chosen.law, Normal) and "chain" not in chosen.why:
                shift = math.exp(sum(chosen.wanted) / (len(chosen.wanted) + 1))
                if max(shift, 1 / shift) > _CLOSE:
                    why = f"{chosen.why}; the mean over its {len(chosen.wanted) + 1} uses"
                    self._give(chosen, scaled(chosen.law, shift), why)


def _pairs(yes: bool) -> str:
    return "; units in pairs u, -u, whose activations differ by an odd function" if yes else ""
