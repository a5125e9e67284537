"""What an autograd function keeps between its passes, decided for a formula: the passes as graphs, before any text.

The decision needs sizes. A formula has names for them, so typical ones are assumed and said: dimensions that are never
the last of a variable count samples (many), the others features (few). What is kept may not be large against inputs
and output: attention then keeps one number per row instead of its matrix of scores; products of a layer are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chainrule.backends.source.lower import stable
from chainrule.errors import ChainruleError
from chainrule.interpreters.cost import multiplications, nbytes
from chainrule.interpreters.residuals import BALANCE, choose, elements
from chainrule.ir import Dim, Graph, Node, toposort
from chainrule.verbs.expression import resolve
from chainrule.verbs.joint_graph import joint_graph, open_composites
from chainrule.verbs.named_program import NamedProgram, free_name

SAMPLES, FEATURES = 4096, 128
# Kept values, inputs and outputs among them, against inputs and outputs: a layer keeps about twice as much.
_MOST_KEPT = 4
ELEMENT = 4  # bytes: float32


@dataclass(frozen=True)
class ResidualPlan:
    """Both passes of a formula and what goes from one to the other.

    Attributes:
        inputs: of the forward pass, in calling order. output: the formula. cotangent: what comes back.
        extra: values that the forward pass returns besides, because the backward pass reads them.
        kept: everything that is saved: inputs, output, extra. recomputed: what the backward pass computes again.
        gradients: one per input, None where there is none.
        again: extra value -> (its cotangent, gradients), for derivatives of the backward pass; None where the kept
            values do not suffice for it.
        names: node -> the user's name. ends: cotangent -> its forward value. sizes: as assumed for the choice.
    """

    inputs: tuple[Node, ...]
    output: Node
    cotangent: Node
    extra: tuple[Node, ...]
    kept: tuple[Node, ...]
    recomputed: tuple[Node, ...]
    gradients: tuple[Node | None, ...]
    again: Mapping[Node, tuple[Node, tuple[Node | None, ...]]] | None
    names: Mapping[Node, str]
    ends: Mapping[Node, Node]
    sizes: Mapping[str, int]
    balance: float

    @property
    def kept_elements(self) -> int | Dim:
        """Bytes of floating-point numbers kept, over :data:`ELEMENT`'s size in the graph's own dtype."""
        return nbytes(self.kept)

    def multiplications(self) -> int | Dim:
        """Of the backward pass, what it computes again among them."""
        at_hand = {*self.kept, self.cotangent}
        return multiplications([g for g in self.gradients if g is not None], at_hand.__contains__)


def assumed_sizes(inputs: Sequence[Node], given: Mapping[str, int] | None = None) -> dict[str, int]:
    """A number for every named dimension: as given, else by what it counts.

    Raises:
        ChainruleError: a size is given for a name that no variable has.
    """
    named = {name for i in inputs for s in i.shape if isinstance(s, Dim) for name in s.names}
    last = {name for i in inputs if i.shape and isinstance(i.shape[-1], Dim) for name in i.shape[-1].names}
    unknown = [name for name in given or {} if name not in named]
    if unknown:
        raise ChainruleError(
            f"a size is given for {unknown[0]!r}, which is no dimension of a variable",
            given=unknown[0],
            required=f"one of {', '.join(sorted(named))}" if named else "a formula with named dimensions",
        )
    return {n: (given or {}).get(n, FEATURES if n in last else SAMPLES) for n in sorted(named)}


def residual_plan(
    program: NamedProgram,
    wrt: Sequence[str],
    sizes: Mapping[str, int] | None = None,
    balance: float = BALANCE,
) -> ResidualPlan:
    """The passes of a program and the values kept between them.

    Args:
        program: its leaves are the inputs. wrt: variables that get a gradient.
        sizes: numbers for named dimensions (those left out are assumed). balance: operations worth one byte.

    Raises:
        ChainruleError: a derivative by something that is no variable, or an unknown size.
    """
    inputs = program.leaves
    for name in wrt:
        if name not in program.variables:
            raise ChainruleError(
                f"an autograd function has gradients of its inputs, and {name!r} is computed from them",
                given=name,
                required=f"wrt among {', '.join(program.variables)}",
            )
    numbers = assumed_sizes(inputs, sizes)
    output, names = _stable_program(program)
    seed = free_name("g", Graph(inputs, (), names={n: i for i, n in names.items()}))
    joint = joint_graph(output, inputs, wrt, seed, names, numbers)
    order = [w for w in wrt if joint.gradients[w] is not None]
    roots = [joint.output, *(joint.gradients[w] for w in order), *joint.names, *joint.ends, *joint.ends.values()]
    opened = open_composites(roots, numbers)  # type: ignore[arg-type]
    image = dict(zip(roots, _in_the_limit(opened), strict=True))
    output = image[joint.output]
    gradients = {w: image[joint.gradients[w]] for w in order}  # type: ignore[index]
    limit = _MOST_KEPT * ELEMENT * sum(elements(n, numbers) for n in (*inputs, output))
    backward = list(gradients.values())
    chosen = choose([output], backward, {joint.cotangent}, numbers, ELEMENT, balance, limit)
    kept = sorted(chosen.kept, key=lambda n: inputs.index(n) if n in inputs else len(inputs) + (n is not output))
    extra = tuple(n for n in kept if n.inputs and n is not output)
    names = {image[n]: name for n, name in joint.names.items()}
    return ResidualPlan(
        inputs,
        output,
        joint.cotangent,
        extra,
        tuple(kept),
        chosen.recomputed,
        tuple(gradients.get(i.params["name"]) for i in inputs),
        _again(extra, kept, inputs, wrt, names, numbers),
        names,
        {image[n]: image[f] for n, f in joint.ends.items()},
        numbers,
        chosen.balance,
    )


def _stable_program(program: NamedProgram) -> tuple[Node, dict[Node, str]]:
    """The formula in its stable form, and node -> the user's name."""
    full = {n: resolve(program.symbol[n], program.definitions) for n in program.order}
    graph = stable(Graph(program.leaves, tuple(full.values())))
    names: dict[Node, str] = {}
    for name, node in zip(full, graph.outputs, strict=True):
        if node.inputs and name != program.output:
            names.setdefault(node, name)
    return graph.outputs[-1], names


def _in_the_limit(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Stable forms of derivatives: a norm's derivative at 0 is 0."""
    return stable(Graph((), tuple(nodes)), derivative=True).outputs


def _again(
    extra: Sequence[Node],
    kept: Sequence[Node],
    inputs: Sequence[Node],
    wrt: Sequence[str],
    names: Mapping[Node, str],
    sizes: Mapping[str, int],
) -> dict[Node, tuple[Node, tuple[Node | None, ...]]] | None:
    """The vector-Jacobian products of the extra values, or None where they need what is not kept."""
    found: dict[Node, tuple[Node, tuple[Node | None, ...]]] = {}
    for node in extra:
        if not node.type.is_float:
            continue
        seed = free_name(f"g{len(found) + 1}", Graph(tuple(inputs), ()))
        joint = joint_graph(node, inputs, wrt, seed, names, sizes)
        present = [w for w in wrt if joint.gradients[w] is not None]
        opened = _in_the_limit(open_composites([joint.gradients[w] for w in present], sizes))  # type: ignore[misc]
        at_hand = {*kept, joint.cotangent}
        reached = toposort(opened, at_hand.__contains__)
        if any(n.is_leaf and "name" in n.params and n not in at_hand for n in reached):
            return None
        by = dict(zip(present, opened, strict=True))
        found[node] = joint.cotangent, tuple(by.get(i.params["name"]) for i in inputs)
    return found
