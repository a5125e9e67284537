"""Slips of the chain rule: a path, a factor or a local derivative gone wrong on one edge of the computation.

With G_v the cotangent of a value v and L_u the linear map from a cotangent of u to one of the variable, the answer is a
sum over edges, and each edge u -> v contributes L_u(J_uv(G_v)). Forgetting the path takes that away; leaving the local
factor out makes it L_u(G_v); stopping too early makes the answer G_v; leaving out everything above v makes it L_v(1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chainrule.errors import ChainruleError
from chainrule.interpreters.differentiate import expand_composites, vjp, vjp_all
from chainrule.interpreters.simplify import simplify
from chainrule.ir import Node, apply, substitute_nodes, toposort, variable
from chainrule.ops.movement import ones
from chainrule.verbs.slip_breaks import breaks
from chainrule.verbs.slip_question import Candidate, Question, shown

_MOST_EDGES = 60


@dataclass(frozen=True)
class Path:
    """What one edge contributes to the answer."""

    name: str
    contribution: Node


class Chain:
    """The edges of a question's function between the variable and the output."""

    def __init__(self, question: Question, parts: bool) -> None:
        self.question = question
        self.output = expand_composites([question.output], keep_named=False)[0] if parts else question.output
        self.target, self.seed = question.target, question.seed
        (self.total,), self.cotangents = vjp_all([self.output], [self.seed], [self.target])
        self._linear: dict[Node, tuple[Node, Node] | None] = {}
        order = toposort([self.output])
        self.active: set[Node] = set()
        for node in order:
            if node is self.target or any(i in self.active for i in node.inputs):
                self.active.add(node)
        self.order = [n for n in order if n in self.active and getattr(n.type, "is_float", False)]

    def back(self, node: Node, cotangent: Node) -> Node | None:
        """What a cotangent of ``node`` makes at the variable."""
        if node is self.target:
            return cotangent
        if node not in self._linear:
            seed = variable(f"seed of {len(self._linear)}", node.type)
            (moved,) = vjp([node], [seed], [self.target])
            self._linear[node] = None if moved is None else (seed, moved)
        found = self._linear[node]
        return None if found is None else substitute_nodes([found[1]], {found[0]: cotangent})[0]

    def edges(self) -> Iterator[tuple[Node, Node, Node, Node, Node]]:
        """(u, v, cotangent of v, a leaf that stands for u, v of that leaf) of every edge."""
        count = 0
        for v in self.order:
            g = self.cotangents.get(v)
            if g is None:
                continue
            for k, u in enumerate(v.inputs):
                if u in self.active and count < _MOST_EDGES:
                    count += 1
                    leaf = variable(f"operand {count}", u.type)
                    yield (
                        u,
                        v,
                        g,
                        leaf,
                        apply(v.op, *(leaf if j == k else i for j, i in enumerate(v.inputs)), **v.params),
                    )


def paths(chain: Chain) -> list[Path]:
    """The contribution of every edge, and of every quantity."""
    found = []
    for u, v, g, leaf, local in chain.edges():
        (moved,) = vjp([local], [g], [leaf])
        if moved is None:
            continue
        whole = chain.back(u, substitute_nodes([moved], {leaf: u})[0])
        if whole is not None:
            name = chain.question.name
            found.append(Path(f"{name(u)} in {chain.question.of if v is chain.output else name(v)}", whole))
    for v in chain.order:  # all paths through one quantity
        g = chain.cotangents.get(v)
        if g is not None and v is not chain.output and v is not chain.target:
            whole = chain.back(v, g)
            if whole is not None:
                found.append(Path(chain.question.name(v), whole))
    return found


def slipped(chain: Chain) -> Iterator[Candidate]:
    """Answers with one local derivative left out or wrong, or the chain cut at one place."""
    question, total = chain.question, chain.total
    if total is None:
        return
    name, symbol = question.name, question.symbol
    for v in chain.order:
        if v is chain.output or v is chain.target:
            continue
        g = chain.cotangents.get(v)
        if g is not None:
            yield Candidate(
                "missing inner derivative",
                f"the chain stops at {name(v)}: this is {symbol(chain.output, v)}, "
                f"{symbol(v, chain.target)} is left out",
                g,
            )
        alone = chain.back(v, ones(v.shape, v.type.dtype))
        if alone is not None:
            above = "" if v.shape == () else ", summed over its elements"
            yield Candidate(
                "missing upstream term",
                f"{symbol(question.output, v)} is left out: this is {symbol(v, chain.target)}{above}",
                alone,
            )
    for u, v, g, leaf, local in chain.edges():
        if u.shape != v.shape:
            continue
        try:
            (moved,) = vjp([local], [g], [leaf])
            (derivative,) = vjp([local], [ones(v.shape, v.type.dtype)], [leaf])
        except ChainruleError:
            continue
        if moved is None or derivative is None:
            continue
        here = {leaf: u}
        contribution = chain.back(u, substitute_nodes([moved], here)[0])
        if contribution is None:
            continue
        rest = total - contribution

        def instead(cotangent: Node, u: Node = u, rest: Node = rest) -> Node:
            moved = chain.back(u, cotangent)
            return rest if moved is None else rest + moved

        factor = shown(simplify(substitute_nodes([derivative], here)[0]), question.names)
        if not any("name" in n.params for n in toposort([derivative])) and derivative.inputs and u is not chain.target:
            kind, what = "normalisation", f"the factor {symbol(v, u)} = {factor} is left out of the chain"
        elif u is chain.target:
            kind, what = "missing inner derivative", f"{symbol(v, u)} = {factor} is left out of the chain"
        else:
            kind, what = "missing upstream term", f"the factor {symbol(v, u)} = {factor} is left out of the chain"
        yield Candidate(kind, what, instead(g))
        if v.op.name == "softmax":
            v_here = substitute_nodes([local], here)[0]
            sentence = "in softmax's p*(g - sum(g*p)); only the diagonal p*(1 - p) of its Jacobian is taken"
            yield Candidate("forgotten broadcast sum", sentence, instead(g * v_here * (1.0 - v_here)))
        if v.op.family != "elementwise":
            continue
        for slip, sentence, wrong in _wrong_local(leaf, local, derivative):
            at = substitute_nodes([wrong], here)[0]
            if at.shape == v.shape:
                said = sentence.replace(leaf.params["name"], name(u))
                found = f"{symbol(v, u)} = {factor} is taken as {shown(at, question.names)} ({said})"
                yield Candidate(slip, found, instead(g * at))


def _wrong_local(leaf: Node, value: Node, derivative: Node) -> Iterator[tuple[str, str, Node]]:
    """What people write for the derivative of an elementwise function."""
    short = simplify(derivative)
    if len(value.inputs) == 1:  # of a product or a sum nobody takes the value
        yield "value instead of derivative", "the value itself", value
    if len(value.inputs) == 2 and value.op.name == "pow" and value.inputs[0] is leaf:
        exponent = value.inputs[1]
        yield "power rule", "the exponent is not lowered", exponent * value
        yield "power rule", "the exponent does not come down as a factor", leaf ** (exponent - 1.0)
        yield "power rule", "the exponent is lowered twice", exponent * leaf ** (exponent - 2.0)
        yield "power rule", "the lowered exponent comes down as a factor", (exponent - 1.0) * leaf ** (exponent - 1.0)
        yield "power rule", "the exponent is raised", exponent * leaf ** (exponent + 1.0)
    if value.op.name == "div" and len(value.inputs) == 2 and value.inputs[1] is leaf:
        yield "power rule", "the denominator is not squared", -value
        yield "power rule", "the numerator is left out", -1.0 / leaf**2.0
    if value.op.name == "sqrt":
        yield "power rule", "the exponent 1/2 is not lowered", value / 2.0
        yield "power rule", "the root is left out", 0.5 / leaf
    yield from ((c.kind, c.sentence, c.node) for c in breaks(short, limit=12) if c.kind != "forgotten path")
    if len(value.inputs) > 1:
        return
    for form in dict.fromkeys((derivative, short)):
        if leaf in toposort([form]):
            (at_value,) = substitute_nodes([form], {leaf: value}) if value.shape == leaf.shape else (form,)
            yield "value instead of derivative", "taken at the value instead of the argument", at_value
        if value in toposort([form]):
            (at_argument,) = substitute_nodes([form], {value: leaf})
            yield "value instead of derivative", "taken at the argument instead of the value", at_argument
