"""Kinds of tree that LaTeX has and the formula language does not: values read at indices, sums over indices."""

from __future__ import annotations

from dataclasses import dataclass

from chainrule.frontends.formula.tree import Tree


@dataclass(frozen=True, slots=True, eq=False)
class Element(Tree):
    """``x_{ij}``: a value read at indices."""

    operand: Tree
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class IndexSum(Tree):
    """``\\sum_{i,j} body``."""

    labels: tuple[str, ...]
    body: Tree


@dataclass(frozen=True, slots=True, eq=False)
class Identity(Tree):
    """``\\mathbf{I}`` without a size: that of what it is added to."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor(Tree):
    """``\\operatorname{tensor}(x_{ij})``: all elements as one value, its dimensions in the order of the letters."""

    operand: Tree


@dataclass(frozen=True, slots=True, eq=False)
class ElementwisePower(Tree):
    """``A^{\\circ 2}``, ``\\tanh^{2}(A)``: a power of every element, also of a square matrix."""

    operand: Tree
    exponent: Tree
