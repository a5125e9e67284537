"""Slips found by mending: one edit of the claim as it was written that makes it right.

The edit has a place in the claim's own text, works in any notation (the trees are the same), and also for a claim whose
shapes do not fit, which has no value before it is mended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from chainrule.errors import ChainruleError
from chainrule.frontends.formula import Program, Trees, tree
from chainrule.frontends.formula.tree import Binary, Call, Negative, Number, Transposed, Tree
from chainrule.ir import Node
from chainrule.verbs.slip_question import Candidate

_MOST = 400  # edits tried
_PRODUCTS = ("@", "*", "")  # "": juxtaposed, as in LaTeX

Edit = tuple[str, str, Tree]  # kind, sentence, the mended tree


def mended(
    trees: Trees, families: tuple[str, ...], insertions: tuple[tuple[str, Tree], ...] = ()
) -> Iterator[Candidate]:
    """The claim with one edit, for every place and every edit of these families that can be lowered."""
    tried = 0
    for k, statement in enumerate(trees.statements):
        for place, rebuilt in _places(statement.expression):
            for family in families:
                for kind, sentence, new in _FAMILIES[family](place, trees.source, insertions):
                    tried += 1
                    if tried > _MOST:
                        return
                    changed = replace(statement, expression=rebuilt(new))
                    try:
                        program: Program = trees.program((*trees.statements[:k], changed, *trees.statements[k + 1 :]))
                    except (ChainruleError, RecursionError):
                        continue
                    node: Node = program.statements[-1].node
                    if getattr(node.type, "is_float", False):
                        yield Candidate(kind, sentence, node)


def _places(root: Tree) -> Iterator[tuple[Tree, Callable[[Tree], Tree]]]:
    """Every subtree, outermost first, with what puts another in its place."""
    pending: list[tuple[Tree, Callable[[Tree], Tree]]] = [(root, lambda new: new)]
    while pending:
        place, rebuilt = pending.pop(0)
        yield place, rebuilt
        for field in fields(place):
            value = getattr(place, field.name)
            if isinstance(value, Tree):

                def put(new: Tree, place: Tree = place, name: str = field.name, outer: Any = rebuilt) -> Tree:
                    return outer(replace(place, **{name: new}))

                pending.append((value, put))
            elif isinstance(value, tuple) and any(isinstance(v, Tree) for v in value):
                for j, item in enumerate(value):
                    if isinstance(item, Tree):

                        def put_item(
                            new: Tree,
                            place: Tree = place,
                            name: str = field.name,
                            value: Any = value,
                            j: int = j,
                            outer: Any = rebuilt,
                        ) -> Tree:
                            return outer(replace(place, **{name: (*value[:j], new, *value[j + 1 :])}))

                        pending.append((item, put_item))


def _text(place: Tree, source: str) -> str:
    written = " ".join(source[place.start : place.end].split())
    return written if len(written) <= 40 else written[:37] + "..."


def _at(place: Tree) -> tuple[int, int, int]:
    return place.position, place.start, place.end


def _is_value(place: Tree) -> bool:
    return isinstance(place, tree.Name | Binary | Call | Transposed | Negative | tree.Index | Number | tree.Partial)


def _transposes(place: Tree, source: str, _: Any) -> Iterator[Edit]:
    said = _text(place, source)
    if isinstance(place, Transposed):
        yield "missing transpose", f"{said} is transposed, {_text(place.operand, source)} is right", place.operand
    elif _is_value(place) and not isinstance(place, Number):
        yield "missing transpose", f"of {said}", Transposed(*_at(place), place)


def _orders(place: Tree, source: str, _: Any) -> Iterator[Edit]:
    """Neighbours in a chain of products exchanged."""
    if not (isinstance(place, Binary) and place.symbol in ("@", "")):
        return
    said = f"{_text(place.left, source)} and {_text(place.right, source)} are exchanged"
    yield "wrong order", said, replace(place, left=place.right, right=place.left)
    left = place.left
    if isinstance(left, Binary) and left.symbol in ("@", ""):
        said = f"{_text(left.right, source)} and {_text(place.right, source)} are exchanged"
        yield "wrong order", said, replace(place, left=replace(left, right=place.right), right=left.right)
    # a @ b' for b @ a': the transpose stays where it is
    for chain, first in ((place, place.left), (left, getattr(left, "right", None))):
        if first is None or isinstance(first, Transposed) == isinstance(place.right, Transposed):
            continue
        cores = [p.operand if isinstance(p, Transposed) else p for p in (first, place.right)]
        a, b = (
            replace(p, operand=core) if isinstance(p, Transposed) else core
            for p, core in zip((first, place.right), cores[::-1], strict=True)
        )
        if chain is place:
            yield "wrong order", said, replace(place, left=a, right=b)
        elif isinstance(left, Binary) and left.symbol in ("@", ""):
            yield "wrong order", said, replace(place, left=replace(left, right=a), right=b)


def _products(place: Tree, source: str, _: Any) -> Iterator[Edit]:
    """An elementwise product for a matrix product, the reverse, and a missing or superfluous diag."""
    said = _text(place, source)
    if isinstance(place, Binary) and place.symbol == "*":
        yield "elementwise product", f"{said} is a matrix product", replace(place, symbol="@")
        diagonal = Call(*_at(place.left), "diag", (place.left,))
        yield (
            "elementwise product",
            f"diag of {_text(place.left, source)} is missing",
            replace(place, symbol="@", left=diagonal),
        )
        for left in (place.left, Transposed(*_at(place.left), place.left)):
            right = Transposed(*_at(place.right), place.right)
            yield (
                "elementwise product",
                f"{said} is a matrix product",
                replace(place, symbol="@", left=left, right=right),
            )
        if isinstance(place.left, Binary) and place.left.symbol in ("@", ""):  # W' @ v*m for W' @ (v*m)
            inner = replace(place, left=place.left.right)
            yield "elementwise product", f"brackets: {said}", replace(place.left, right=inner)
        yield (
            "elementwise product",
            f"{said} is a matrix product",
            replace(place, symbol="@", left=Transposed(*_at(place.left), place.left)),
        )
    elif isinstance(place, Binary) and place.symbol in ("@", ""):
        yield "elementwise product", f"{said} is an elementwise product", replace(place, symbol="*")
    if isinstance(place, Call) and place.name == "diag" and len(place.arguments) == 1:
        yield "elementwise product", f"diag of {_text(place.arguments[0], source)} is one too many", place.arguments[0]
    elif _is_value(place):
        yield "elementwise product", f"diag of {said} is missing", Call(*_at(place), "diag", (place,))


def _sums(place: Tree, source: str, _: Any) -> Iterator[Edit]:
    if not _is_value(place) or isinstance(place, Number):
        return
    said = _text(place, source)
    for function in ("sum", "mean"):
        called = function if function == "sum" else "mean"
        whole = Call(*_at(place), function, (place,))
        yield "forgotten broadcast sum", f"the {called} of {said} over all its elements", whole
        for axis in (0, 1):
            along = Call(*_at(place), function, (place, Number(*_at(place), float(axis))))
            yield "forgotten broadcast sum", f"the {called} of {said} over dimension {axis}", along
            none, rest = tree.NewAxis(*_at(place)), tree.Slice(*_at(place), None, None, None)
            kept = tree.Index(*_at(place), along, (none, rest) if axis == 0 else (rest, none))
            yield "forgotten broadcast sum", f"the {called} of {said} over dimension {axis}", kept


def _signs(place: Tree, source: str, _: Any) -> Iterator[Edit]:
    said = _text(place, source)
    if isinstance(place, Binary) and place.symbol in "+-" and place.symbol:
        other = "-" if place.symbol == "+" else "+"
        yield "sign", f"of the term {_text(place.right, source)}", replace(place, symbol=other)
    if isinstance(place, Negative):
        yield "sign", f"of {said}", place.operand
    elif _is_value(place):
        yield "sign", f"of {said}", Negative(*_at(place), place)


def _factors(place: Tree, source: str, _: Any) -> Iterator[Edit]:
    if not _is_value(place):
        return
    said = _text(place, source)
    for number, missing in ((2.0, "2"), (0.5, "1/2"), (3.0, "3")):
        yield "missing factor", f"{missing} in {said}", Binary(*_at(place), "*", Number(*_at(place), number), place)


def _powers(place: Tree, source: str, _: Any) -> Iterator[Edit]:
    if not _is_value(place) or isinstance(place, Number):
        return
    said = _text(place, source)
    if isinstance(place, Binary) and place.symbol == "^":
        one = Number(*_at(place), 1.0)
        for symbol in "+-":
            yield (
                "power rule",
                f"the exponent of {said} is off by one",
                replace(place, right=Binary(*_at(place), symbol, place.right, one)),
            )
        yield "power rule", f"the exponent of {said} is wrong", place.left
    for exponent in (2.0, 3.0, 0.5, -1.0, -2.0, -0.5):
        power = Binary(*_at(place), "^", place, Number(*_at(place), exponent))
        yield "power rule", f"the exponent of {said} is wrong: {exponent:g}", power


def _insertions(place: Tree, source: str, insertions: Any) -> Iterator[Edit]:
    """A factor that is missing, from those of the right answer."""
    if not _is_value(place):
        return
    said = _text(place, source)
    for name, factor in insertions:
        sentence = f"the factor {name} is missing at {said}"
        for symbol, left, right in (
            ("*", place, factor),
            ("@", place, factor),
            ("@", factor, place),
            ("@", place, Transposed(*_at(place), factor)),
            ("@", Transposed(*_at(place), factor), place),
            ("/", place, factor),
        ):
            yield "missing upstream term", sentence, Binary(*_at(place), symbol, left, right)


def _eyes(place: Tree, source: str, sizes: Any) -> Iterator[Edit]:
    if isinstance(place, Number) and place.value == 1:
        for name, size in sizes:
            eye = Call(*_at(place), "eye", (size,))
            yield "elementwise product", f"1 is where the identity matrix eye({name}) belongs", eye
    if isinstance(place, Call) and place.name == "eye":
        one = Number(*_at(place), 1.0)
        yield "elementwise product", f"{_text(place, source)} is 1 here", one


def _removals(place: Tree, source: str, _: Any) -> Iterator[Edit]:
    """What the claim has too much."""
    if isinstance(place, Binary) and place.symbol in "+-" and place.symbol:
        gone = _text(place.right, source)
        yield "a term too many", gone, place.left
        kept = place.right if place.symbol == "+" else Negative(*_at(place), place.right)
        yield "a term too many", _text(place.left, source), kept
    elif isinstance(place, Binary) and place.symbol in (*_PRODUCTS, "/"):
        yield "a factor too many", _text(place.right, source), place.left
        if place.symbol != "/":
            yield "a factor too many", _text(place.left, source), place.right
    elif isinstance(place, Call) and len(place.arguments) == 1:
        yield "a factor too many", f"{place.name}(...)", place.arguments[0]


_FAMILIES: dict[str, Callable[[Tree, str, Any], Iterator[Edit]]] = {
    "transposes": _transposes,
    "orders": _orders,
    "products": _products,
    "sums": _sums,
    "signs": _signs,
    "factors": _factors,
    "powers": _powers,
    "insertions": _insertions,
    "eyes": _eyes,
    "removals": _removals,
}
