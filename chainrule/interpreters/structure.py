"""Derivatives by a matrix of declared structure: by its independent entries instead of by all of them.

A symmetric S has the entries S_ij with i <= j; S_ij stands in two places, so the derivative by it is G_ij + G_ji off
the diagonal and G_ii on it: ``G + G' - diag(diag(G))`` (Matrix Cookbook, equation 138). Triangular and diagonal ones
have the derivative of their own entries and zero elsewhere. A positive definite matrix varies as a symmetric one.
"""

from __future__ import annotations

from chainrule.ir import Node, apply, known_facts, structure_of
from chainrule.ops.contraction import einsum, eye, transpose
from chainrule.ops.triangles import TRIL, TRIU

CONVENTIONS = {
    "symmetric": "by its independent entries, G + G' - diag(diag(G)) of the free derivative G",
    "positive definite": "by its independent entries, G + G' - diag(diag(G)) of the free derivative G",
    "lower triangular": "by its own entries, tril(G) of the free derivative G",
    "upper triangular": "by its own entries, triu(G) of the free derivative G",
    "diagonal": "by its own entries, diag(diag(G)) of the free derivative G",
}


def within_structure(g: Node, x: Node) -> Node:
    """The free derivative ``g`` by the variable ``x``, taken within the structure of ``x``.

    >>> from chainrule.ir import Dim, TensorType, variable
    >>> from chainrule.interpreters.text import text
    >>> S = variable("S", TensorType((Dim("n"), Dim("n"))), "symmetric")
    >>> text(within_structure(variable("G", S.type), S))
    "G + G' - diag(diag(G))"
    """
    if structure_of(x) is None:
        return g
    facts = known_facts(x)
    diagonal = einsum(([(0, 0), (0, 1)], (0, 1)), g, eye(g.shape[0], g.type.dtype))
    if {"lower", "upper"} <= facts:
        return diagonal
    if "symmetric" in facts:
        return g + transpose(g) - diagonal
    return apply(TRIL if "lower" in facts else TRIU, g, diagonal=0)
