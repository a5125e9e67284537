"""Assumptions about variables: ``assume={"S": "symmetric"}``, put on their leaves, and values that satisfy them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chainrule.errors import ChainruleError, FormulaError, ShapeError
from chainrule.interpreters.evaluate import real_numbers
from chainrule.interpreters.structure import CONVENTIONS
from chainrule.ir import STRUCTURES, Node, shape_text, structure_of, substitute_nodes, variable

_ROUNDING = 1e-9  # of the largest element: how far from its structure a given array may be


def assumed_leaves(variables: Sequence[Node], assume: Mapping[str, str] | None) -> dict[Node, Node]:
    """Variable -> the same with its structure.

    Raises:
        FormulaError: a name that is no variable. ChainruleError: an unknown kind. ShapeError: not a square matrix.

    >>> from chainrule.ir import TensorType, variable
    >>> (leaf,) = assumed_leaves([variable("S", TensorType((3, 3)))], {"S": "symmetric"}).values()
    >>> structure_of(leaf)
    'symmetric'
    """
    known = {v.params["name"]: v for v in variables}
    if not isinstance(assume or {}, Mapping):
        raise ChainruleError(
            "assume is not a mapping",
            given=repr(assume)[:60],
            required="name -> what the matrix is",
            instead='assume={"S": "symmetric"}',
        )
    found: dict[Node, Node] = {}
    for name, kind in (assume or {}).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise FormulaError(
                f"an assumption about {name!r}, which is no variable of the formula",
                given=name,
                required=f"one of {', '.join(known)}",
                instead=near[0] if near else "",
            )
        leaf = known[name]
        kind = " ".join(str(kind).replace("-", " ").replace("_", " ").split())
        if kind not in STRUCTURES:
            near = difflib.get_close_matches(kind, STRUCTURES, 1)
            raise ChainruleError(
                f"unknown structure {kind!r} of {name}",
                given=kind,
                required=f"one of {', '.join(STRUCTURES)}",
                instead=near[0] if near else "",
            )
        if leaf.type.rank != 2 or leaf.shape[0] != leaf.shape[1]:
            raise ShapeError(
                f"{name} is assumed to be {kind}",
                given=f"shape ({shape_text(leaf.shape)})",
                required="a square matrix",
                instead=f'shapes={{"{name}": "n,n"}}',
            )
        found[leaf] = variable(name, leaf.type, kind)
    return found


def under_assumptions(
    named: Sequence[tuple[str, Node]], variables: Sequence[Node], assume: Mapping[str, str] | None
) -> tuple[list[tuple[str, Node]], list[Node]]:
    """A program's named quantities and variables with the assumptions put on."""
    image = assumed_leaves(variables, assume)
    if not image:
        return list(named), list(variables)
    nodes = substitute_nodes([node for _, node in named], image)
    return [(name, node) for (name, _), node in zip(named, nodes, strict=True)], [image.get(v, v) for v in variables]


def assumptions_of(variables: Sequence[Node]) -> dict[str, str]:
    """Name -> structure of the variables that have one."""
    return {v.params["name"]: kind for v in variables if (kind := structure_of(v)) is not None}


def assumption_lines(variables: Sequence[Node], wrt: Sequence[str] = ()) -> list[str]:
    """``assuming S symmetric``; by a variable that is derived by, also what its derivative then is."""
    lines = []
    for name, kind in assumptions_of(variables).items():
        convention = f": the derivative is {CONVENTIONS[kind]}" if name in wrt else ""
        lines.append(f"assuming {name} {kind}{convention}")
    return lines


def refuse_other_structure(leaf: Node, array: Any) -> None:
    """Looks for a value that is not what its variable is assumed to be.

    Raises:
        ShapeError: there is one.
    """
    kind, value = structure_of(leaf), real_numbers(leaf, array)
    if kind is None or value.ndim != 2 or value.shape[0] != value.shape[1]:
        return
    facts = STRUCTURES[kind]
    apart = [value - value.T] if "symmetric" in facts else []
    apart += [np.triu(value, 1)] if "lower" in facts else []
    apart += [np.tril(value, -1)] if "upper" in facts else []
    worst = max(float(np.max(np.abs(a), initial=0.0)) for a in apart)
    if worst > _ROUNDING * max(1.0, float(np.max(np.abs(value), initial=0.0))):
        raise ShapeError(
            f"{leaf.params['name']} is assumed to be {kind}, and its value is not",
            given=f"an element that is off by {worst:.2g}",
            required=f"a {kind} matrix",
            instead="a derivation without the assumption",
        )
