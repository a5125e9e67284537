"""The ends of a plan: logits of attention, which stay at most 1, and the head of a model with a loss: small."""

from __future__ import annotations

import math

from chainrule.ir import Node
from chainrule.verbs.initialize.ground import CLOSE, Ground
from chainrule.verbs.scaling import factor_of

HEAD = 0.1  # mean square of what a model with a loss puts out


class Logits:
    """What goes into softmaxes: of attention, and of the loss."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    def attend(self, node: Node) -> None:
        """Keeps the logits of an attention at a mean square of at most 1."""
        if node.op.name == "attention":
            return self._kernel(node)
        operands = node.params.get("operands")
        if operands is not None and len(operands) == 2 and all(i in self.ground.shape.alive for i in node.inputs):
            scale = self._to_softmax(node)
            if scale is None:
                return
            made = self.ground.flow.second(node)
            if made and made * scale**2 > CLOSE:
                query = node.inputs[0]
                own = self.ground.flow.second(query)
                if own:
                    self.ground.correct(query, own / (made * scale**2), "queries: logits of E[f^2] = 1")

    def _kernel(self, node: Node) -> None:
        query, key = node.inputs[:2]
        width = int(query.shape[-1])  # type: ignore[arg-type]
        scale = node.params.get("scale") or 1 / math.sqrt(width)
        own, other = self.ground.flow.second(query), self.ground.flow.second(key)
        if own and other and scale**2 * width * own * other > CLOSE:
            self.ground.correct(query, 1 / (scale**2 * width * other), "queries: logits of E[f^2] = 1")

    def _to_softmax(self, node: Node) -> float | None:
        """What a product is multiplied by on its way into a softmax; None where it does not go there."""
        factor, at = 1.0, node
        for _ in range(12):
            users = [u for u in self.ground.shape.users[at] if u in self.ground.shape.alive]
            for user in users:
                if user.op.sums_to_one is not None:
                    return factor
            onward = [u for u in users if self.ground.shape.passed(u) is at]
            if not onward:
                return None
            (user, *_) = onward
            scale = factor_of(user)
            factor *= 1.0 if scale is None else scale
            at = user
        return None

    def head(self) -> None:
        """The last weights of a model with a loss put out little, so that the first gradient is that of a guess."""
        if self.ground.traced.loss is None or self.ground.traced.output is None:
            return
        for output in self.ground.traced.outputs[:1]:
            if output not in self.ground.shape.alive or not output.type.is_float:
                continue
            producers = self.ground.shape.producers(output)
            made = self.ground.flow.second(output)
            weights = [self.ground.chosen[leaf] for _, leaf in producers]
            if made and made > HEAD and weights and all(c.role.kind == "weight" for c in weights):
                self.ground.correct(output, HEAD, "the head")
