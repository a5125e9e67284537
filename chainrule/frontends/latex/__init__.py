"""LaTeX, of the kind that we print and textbooks use, to the same trees and nodes as the formula language.

    text -> lexer -> tokens -> parser (symbols) -> trees (tree) -> lower -> nodes

Names are matched with the user's (``\\boldsymbol{\\omega}_{0}`` is omega0 or ω_0); a product that is only written
side by side is a matrix product or one with scalars, as the shapes say; of an equation the last right side counts.
"""

from __future__ import annotations

from chainrule.frontends.latex.program import is_latex as is_latex
from chainrule.frontends.latex.program import parse_latex as parse_latex
from chainrule.frontends.latex.program import parse_latex_program as parse_latex_program
