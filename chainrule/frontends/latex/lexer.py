"""LaTeX to tokens with positions: what only lays out the page is dropped here."""

from __future__ import annotations

import re
from typing import NamedTuple

from chainrule.errors import FormulaError


class Token(NamedTuple):
    """``kind``: ``number word command row end``, or the character itself; ``|`` and ``||`` may be ``open``."""

    kind: str
    text: str
    start: int
    end: int


_PATTERN = re.compile(
    r"""(?P<space>[\s~&$]+|%[^\n]*|\\[,;:!> ]|\\[\[\]()](?![a-zA-Z]))
    |(?P<row>\\\\(?:\[[^\]]*\])?)
    |(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)
    |(?P<word>[^\W\d_]+[0-9]*)
    |(?P<bars>\\\||\|)
    |(?P<escaped>\\[_{}%&\#])
    |(?P<command>\\[a-zA-Z]+\*?)
    |(?P<sign>[-+*/^_{}()\[\],.=<>':;!−⊙·])""",
    re.VERBOSE,
)
_LAYOUT = frozenset(
    "quad qquad displaystyle "
    "textstyle limits nolimits nonumber notag left right middle big Big bigg Bigg bigl bigr Bigl "
    "Bigr biggl biggr Biggl Biggr mathopen mathclose allowbreak thinspace".split()
)
_ENVIRONMENTS = frozenset(
    "aligned align align* equation equation* gather gather* gathered split multline multline* eqnarray eqnarray* "
    "displaymath math".split()
)
_SYMBOLS = {  # commands that are another spelling of a sign
    "odot": "*",
    "circ": "*",
    "cdot": "cdot",
    "times": "cdot",
    "div": "/",
    "leq": "<=",
    "le": "<=",
    "leqslant": "<=",
    "geq": ">=",
    "ge": ">=",
    "geqslant": ">=",
    "neq": "!=",
    "ne": "!=",
    "lt": "<",
    "gt": ">",
    "lbrace": "{",
    "colon": ":",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "prime": "'",
    "coloneqq": "=",
    "triangleq": "=",
}
_BARS = {"lvert": "|", "rvert": "|", "vert": "|", "lVert": "||", "rVert": "||", "Vert": "||"}


def tokenize(source: str) -> list[Token]:
    """The tokens of a LaTeX formula, ending with one of kind ``end``; ``\\left|`` and its like are ``open``.

    >>> [t.text for t in tokenize(r"2 \\mathbf{A}^T \\left(x\\right)")][:6]
    ['2', 'mathbf', '{', 'A', '}', '^']

    Raises:
        FormulaError: a character or an environment that is not read.
    """
    tokens: list[Token] = []
    position = 0
    side = ""
    while position < len(source):
        match = _PATTERN.match(source, position)
        if match is None:
            raise FormulaError(
                f"{source[position]!r} is not read in LaTeX",
                source=source,
                position=position,
                required="letters, numbers, + - / ^ _ and the commands of ordinary formulas",
            )
        kind, text, start, position = match.lastgroup or "", match.group(), position, match.end()
        if kind == "space":
            continue
        if kind == "command":
            name = text[1:]
            if name in ("begin", "end", "label", "tag"):
                position = _environment(source, name, position)
                continue
            if name in _LAYOUT:
                side = name if name in ("left", "right") else side
                if side and source[position : position + 1] == ".":
                    position, side = position + 1, ""
                continue
            if name in _BARS:
                bar = "open" if name[0] == "l" else "close" if name[0] == "r" else side
                tokens.append(Token(_BARS[name], bar, start, position))
            elif name in _SYMBOLS:
                tokens.append(Token(_SYMBOLS[name], name, start, position))
            else:
                tokens.append(Token("command", name, start, position))
        elif kind == "bars":
            bar = {"left": "open", "right": "close"}.get(side, "")
            tokens.append(Token("||" if len(text) == 2 else "|", bar, start, position))
        elif kind == "escaped":
            tokens.append(Token(text[1:], text, start, position))
        elif kind == "sign":
            tokens.append(Token({"−": "-", "⊙": "*", "·": "cdot"}.get(text, text), text, start, position))
        else:
            tokens.append(Token(kind, text, start, position))
        side = ""
    tokens.append(Token("end", "", len(source), len(source)))
    return tokens


def _environment(source: str, command: str, position: int) -> int:
    """Behind ``\\begin{aligned}``, ``\\label{...}``.

    Raises:
        FormulaError: an environment that holds no formula.
    """
    found = re.compile(r"\s*\{([^{}]*)\}").match(source, position)
    if found is None or (command in ("begin", "end") and found[1] not in _ENVIRONMENTS):
        raise FormulaError(
            f"\\{command}{{{found[1] if found else ''}}} is not read",
            source=source,
            position=position,
            required=f"one of {', '.join(sorted(e for e in _ENVIRONMENTS if '*' not in e))}",
            instead="matrices by name",
        )
    return found.end()
