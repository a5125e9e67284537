"""What LaTeX leaves to the shapes: products side by side, inverses and powers of matrices, index notation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from chainrule.errors import FormulaError
from chainrule.frontends.formula import functions, tree
from chainrule.frontends.formula.lower import Lowering
from chainrule.frontends.formula.names import Names
from chainrule.frontends.formula.orientation import Value, product
from chainrule.frontends.formula.trampoline import Steps, run
from chainrule.frontends.latex.tree import Element, ElementwisePower, Identity, IndexSum, Tensor
from chainrule.ir import SPELLINGS, Node, apply
from chainrule.ops.contraction import einsum, eye, matmul
from chainrule.ops.linear_algebra import INV


class Labelled(NamedTuple):
    """A value read at indices: one label for each dimension of the node, all different."""

    node: Node
    labels: tuple[str, ...]

    row = False

    @property
    def rank(self) -> int:
        """Of the element: none."""
        return 0


class LatexLowering(Lowering):
    """The formula language's lowering, with products that the shapes decide and with values read at indices."""

    def __init__(self, source: str, names: Names, statements: Any) -> None:
        super().__init__(source, names, statements)
        self.rules |= {
            Element: self.element,
            IndexSum: self.index_sum,
            Identity: self.identity,
            Tensor: self.whole,
            ElementwisePower: self.elementwise_power,
        }

    def statement(self, statement: tree.Assignment) -> Value:
        """The value of a statement; one read at indices is a tensor, letters in alphabetical order."""
        return self.tensor(run(self.lower(statement.expression)))

    def tensor(self, value: Any) -> Value:
        """A value without indices."""
        if not isinstance(value, Labelled):
            return value
        order = tuple(value.labels.index(label) for label in sorted(value.labels))
        return Value(
            value.node if order == tuple(range(len(order))) else einsum(([tuple(range(len(order)))], order), value.node)
        )

    def as_number(self, part: tree.Tree, value: Any) -> Value:
        return super().as_number(part, self.tensor(value))

    # ---- products and powers -------------------------------------------------------------------------------
    def binary(self, part: tree.Binary) -> Steps:
        if isinstance(part.left, Identity) or isinstance(part.right, Identity):
            return (yield self.with_identity(part))
        if part.symbol == "^":
            return (yield self.power(part))
        a = yield self.lower(part.left)
        b = yield self.lower(part.right)
        if (isinstance(a, Labelled) or isinstance(b, Labelled)) and a.rank == b.rank == 0:
            return self.build(part, lambda: self.elementwise(part, a, b))  # type: ignore[return-value]
        a, b = self.as_number(part.left, a), self.as_number(part.right, b)
        symbol = part.symbol
        if symbol in ("", "@"):
            scalar = a.rank == 0 or b.rank == 0
            make = (lambda: Value(a.node * b.node, a.row or b.row)) if scalar else (lambda: product(a, b))
            return self.build(part, make, (part.left, a), (part.right, b))
        plain = replace(part, left=_Done(part.left, a), right=_Done(part.right, b))
        return (yield super().binary(plain))

    def lower(self, part: tree.Tree) -> Any:
        return part.value if isinstance(part, _Done) else super().lower(part)

    def with_identity(self, part: tree.Binary) -> Steps:
        """``I`` takes the size of what it is added to, and leaves what it multiplies."""
        first = isinstance(part.left, Identity)
        side = part.right if first else part.left
        if isinstance(side, Identity):
            self.fail("the identity of which size?", part, instead="I_{n}")
        other = self.as_number(side, (yield self.lower(side)))
        if part.symbol in ("", "@"):
            return other
        if part.symbol not in ("+", "-") or other.rank != 2:
            self.fail("the identity of which size?", part, instead="I_{n}")
        same = Value(eye(other.node.shape[0]))
        a, b = (same, other) if first else (other, same)
        return self.build(part, lambda: Value(a.node + b.node if part.symbol == "+" else a.node - b.node))

    def power(self, part: tree.Binary) -> Steps:
        base = yield self.lower(part.left)
        exponent = functions.literal_number(part.right)
        if isinstance(base, Labelled):
            return (
                yield self.elementwise_power(
                    ElementwisePower(part.position, part.start, part.end, part.left, part.right)
                )
            )
        base = self.as_number(part.left, base)
        shape = base.node.shape
        square = base.rank == 2 and shape[0] == shape[1] and not isinstance(part.left, tree.Call)
        if square and exponent == -1:
            return self.build(part, lambda: Value(apply(INV, base.node)), (part.left, base))
        if square and exponent is not None and exponent == int(exponent) and 2 <= exponent <= 9:

            def repeated() -> Value:
                node = base.node
                for _ in range(int(exponent) - 1):
                    node = matmul(node, base.node)
                return Value(node)

            return self.build(part, repeated, (part.left, base))
        return (yield super().binary(replace(part, left=_Done(part.left, base))))

    def elementwise_power(self, part: ElementwisePower) -> Steps:
        base = yield self.lower(part.operand)
        exponent = self.as_number(part.exponent, (yield self.lower(part.exponent)))
        number = functions.literal_number(part.exponent)
        power = float(number) if number is not None else exponent.node
        if isinstance(base, Labelled):
            return Labelled(base.node**power, base.labels)
        return self.build(part, lambda: Value(base.node**power, base.row))

    def identity(self, part: Identity) -> Value:
        self.fail("the identity of which size?", part, instead="I_{n}")

    def negative(self, part: tree.Negative) -> Steps:
        x = yield self.lower(part.operand)
        if isinstance(x, Labelled):
            return Labelled(-x.node, x.labels)
        return (yield super().negative(replace(part, operand=_Done(part.operand, x)) if not _is_number(part) else part))

    def whole(self, part: Tensor) -> Steps:
        return self.tensor((yield self.lower(part.operand)))

    # ---- index notation ------------------------------------------------------------------------------------
    def element(self, part: Element) -> Steps:
        x = self.as_number(part.operand, (yield self.lower(part.operand)))
        if x.rank != len(part.labels):
            self.fail(
                f"{len(part.labels)} indices for a value with {x.rank} dimensions",
                part,
                given="_{" + "".join(part.labels) + "}",
                required=f"{x.rank} letters",
            )
        kept = tuple(dict.fromkeys(part.labels))
        if len(kept) == len(part.labels):
            return Labelled(x.node, part.labels)
        number = {label: k for k, label in enumerate(kept)}
        indices = tuple(number[label] for label in part.labels)
        return Labelled(einsum(([indices], tuple(range(len(kept)))), x.node), kept)

    def index_sum(self, part: IndexSum) -> Steps:
        body = yield self.lower(part.body)
        labels = body.labels if isinstance(body, Labelled) else ()
        missing = [label for label in part.labels if label not in labels]
        if missing:
            self.fail(
                f"a sum over {missing[0]!r}, which no value in it is read at",
                part,
                required="values with that index, x_{" + missing[0] + "}",
            )
        kept = tuple(label for label in labels if label not in part.labels)
        number = {label: k for k, label in enumerate(labels)}
        node = einsum(([tuple(range(len(labels)))], tuple(number[label] for label in kept)), body.node)
        return Labelled(node, kept) if kept else Value(node)

    def elementwise(self, part: tree.Binary, a: Any, b: Any) -> Any:
        """A product, sum or quotient of values read at indices: equal letters are the same index."""
        first, second = (getattr(v, "labels", ()) for v in (a, b))
        labels = (*first, *(label for label in second if label not in first))
        if part.symbol in ("+", "-") and first and second and set(first) != set(second):
            raise FormulaError(
                "a sum of values with different indices",
                source=self.source,
                position=part.position,
                given=f"{''.join(first)} and {''.join(second)}",
            )
        number = {label: k for k, label in enumerate(labels)}
        indices = [tuple(number[label] for label in side) for side in (first, second)]
        if part.symbol in ("", "*", "@", "/"):
            factor = 1.0 / b.node if part.symbol == "/" else b.node
            node = einsum((indices, tuple(range(len(labels)))), a.node, factor)
        else:
            if part.symbol in ("+", "-") and first and second and first != second:
                b = Labelled(einsum(([indices[1]], indices[0]), b.node), first)
            node = a.node + b.node if part.symbol == "+" else a.node - b.node
        return Labelled(node, labels)

    def known_call(self, part: tree.Call) -> Steps:
        """A function of every element keeps its indices."""
        op = functions.op_called(part.name)
        if len(part.arguments) == 1 and op is not None and op.family == "elementwise":
            x = yield self.lower(part.arguments[0])
            if isinstance(x, Labelled):
                return Labelled(SPELLINGS[part.name](x.node), x.labels)
            part = replace(part, arguments=(_Done(part.arguments[0], x),))
        return (yield super().known_call(part))


class _Done(tree.Tree):
    """A tree that has its value already."""

    __slots__ = ("value",)

    def __init__(self, part: tree.Tree, value: Any) -> None:
        for name in ("position", "start", "end"):
            object.__setattr__(self, name, getattr(part, name))
        object.__setattr__(self, "value", value)


def _is_number(part: tree.Negative) -> bool:
    return isinstance(part.operand, tree.Number)
