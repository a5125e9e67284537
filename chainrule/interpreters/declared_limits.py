"""Derivatives where their printed form is 0/0: ``x / norm(x)`` at 0, whose value is declared to be 0."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.ir import Node, apply, rebuild
from chainrule.ops.stable import LIMIT


def with_limits(derivatives: Sequence[Node]) -> list[Node]:
    """Derivatives for evaluation, with the limits that ops declare (``Op.stable``); their printed form stays.

    >>> import numpy as np
    >>> from chainrule.frontends.formula import parse
    >>> from chainrule.interpreters.evaluate import evaluate
    >>> slope = parse("x / norm(x)", {"x": 2})
    >>> evaluate(with_limits(slope.outputs), {slope.inputs[0]: np.zeros(2)})[0]
    array([0., 0.])
    """

    def replace(node: Node, inputs: tuple[Node, ...]) -> Node:
        new = node if inputs == node.inputs else apply(node.op, *inputs, **node.params)
        rules = [r.rule for r in new.op.stable if r.name == LIMIT]
        return next((f for rule in rules if (f := rule(new)) is not None and f.type == new.type), new)

    image = rebuild(derivatives, replace)
    return [image[d] for d in derivatives]
