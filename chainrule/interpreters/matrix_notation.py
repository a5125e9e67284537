"""Contractions as a person writes them: ``A' @ (A @ x - b)``, ``diag(p) - p @ p'``, ``tr(A @ B)``.

Operands of order one and two are the vertices of a graph whose edges are the summed indices. Vectors that hang on an
index between matrices become diagonal matrices; what is left is paths and cycles, and a path read from the row index
of the result to its column index is a matrix product, with a transpose wherever an operand is entered from its second
index. What has no such form is printed as ``einsum``. (After the reductions in section 4 of Laue et al. 2018 and the
printers of DiffMatic and tensorgrad, which the derivation here improves on by comparing index order.)

``style`` is a printer: it says how products, transposes and calls look (``matmul``, ``hadamard``, ``transpose``,
``call``, ``identity``) and what to write where there is no matrix form (``fallback``).
"""

from __future__ import annotations

from typing import Any

from chainrule.interpreters.contraction_graph import Contraction, NoMatrixForm, Part
from chainrule.interpreters.terms import symmetric
from chainrule.ir import MUL, POSTFIX, Node
from chainrule.ops.index_letters import subscripts_text

Indices = tuple[int, ...]


def contraction_text(style: Any, node: Node) -> tuple[str, int]:
    """Text and binding strength of an einsum node. ``style`` is a printer."""
    operands, result = node.params["operands"], node.params["result"]
    parts = []
    for child, indices in zip(node.inputs, operands, strict=True):
        child, indices = _without_permutation(style, child, indices)
        text, strength = style.rendered(child)
        is_symmetric = len(indices) == 2 and not style.is_named(child) and symmetric(child)
        parts.append(Part(text, strength, indices, _is_identity(child), is_symmetric))
    batch = _batch(parts, result)
    try:
        for p in parts:
            p.indices = p.indices[batch:]
        return Contraction(style, parts, result[batch:], batch).text()
    except NoMatrixForm:
        broadcast = _broadcast_product(style, parts, result, batch)
        if broadcast is not None:
            return broadcast, MUL
        return style.fallback(node, subscripts_text(operands, result)), style.fallback_strength


def _without_permutation(style: Any, child: Node, indices: Indices) -> tuple[Node, Indices]:
    """An operand that only permutes another is that other with its indices permuted."""
    own = child.params.get("operands")
    if own is None or len(own) != 1 or set(own[0]) != set(child.params["result"]) or style.is_named(child):
        return child, indices
    if len(own[0]) != len(set(own[0])):
        return child, indices
    at = dict(zip(child.params["result"], indices, strict=True))
    return child.inputs[0], tuple(at[i] for i in own[0])


def _is_identity(node: Node) -> bool:
    return node.is_leaf and "size" in node.params and node.type.rank == 2


def _broadcast_product(style: Any, parts: list[Part], result: Indices, batch: int) -> str | None:
    """An elementwise product of tensors, some of which lack dimensions: ``v[:, :, None] * X``."""
    shown = []
    for p in parts:
        own = (*result[:batch], *p.indices)
        if p.is_identity or tuple(i for i in result if i in own) != own:
            return None
        places = ", ".join(":" if i in own else "None" for i in result)
        shown.append(p if own == result else Part(f"{style.operand(p, 50)}[{places}]", POSTFIX, result))
    return style.hadamard(shown) if any(p in shown for p in parts) else None


def _batch(parts: list[Part], result: Indices) -> int:
    """How many leading indices all operands and the result share: a stack of matrices, which @ and ' leave in place."""
    ranks = {len(p.indices) for p in parts}
    batch = max(ranks) - 2
    if batch < 1 or ranks != {batch + 2} or len(result) not in (batch + 1, batch + 2):
        return 0
    lead = result[:batch]
    if any(p.indices[:batch] != lead or set(p.indices[batch:]) & set(lead) or p.is_identity for p in parts):
        return 0
    return batch if len(set(lead)) == batch else 0
