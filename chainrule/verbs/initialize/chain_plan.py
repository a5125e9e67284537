"""Plain chains of a plan: weights with one activation between them, isometric where independent ones would not do.

The first weight brings its input to the size at which the chain runs, the others keep that size; both passes then keep
every direction of the signal, not only its mean square. See ``gains`` for the gains.
"""

from __future__ import annotations

import math

import numpy as np

from chainrule.ir import Node
from chainrule.verbs.initialize.gains import (
    Phi,
    averages,
    critical_point,
    is_critical,
    is_linear,
    is_odd,
    mirrored,
    stable_size,
)
from chainrule.verbs.initialize.graph_roles import Use
from chainrule.verbs.initialize.ground import Chosen, Ground
from chainrule.verbs.initialize.laws import Normal, Orthogonal, scaled
from chainrule.verbs.initialize.structure import Link

DEEP = 8  # activations in a chain from which on it is made isometric
LOSS = 1.3  # factor on the mean square of a gradient over a whole chain from which on it is made isometric too
SMALL = 0.1  # mean square at which odd activations are nearly linear
SMALL_OF_PIXELS = 0.03  # the same where the mean square differs from pixel to pixel
TOGETHER = 10.0  # mean square times activations: what a chain may deviate from a linear one in all
LINEAR = 0.25  # mean square of a chain that is linear anyway


class Chains:
    """The plain chains of a program.

    ``critical``: all of them at their critical point, with the biases it needs; a chain whose activation has none at
    the mean square at which it would run is planned as otherwise.
    """

    def __init__(self, ground: Ground, critical: bool) -> None:
        self.ground, self.critical = ground, critical
        self.links = {link.after: (link, chain) for chain in ground.shape.chains for link in chain}
        self.begins = {chain[0].node: chain for chain in ground.shape.chains}
        self._points: dict[Node, bool] = {}
        self._mirrors: dict[Node, bool] = {}  # by where a chain begins: asked for every link of it

    def choose(self, chosen: Chosen, node: Node, use: Use) -> bool:
        """Chooses a weight if it is in a chain that is to be isometric; whether it did."""
        link = self.links.get(node)
        if link is not None and self.isometric(link[1]):
            self.go_on(chosen, node, use, *link)
            return True
        if node in self.begins and self.isometric(self.begins[node]):
            self.begin(chosen, node, use)
            return True
        return False

    def isometric(self, chain: tuple[Link, ...]) -> bool:
        """Whether independent weights would not do: the chain is deep, or it loses the gradient."""
        if self.critical or len(chain) >= DEEP:
            return True
        lost = 0.0
        for link in chain:
            (_, use), *_ = self.ground.shape.weighted[link.node]
            if use.layout is None or use.layout.kernel:
                return False  # short stacks of convolutions keep their kernels
            found = averages(link.phi, 1.0)
            if "batch_norm" in link.norm:
                lost += math.log(math.pi / (math.pi - 1))  # Yang et al. 2019, for relu
            elif not link.norm and found.finite and found.slope > 0:
                lost += math.log(found.slope / found.second)
        return abs(lost) > math.log(LOSS)

    def _at_critical(self, chain: tuple[Link, ...]) -> bool:
        """Whether a critical point is asked for and there is one."""
        if not self.critical:
            return False
        begin, phi = chain[0].node, chain[0].phi
        if begin not in self._points:
            q = 1.0 if chain[0].norm or self._scale_free(phi) else stable_size(phi, len(chain))
            self._points[begin] = is_critical(phi, q)
        return self._points[begin]

    def _size(self, phi: Phi, chain: tuple[Link, ...], kernels: bool) -> float:
        """The mean square at which a chain of this function runs."""
        if chain[0].norm:
            return 1.0
        if self._at_critical(chain):
            return 1.0 if self._scale_free(phi) else stable_size(phi, len(chain))
        if is_linear(phi):
            return LINEAR
        if not is_odd(phi) and self._scale_free(phi):
            return 1.0
        return min(SMALL_OF_PIXELS if kernels else SMALL, TOGETHER / len(chain))

    def begin(self, chosen: Chosen, node: Node, use: Use) -> None:
        chain = self.begins[node]
        phi, layout = chain[0].phi, self.ground.layout(chosen, use)
        pairs = not self._at_critical(chain) and not is_odd(phi) and self._can_mirror(chain)
        q = self._size(mirrored(phi) if pairs else phi, chain, layout is not None and bool(layout.kernel))
        if layout is None:
            self.ground.flow.set_weight(chosen.leaf, chosen.name, 1.0)
            made = self.ground.flow.second(node) or float(max(use.fans[0], 1))
            self.ground.give(chosen, Normal(math.sqrt(q / made)), f"begins a chain of {len(chain)}: E[f^2] = {q:g}")
        else:
            read = self.ground.read(node, use)
            law = Orthogonal(math.sqrt(q / read), layout, chosen.shape, "out" if pairs else "")
            self.ground.give(chosen, law, f"begins a chain of {len(chain)} activations: E[f^2] = {q:g}{_pairs(pairs)}")
        self.ground.flow.force(node, q, chosen.name)
        factor = self._scaled(chain[0])
        if factor != 1.0 and chosen.law is not None:  # phi reads a multiple of it
            self.ground.give(chosen, scaled(chosen.law, 1 / factor), f"{chosen.why} where phi reads it")
            self.ground.flow.force(node, q / factor**2, chosen.name)

    def _scaled(self, link: Link) -> float:
        """By what a value is multiplied before phi reads it."""
        made, read = self.ground.flow.second(link.node), self.ground.flow.second(link.argument)
        return math.sqrt(read / made) if made and read and not link.norm else 1.0

    def _scale_free(self, phi: Phi) -> bool:
        """Whether phi(c u) = c phi(u) for c > 0, as of relu: every mean square is then as good."""
        x = np.array([-2.0, -0.7, 0.4, 1.9])
        return bool(np.allclose(phi(3.0 * x), 3.0 * phi(x), rtol=1e-6, atol=0))

    def _can_mirror(self, chain: tuple[Link, ...]) -> bool:
        """Whether every layer of the chain has a pair of units, and pairs of opposite sign say something."""
        begin = chain[0].node
        if begin not in self._mirrors:
            self._mirrors[begin] = self._mirrorable(chain)
        return self._mirrors[begin]

    def _mirrorable(self, chain: tuple[Link, ...]) -> bool:
        for link in chain:
            (leaf, use), *_ = self.ground.shape.weighted[link.node]
            layout = self.ground.layout(self.ground.chosen[leaf], use)
            if (
                layout is None
                or layout.groups > 1
                or layout.batch
                or layout.sizes(self.ground.chosen[leaf].shape)[0] < 2
            ):
                return False
            if not averages(mirrored(link.phi), SMALL).finite:
                return False
        (leaf, use), *_ = self.ground.shape.weighted[chain[-1].after]
        layout = self.ground.layout(self.ground.chosen[leaf], use)
        return layout is not None and layout.groups == 1 and not layout.batch

    def go_on(self, chosen: Chosen, node: Node, use: Use, link: Link, chain: tuple[Link, ...]) -> None:
        q = self.ground.flow.second(link.argument if link.norm else link.node) or 1.0
        layout = self.ground.layout(chosen, use)
        factor, pairs = self._scaled(link), False
        phi: Phi = link.phi if factor == 1.0 else lambda u: link.phi(factor * u)
        critical = self._at_critical(chain)
        if not critical and not is_odd(phi) and self._can_mirror(chain):
            phi, pairs = mirrored(phi), True
        found = averages(phi, q)
        last = link is chain[-1]
        if layout is None or not found.finite:
            self.ground.flow.set_weight(chosen.leaf, chosen.name, 1.0)
            made = self.ground.flow.second(node) or float(max(use.fans[0], 1))
            return self.ground.give(chosen, Normal(math.sqrt(q / made)), f"in a chain: keeps E[f^2] = {q:.3g}")
        bias = 0.0
        if critical and not last:
            gain, bias = critical_point(phi, q)
            why = f"critical: gain^2 E[phi'^2] = 1 at E[f^2] = {q:.3g}"
        else:
            gain = math.sqrt(q / found.second)
            why = f"keeps E[f^2] = {q:.3g}; gain^2 E[phi'^2] = {gain**2 * found.slope:.4f}"
            if self.critical and not critical:
                why = f"no critical point of this activation at a small E[f^2], planned as auto does: {why}"
        sides = ("in" if last else "both") if pairs else ""
        self.ground.give(chosen, Orthogonal(gain, layout, chosen.shape, sides), why + _pairs(pairs))
        self.ground.flow.force(node, gain**2 * found.second + bias, chosen.name)
        if bias:
            self._bias_beside(node, bias)
        return None

    def _bias_beside(self, node: Node, variance: float) -> None:
        for other in self.ground.chosen.values():
            uses = self.ground.shape.uses[other.leaf]
            beside = [u for u in uses if u.kind == "bias" and (u.node is node or node in u.node.inputs)]
            if beside and not other.fixed:
                other.law, other.why = Normal(math.sqrt(variance)), "the variance that the critical point needs"


def _pairs(yes: bool) -> str:
    return "; units in pairs u, -u, whose activations differ by an odd function" if yes else ""
