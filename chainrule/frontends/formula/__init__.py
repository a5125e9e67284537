"""The formula language: text to :class:`~chainrule.ir.Graph`. Parsed, never evaluated.

    text -> lexer -> tokens -> parser -> trees (tree) -> lower -> nodes
                                               (names, functions, orientation, partials)

:func:`parse` gives the graph; :func:`parse_program` also gives the statements one by one, which ``derive``
needs. Imports ops and ir only. Nothing but a ChainruleError leaves this package, whatever the text.
"""

from __future__ import annotations

from chainrule.frontends.formula.program import Program as Program
from chainrule.frontends.formula.program import Statement as Statement
from chainrule.frontends.formula.program import Trees as Trees
from chainrule.frontends.formula.program import parse as parse
from chainrule.frontends.formula.program import parse_program as parse_program
from chainrule.frontends.formula.program import parse_trees as parse_trees
