"""What names mean while a text is lowered: assigned values, variables, dimensions, and the inputs met so far.

A name is looked up as an assigned value, as a declared variable, as a dimension used as a number, and last as
an undeclared scalar. Every refusal says what to write.
"""

from __future__ import annotations

from collections.abc import Mapping

from chainrule.errors import FormulaError, ShapeError
from chainrule.frontends.formula import tree
from chainrule.frontends.formula.functions import known_functions
from chainrule.frontends.formula.messages import located, nearest_function, nearest_variable
from chainrule.frontends.formula.orientation import Value
from chainrule.frontends.formula.sizes import Declarations, Size
from chainrule.ir import Dim, Node, TensorType, TupleType, as_node, shape_text, toposort, variable


class Names:
    """The names of one text.

    Attributes:
        values: what has been assigned or read so far.
        inputs: the variables read, in order of first appearance.
    """

    def __init__(
        self,
        source: str,
        declared: Declarations,
        assigned: Mapping[str, int],
        unknown: frozenset[str],
        given: Mapping[str, Node],
    ) -> None:
        self.source, self.declared, self.assigned, self.unknown, self.given = (
            source,
            declared,
            assigned,
            unknown,
            given,
        )
        self.values: dict[str, Value] = {}
        self.inputs: dict[Node, None] = {}
        self.functions = known_functions()
        self.dimensions = declared.dimensions | {
            name
            for node in toposort(given.values())
            if not isinstance(node.type, TupleType)
            for size in node.shape
            if isinstance(size, Dim)
            for name in size.names
        }

    def is_variable(self, name: str) -> bool:
        """Whether a name is assigned, declared or given: then it is never an unknown function."""
        return name in self.assigned or name in self.declared.shapes or name in self.given

    def is_callable(self, name: str) -> bool:
        """Whether brackets after a name are a call."""
        return name in self.functions or name in self.declared.functions or name in self.unknown

    # ---- reading -------------------------------------------------------------------------------------------
    def read(self, part: tree.Name) -> Value:
        """The value of a name in the place of a number.

        Raises:
            FormulaError: a function without a call, a name assigned later, a slip of a known name.
        """
        found = self.values.get(part.name)
        return found if found is not None else self._first(part)

    def _first(self, part: tree.Name) -> Value:
        name = part.name
        if name in self.assigned:
            raise self._too_early(part)
        if name in self.given:
            node = self.given[name]
            self.inputs.update((n, None) for n in toposort([node]) if n.is_leaf and "name" in n.params)
        elif name in self.functions or name in self.declared.functions or name in self.unknown:
            kind = "a function of the formula language" if name in self.functions else "called as a function elsewhere"
            raise FormulaError(
                f"{name!r} is {'a function' if name not in self.functions else kind}",
                source=self.source,
                position=part.position,
                given="its name alone" if name in self.functions else f"its name alone; it is {kind}",
                required="its arguments in brackets",
                instead=f"{name}(x), or another name for a variable",
            )
        elif name in self.declared.shapes:
            node = variable(name, TensorType(self.declared.shapes[name]))
            self.inputs[node] = None
        elif name in self.dimensions:
            node = as_node(Dim(name))
        else:
            self._refuse_slip(part)
            node = variable(name)
            self.inputs[node] = None
        value = Value(node)
        self.values[name] = value
        return value

    def _too_early(self, part: tree.Name) -> FormulaError:
        line = self.source.count("\n", 0, self.assigned[part.name]) + 1
        return FormulaError(
            f"{part.name!r} is used before it is assigned",
            source=self.source,
            position=part.position,
            given=f"its assignment on line {line}",
            required="an assignment before every use; a name means one thing in a text",
            instead="another name for one of the two",
        )

    def _refuse_slip(self, part: tree.Name) -> None:
        if not self.declared.shapes and not self.given:
            return
        other = nearest_variable(part.name, [*self.declared.shapes, *self.assigned, *self.given])
        if other:
            raise FormulaError(
                f"unknown name {part.name!r}, did you mean {other!r}?",
                source=self.source,
                position=part.position,
                given="a name that is neither declared nor assigned",
                instead=f'{other}, or shapes={{"{part.name}": ""}} if it is a scalar of that name',
            )

    def dimension(self, name: str, part: tree.Tree) -> Size:
        """The size that a name means in the place of a size."""
        if name in self.dimensions:
            return Dim(name)
        other = nearest_variable(name, self.dimensions)
        if self.is_variable(name) or other:
            raise FormulaError(
                f"unknown dimension {name!r}" + (f", did you mean {other!r}?" if other else ""),
                source=self.source,
                position=part.position,
                given="" if other else "the name of a variable",
                required="a number or the name of a dimension: " + ", ".join(sorted(self.dimensions)),
            )
        return Dim(name)

    # ---- writing -------------------------------------------------------------------------------------------
    def assign(self, statement: tree.Assignment, value: Value) -> None:
        """Gives a statement's value its name.

        Raises:
            FormulaError: the name is taken. ShapeError: it was declared with another shape.
        """
        name = statement.name
        taken = (
            "is assigned a second time"
            if name in self.values
            else "is already defined"
            if name in self.given
            else "is a function of the formula language"
            if name in self.functions
            else "is declared to stand for a function"
            if name in self.declared.functions
            else ""
        )
        if name == "None" or taken:
            raise FormulaError(
                f"{name!r} {taken or 'cannot be assigned'}",
                source=self.source,
                position=statement.position,
                required="one assignment for each name",
                instead="a new name",
            )
        declared = self.declared.shapes.get(name)
        if declared is not None and declared != value.node.shape:
            error = ShapeError(
                f"{name!r} is declared with another shape than it is assigned",
                given=f"shape ({shape_text(value.node.shape)})",
                required=f"shape ({shape_text(declared)}), or no declaration",
            )
            raise located(error, self.source, statement.position)
        self.values[name] = value

    def refuse_function(self, name: str, position: int) -> None:
        """Raises FormulaError where a called name is a variable, or almost a known function."""
        if self.is_variable(name):
            raise FormulaError(
                f"{name!r} is a variable and is called as a function",
                source=self.source,
                position=position,
                required="the name of a function before '('",
                instead=f"{name} * (...) for a product, {name}[...] for an element",
            )
        other = nearest_function(name, [*self.functions, *self.declared.functions])
        if other:
            raise FormulaError(
                f"unknown function {name!r}, did you mean {other!r}?",
                source=self.source,
                position=position,
                required="a function of the language, or a name that is not almost one",
                instead=f"{other}(...)",
            )
