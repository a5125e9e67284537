"""Variances of a formula: first and second moments of every value, as formulas where closed forms exist.

Reads ``Op.moments``: each op's rule maps the moments of its operands to its own; an op without a rule is expanded if
it is a composite and is otherwise unknown, and so is everything after it: nothing passes in silence. Models, both
passes of them, are the matter of :mod:`chainrule.interpreters.fields`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from chainrule.interpreters.pointwise_moments import fused
from chainrule.ir import Node, apply, rebuild, toposort
from chainrule.ir.moments import UNKNOWN, Moments


def forward(outputs: Sequence[Node], given: Mapping[Node, Moments], strict: bool = False) -> dict[Node, Moments]:
    """The moments of every node that ``outputs`` need, from those of the leaves.

    Leaves that are not given are unknown; constants are what they are. Composites are expanded on the way, so ask
    :func:`expanded` for the program whose nodes carry moments. ``strict``: operands that share a source and are not
    known to be uncorrelated make a value unknown; otherwise they are taken as independent (approximate).
    """
    states: dict[Node, Moments] = dict(given)
    for node in toposort(outputs, stop=lambda n: n in states):
        if node in states:
            continue
        states[node] = _state(node, states, strict)
    return states


def _state(node: Node, states: Mapping[Node, Moments], strict: bool) -> Moments:
    if node.number is not None:
        value = float(node.number)
        return Moments(value, value**2, law="given", why="a constant")
    if "literal" in node.params:
        array = np.asarray(node.params["literal"].array, dtype=float)
        return Moments(array, array**2, law="given", why="a constant")
    if "size" in node.params and node.is_leaf and node.type.rank == 0:
        return Moments(node, node * node, law="given", why="a dimension")
    inputs = [states[i] for i in node.inputs]
    if node.op.moments is None or not inputs:
        sources = frozenset().union(*(s.sources for s in inputs))
        return replace(UNKNOWN, sources=sources, why=f"no moment rule for {node.op.name}")
    found = node.op.moments.forward(inputs, node)
    random = [s for s in inputs if s.law != "given"]
    shared = _shared(random)
    if node.op.family == "elementwise" and random:
        found = _of_elements(node, found, random, states, strict)
    elif found.independent and found is not inputs[0] and any(node.type.numel != i.type.numel for i in node.inputs):
        found = replace(found, independent=False)  # elements are repeated
    if strict and shared and found.coupled and found.taken is None:
        twice = ", ".join(sorted(shared))
        return replace(UNKNOWN, sources=found.sources, why=f"it depends on {twice} twice, and no law gives the product")
    return found


def _of_elements(
    node: Node, found: Moments, random: Sequence[Moments], states: Mapping[Node, Moments], strict: bool
) -> Moments:
    """What an elementwise rule found, or one quadrature of the whole function where the rule needs independence."""
    certain = len(random) == 1 and random[0].law == "normal" and found.known
    if found.law != "given" and not certain and (found.kind != "exact" or found.mean is None):
        whole = fused(node, states, any_law=not strict)
        if whole is not None and (whole.known or (strict and (found.known or not found.why))):
            return whole
    aligned = len(random) == 1 or not _shared(random)
    shapes = all(i.shape == node.shape for i in node.inputs if states[i].law != "given")
    independent = aligned and shapes and all(s.independent for s in random)
    if found.law == "uniform":  # the bounds were those of the operand
        found = replace(found, law="symmetric" if found.odd else "any", bounds=None)
    return found if found.independent == independent else replace(found, independent=independent)


def _shared(random: Sequence[Moments]) -> frozenset[str]:
    """Sources of more than one operand."""
    seen: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    for state in random:
        shared, seen = shared | (seen & state.sources), seen | state.sources
    return shared


def expanded(outputs: Sequence[Node]) -> dict[Node, Node]:
    """node -> node with composites that have no moment rule replaced by their expansions."""

    def expand(node: Node, inputs: tuple[Node, ...]) -> Node:
        same = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        if node.op.expansion is None or node.op.moments is not None:
            return same
        root = node.op.expansion(*inputs, **node.params)
        return expanded([root])[root]

    return rebuild(outputs, expand)
