"""Where values meet, in a plan: the branches of residual streams, peers that are added, tables beside each other."""

from __future__ import annotations

import math

from chainrule.ir import Node
from chainrule.verbs.initialize.ground import CLOSE, Chosen, Ground
from chainrule.verbs.initialize.laws import Normal, scaled
from chainrule.verbs.initialize.structure import Merge
from chainrule.verbs.scaling import factor_of

ADDED_BY_BRANCHES = 0.5  # what all branches of a stream together add to its mean square, over what it begins with


class Merges:
    """The additions of a program."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.damped: set[Node] = set()
        self.starts: dict[Node, float] = {}  # residual addition -> mean square that its stream began with

    def meet(self, merge: Merge) -> None:
        if merge.kind == "peers":
            self._peers(merge)
            return
        skip = self.ground.flow.second(merge.skip)
        if merge.kind == "projection" and merge.root is not None:
            kept, producers = self.ground.flow.second(merge.root), self.ground.shape.producers(merge.skip)
            normed = any(self.ground.chosen[leaf].role.kind == "scale" for _, leaf in producers)
            # A norm has taken the mean away: to scale what is left up to the stream would scale gradients up too.
            if kept and not normed:
                self.ground.correct(merge.skip, kept, "the skip's own weight keeps the stream's mean square")
                skip = self.ground.flow.second(merge.skip)
        number, count = self.ground.shape.streams[merge.node]
        begun = self._begun(merge) or skip
        if not begun or not skip:
            return
        share = ADDED_BY_BRANCHES / count
        self.starts[merge.node] = begun
        target = share * begun
        whole = self._damped(merge, skip)
        if whole is not None:
            self.damped.add(merge.node)
            self.ground.correct(merge.branch, whole, "ends a branch of a damped stream: makes up for what it loses")
            return None
        if self.ground.flow.second(merge.branch) is None:
            return self._unpredicted(merge, target, f"{number + 1} of {count}: adds {share:.3g} of the stream")
        self.ground.correct(
            merge.branch, target, f"ends a branch, {number + 1} of {count}: adds {share:.3g} of the stream"
        )

    def _damped(self, merge: Merge, skip: float) -> float | None:
        """What a branch must add where numbers damp the stream, as in a x + b f(x) or (x + f(x)) / sqrt(2).

        With it both passes keep their size: (skip + branch) factor^2 = root, and the gradient's factors are the same.
        """
        shape, flow = self.ground.shape, self.ground.flow
        root = flow.second(merge.root) if merge.kind == "residual" and merge.root is not None else None
        if not root:
            return None
        at, factor = merge.node, 1.0
        while len(users := [u for u in shape.users[at] if u in shape.alive]) == 1 and shape.passed(users[0]) is at:
            scale = factor_of(users[0])
            factor *= 1.0 if scale is None else scale
            at = users[0]
        if not factor or (factor**2 * skip > 0.9 * root):
            return None
        return root / factor**2 - skip

    def _unpredicted(self, merge: Merge, target: float, which: str) -> None:
        """A branch whose values cannot be predicted is taken to be as large as what its last weight makes."""
        ground = self.ground
        within = [n for n in ground.shape.weighted if ground.shape.is_ancestor(n, merge.branch) or n is merge.branch]
        if merge.root is not None:
            within = [n for n in within if ground.shape.is_ancestor(merge.root, n)]
        last = max(within, key=ground.shape.index.__getitem__, default=None)
        made = ground.flow.second(last) if last is not None else None
        if last is not None and made:
            for leaf, use in ground.shape.weighted[last]:
                chosen = ground.chosen[leaf]
                if use.kind == "weight" and chosen.law is not None and not chosen.fixed:
                    why = f"ends a branch that cannot be predicted, {which}"
                    ground.give(chosen, scaled(chosen.law, math.sqrt(target / made)), why)
        ground.flow.assume(merge.branch, target)

    def _begun(self, merge: Merge) -> float | None:
        """The mean square with which the stream began since it was last normalised."""
        if merge.kind == "projection":
            return None
        for at in self.ground.shape.back(merge.skip):
            if at in self.starts:
                return self.starts[at]
        return None

    def _peers(self, merge: Merge) -> None:
        sides = [self.ground.shape.producers(o) for o in (merge.skip, merge.branch)]
        weights = [[self.ground.chosen[leaf] for _, leaf in side] for side in sides]
        if all(side and all(c.role.kind == "embedding" and c.law for c in side) for side in weights):
            return self._tables(merge, [(n, self.ground.chosen[leaf]) for side in sides for n, leaf in side])
        for side, other in ((0, 1), (1, 0)):  # a table that is added to something else: a bias by position
            if weights[side] and all(c.role.kind == "embedding" and isinstance(c.law, Normal) for c in weights[side]):
                beside = self.ground.flow.second((merge.skip, merge.branch)[other])
                for c in weights[side]:
                    if beside and not c.fixed and not self._is_tied(c):
                        why = f"a table that is added: a quarter of what is beside it, E[h^2] = {beside:.3g}"
                        self.ground.give(c, Normal(math.sqrt(0.25 * beside)), why)
                return
        if not all(side and all(c.role.kind == "weight" and c.law for c in side) for side in weights):
            return
        total = self.ground.flow.second(merge.node)
        if total and total > CLOSE:
            for operand in (merge.skip, merge.branch):
                own = self.ground.flow.second(operand)
                if own:
                    self.ground.correct(operand, own / total, "one of several that are added")

    def _is_tied(self, chosen: Chosen) -> bool:
        return any(u.kind == "weight" for u in self.ground.shape.uses[chosen.leaf])

    def _tables(self, merge: Merge, tables: list[tuple[Node, Chosen]]) -> None:
        """Tables that are added: the tokens' own as it is, positions and kinds of tokens small beside it."""

        def rank(entry: tuple[Node, Chosen]) -> tuple[bool, int]:
            node, chosen = entry
            index = node.inputs[-1]
            return not self._of_batch(index), -chosen.shape[0]

        (node, main), *rest = sorted(tables, key=rank)
        beside = self.ground.flow.second(node) or 1.0
        for _, chosen in rest:
            if not chosen.fixed and isinstance(chosen.law, Normal) and "beside" not in chosen.why:
                why = f"a table beside {main.name}: a quarter of its E[h^2] = {beside:.3g}"
                self.ground.give(chosen, Normal(math.sqrt(0.25 * beside)), why)

    def _of_batch(self, index: Node) -> bool:
        """Whether an index comes with the batch."""
        leaves = set(self.ground.traced.batch_inputs.values())
        return index in leaves or any(
            self.ground.shape.is_ancestor(leaf, index) for leaf in leaves if leaf in self.ground.shape.index
        )

    def balance(self) -> None:
        """Branches add no more to the gradient of their stream than to its values.

        A branch that averages over positions (attention, pooling) makes its values small and is scaled up for it;
        gradients that all positions share it does not make small.
        """
        if self.ground.traced.loss is None:
            return
        self._projections()
        residual = [
            m
            for m in self.ground.shape.merges
            if m.kind == "residual" and m.root is not None and m.node not in self.damped and self._alone(m)
        ]
        leaves = [n for n in self.ground.traced.parameters.values() if n in self.ground.shape.index]
        if not residual or not leaves:
            return
        flowing = self.ground.flow.cotangents(self.ground.traced.loss, leaves)
        least: dict[tuple[Node, ...], tuple[float, Merge]] = {}
        for merge in residual:
            into, out = (flowing[n].mean_square if n in flowing else None for n in (merge.root, merge.node))
            beside = [m for m in self.ground.shape.merges if m.kind == "residual" and m.root is merge.root]
            share = len(beside) * ADDED_BY_BRANCHES / self.ground.shape.streams[merge.node][1]
            if not into or not out or into / out - 1 <= share * CLOSE:
                continue
            ratio = share / (into / out - 1)
            for other in beside:
                ends = tuple(leaf for _, leaf in self.ground.shape.producers(other.branch))
                if ends not in least or ratio < least[ends][0]:
                    least[ends] = ratio, other
        for ratio, merge in least.values():  # once for a branch that is used several times
            made = self.ground.flow.second(merge.branch)
            if made:
                share = ADDED_BY_BRANCHES / self.ground.shape.streams[merge.node][1]
                why = f"ends a branch: adds {share:.3g} of the stream's gradient, less of its values"
                self.ground.correct(merge.branch, made * ratio, why)

    def _projections(self) -> None:
        """Skips with a weight and a norm of their own: what values lose by it, the gradient gains.

        A norm takes the mean away, so that one factor changes E[x^2] and another the gradient. Their quotient is
        Var(x) / E[x^2] of the stream whatever the weights: the scale that misses both by the same factor is the best.
        """
        flow, shape = self.ground.flow, self.ground.shape
        merges = [m for m in shape.merges if m.kind == "projection" and m.root is not None and self._is_normed(m)]
        leaves = [n for n in self.ground.traced.parameters.values() if n in shape.index]
        for merge in merges if leaves else ():
            flowing = flow.cotangents(self.ground.traced.loss, leaves)  # type: ignore[arg-type]
            root, out = merge.root, merge.node
            users = [u for u in shape.users[out] if u in shape.alive]
            if len(users) == 1 and users[0].op.family == "elementwise" and len(users[0].inputs) == 1:
                out = users[0]  # an activation after the sum
            if root not in flowing or out not in flowing:
                continue
            back = [flowing[n].mean_square * math.prod(flowing[n].shape) for n in (root, out)]
            values = [flow.second(n) for n in (root, out)]
            made, branch = flow.second(merge.skip), flow.second(merge.branch)
            if not all(back) or not all(values) or not made or not branch:
                continue
            grown, gained = values[1] / values[0], back[0] / back[1]  # type: ignore[operator]
            factor = 1 / math.sqrt(grown * gained)
            if max(factor, 1 / factor) < CLOSE:
                continue
            why = f"values x {grown * factor:.3g}, gradient x {gained * factor:.3g} over this norm"
            self.ground.correct(merge.skip, made * factor, why)
            self.ground.correct(merge.branch, branch * factor, f"ends a branch beside a norm: {why}")

    def _is_normed(self, merge: Merge) -> bool:
        return any(self.ground.chosen[leaf].role.kind == "scale" for _, leaf in self.ground.shape.producers(merge.skip))

    def _alone(self, merge: Merge) -> bool:
        """Whether the value at which skip and branch part is read by them alone."""
        root = merge.root
        assert root is not None
        return all(
            u is merge.node or self.ground.shape.is_ancestor(u, merge.node) for u in self.ground.shape.users[root]
        )
