"""A program cut at its names: what ``derive`` works on, whatever it was given.

A formula or assignments, an expression, a graph or a torch module all become named quantities, each an expression in
the names before it. A single formula of scalars is cut into its elementary operations.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from chainrule.errors import ChainruleError, FormulaError, MissingExtraError
from chainrule.frontends.formula import parse_program
from chainrule.frontends.formula.functions import known_functions
from chainrule.interpreters.linearize import jacobian
from chainrule.ir import Graph, Node, apply, rebuild, toposort, variable
from chainrule.verbs.defined import refuse_division_by_zero, refuse_unused
from chainrule.verbs.expression import Expression

MAX_PARTS = 60  # a longer single formula is derived as one step; nobody reads more


class NamedProgram:
    """A program cut at its names.

    Args:
        named: (name, node) in order of computation, the output last.
        variables: the leaves it is made of.
    """

    def __init__(self, named: Sequence[tuple[str, Node]], variables: Sequence[Node]) -> None:
        self.order = [name for name, _ in named]
        self.node = dict(named)
        self.variables = {v.params["name"]: v for v in variables}
        self.output = self.order[-1]
        first: dict[Node, str] = {}
        for name, node in named:
            if node.inputs:
                first.setdefault(node, name)
        symbols = {node: variable(name, node.type) for node, name in first.items()}
        self.symbol = {name: variable(name, node.type) for name, node in named} | self.variables
        self.local: dict[str, Node] = {}
        for name, node in named:
            if not node.inputs or first[node] != name:  # a variable, or another name of the same value
                self.local[name] = symbols.get(node, node)
                continue
            inside = rebuild(node.inputs, image=symbols)
            self.local[name] = apply(node.op, *(inside[i] for i in node.inputs), **node.params)
        self._children: dict[str, list[str]] = {}
        self.parents = {
            name: [n.params["name"] for n in toposort([local]) if n.is_leaf and "name" in n.params]
            for name, local in self.local.items()
        }
        for name in self.order:
            for parent in self.parents[name]:
                if parent != name:
                    self._children.setdefault(parent, []).append(name)
        self.definitions = {self.symbol[n]: self.local[n] for n in self.order if self.local[n] is not self.symbol[n]}
        self.leaves = tuple(variables)
        self._jacobians: dict[tuple[str, str, str], Node | None] = {}

    @property
    def symbols(self) -> dict[Node, Node]:
        """What a name means, in names -> the name."""
        return {local: self.symbol[name] for name, local in reversed(list(self.local.items())) if local.inputs}

    def without(self, name: str) -> dict[Node, Node]:
        """The definitions with ``name`` cut free of what it means, as a variable to derive by is."""
        return {s: n for s, n in self.definitions.items() if s is not self.symbol[name]}

    def local_jacobian(self, child: str, parent: str, layout: str) -> Node | None:
        """The derivative of one named quantity by one that it reads directly; None where none flows.

        Raises:
            UnsupportedOpError: an op on the way has no derivative, or none in matrix form.
        """
        key = child, parent, layout
        if key not in self._jacobians:
            self._jacobians[key] = jacobian(self.local[child], self.symbol[parent], layout)
        return self._jacobians[key]

    def children(self, name: str) -> list[str]:
        """Named quantities that read ``name`` directly, in order."""
        return self._children.get(name, [])

    def ancestors(self, name: str) -> set[str]:
        """Everything that ``name`` depends on, itself included."""
        found, stack = {name}, [name]
        while stack:
            for parent in self.parents.get(stack.pop(), []):
                if parent not in found:
                    found.add(parent)
                    stack.append(parent)
        return found

    def depends_on(self, name: str) -> set[str]:
        """Everything that depends on ``name``, itself included."""
        found = {name}
        for n in self.order:
            if any(p in found for p in self.parents[n]):
                found.add(n)
        return found


# ---- from what derive is given -----------------------------------------------------------------------------
def program_of(
    source: Any, args: Sequence[Any], shapes: Mapping[str, Any] | None, split: bool
) -> tuple[list[tuple[str, Node]], list[Node], list[str]]:
    """Named quantities in order of computation, variables, and the names of those to derive by.

    Args:
        source, args, shapes: as of :func:`chainrule.derive`. split: cut a single formula of scalars into its parts.
    """
    if isinstance(source, Expression):
        return _with_targets(split_formula(source.full, "y"), source.graph.inputs)
    if isinstance(source, Graph):
        named = [(n, node) for n, node in source.names.items() if node.inputs and node not in source.outputs]
        return _with_targets([*named, (source.output_names[0] or "y", source.outputs[0])], source.inputs)
    if isinstance(source, str):
        if args:
            raise ChainruleError("a formula takes no further positional arguments", given=repr(args))
        parsed = parse_program(source, shapes)
        refuse_unused(parsed, shapes or {})
        refuse_division_by_zero(parsed)
        statements = [(s.name, s.node) for s in parsed.statements if s.name]
        last = parsed.statements[-1]
        if not last.name:
            statements.append((free_name("y", parsed.graph), last.node))
        scalar = all(n.type.rank == 0 for n in toposort([last.node]) if n.is_leaf)
        if split and len(statements) == 1 and scalar:  # a tensor formula is one step: its parts have names if wanted
            parts = split_formula(statements[0][1], statements[0][0])
            statements = parts if len(parts) <= MAX_PARTS else statements
        return _with_targets(statements, parsed.graph.inputs)
    try:  # models need torch, formulas must work without
        from chainrule.verbs.modules import module_program
    except ModuleNotFoundError as error:
        raise MissingExtraError("derive of a model", error.name or "torch", "torch") from error
    return module_program(source, args)


def is_single_formula(source: Any, shapes: Mapping[str, Any] | None) -> bool:
    """Whether the source names no parts of its own: one formula, not assignments."""
    if isinstance(source, str):
        return len(parse_program(source, shapes).statements) == 1
    return isinstance(source, Expression)


def _with_targets(
    named: list[tuple[str, Node]], inputs: Sequence[Node]
) -> tuple[list[tuple[str, Node]], list[Node], list[str]]:
    return named, list(inputs), [i.params["name"] for i in inputs if i.type.is_float]


def identifier_of(path: str) -> str:
    """A dotted path as the name that its parameter has: ``0.weight`` -> ``weight_0``, ``a.0.b`` -> ``a_0_b``."""
    parts = path.split(".")
    numbers = next((k for k, part in enumerate(parts) if not part[:1].isdigit()), len(parts))
    return "_".join([*parts[numbers:], *parts[:numbers]])


def free_name(name: str, graph: Graph) -> str:
    """``name``, or ``name_`` and so on, that the graph does not use."""
    taken = {i.params["name"] for i in graph.inputs} | set(graph.names)
    while name in taken:
        name += "_"
    return name


def refuse_cotangent(name: Any, program: NamedProgram) -> None:
    """Looks for a name of a cotangent that is none, or that means something else: the answer would mix the two.

    Raises:
        FormulaError: it is not free.
    """
    taken = {*program.variables, *program.order}
    free = "g"
    while free in taken:
        free += "_"
    if not isinstance(name, str) or not name.isidentifier() or name in known_functions():
        what, required = f"{name!r} cannot name a cotangent", "a name that is no function of the language"
    elif name in taken:
        what, required = f"the cotangent is called {name!r}, as a quantity of the formula is", "a name of its own"
    else:
        return
    raise FormulaError(what, given=f"cotangent={name!r}", required=required, instead=f'cotangent="{free}"')


def split_formula(root: Node, name: str) -> list[tuple[str, Node]]:
    """A single formula as elementary assignments f1, f2, ...: every operation that is not constant, in order.

    Movement and products with numbers stay inside the expression that uses them, so the steps are the chapter's.
    """
    varying: set[Node] = set()
    for n in toposort([root]):
        if (n.is_leaf and "name" in n.params) or any(i in varying for i in n.inputs):
            varying.add(n)
    order = [n for n in toposort([root]) if n.inputs and n in varying]
    taken = {n.params["name"] for n in toposort([root]) if "name" in n.params} | {name}
    named: list[tuple[str, Node]] = []
    for node in order:
        if node is root or node.op.family == "linear" or not node.type.is_float:  # a condition is no step
            continue
        fresh = f"f{len(named) + 1}"
        while fresh in taken:
            fresh += "_"
        named.append((fresh, node))
    return [*named, (name, root)]


def target_names(wrt: str | Sequence[str], program: NamedProgram) -> list[str]:
    """The names to derive by, as a list.

    Raises:
        FormulaError: one that the program does not have, or one twice; suggests the nearest.
    """
    if isinstance(wrt, str):
        names = [w.strip() for w in wrt.split(",")]
    elif isinstance(wrt, Sequence) and all(isinstance(w, str) for w in wrt):
        names = list(wrt)
    else:
        raise FormulaError(
            "wrt is no name",
            given=repr(wrt)[:60],
            required="a name, or a list of names",
            instead='wrt="x" or wrt="all"',
        )
    known = {**program.variables, **dict.fromkeys(program.order)}
    for k, name in enumerate(names):
        if name not in known and identifier_of(name) in known:
            names[k] = identifier_of(name)  # a parameter by its dotted path
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise FormulaError(
                f"cannot derive by {name!r}: it does not occur in the formula",
                given=repr(name),
                required=f"one of {', '.join(known)}",
                instead=f'wrt="{(near or [*known])[0]}"',
            )
    twice = [n for k, n in enumerate(names) if n in names[:k]]
    if twice:
        raise FormulaError(
            f"{twice[0]!r} is twice in wrt",
            given=", ".join(names),
            required="every name once",
            instead=", ".join(dict.fromkeys(names)),
        )
    return names
