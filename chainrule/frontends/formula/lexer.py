"""Text to tokens with positions. Brackets are matched here, so that the parser only meets balanced ones.

A newline separates statements, except inside brackets. ``'`` is a transpose directly after a value and opens
a string elsewhere.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from chainrule.errors import FormulaError


class Token(NamedTuple):
    """``kind``: ``number name string separator end``, or the operator's canonical spelling."""

    kind: str
    text: str
    start: int
    end: int


_PATTERN = re.compile(
    r"""(?P<space>[ \t\r\f\v\u00a0\ufeff]+|\#[^\n]*)
    |(?P<number>(?:[0-9]+(?:\.(?!T\b|\.\.)[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[^\W\d]\w*)
    |(?P<separator>[\n;])
    |(?P<operator>\*\*|>=|<=|==|!=|\.\.\.|\.T(?!\w)|[-+*/@^()\[\],:=<>⊙−'"])""",
    re.VERBOSE,
)
_CANONICAL = {"**": "^", "⊙": "*", "−": "-", ".T": "'"}
_CLOSING = {"(": ")", "[": "]"}
VALUE_ENDS = frozenset(["number", "name", "string", ")", "]", "'"])

# What people type for something that the language spells otherwise.
_SUGGESTIONS = {
    "×": "* (elementwise) or @ (matrix product)",
    "·": "* (elementwise), @ (matrix product) or dot(a, b)",
    "∙": "* (elementwise), @ (matrix product) or dot(a, b)",
    "⋅": "* (elementwise), @ (matrix product) or dot(a, b)",
    "∘": "* (elementwise)",
    "÷": "/",
    "≥": ">=",
    "≤": "<=",
    "≠": "!=",
    "√": "sqrt(x)",
    "∑": "sum(x)",
    "∂": "dl/df for the derivative of an unknown function l(f)",
    "ᵀ": "x' for the transpose",
    "⊤": "x' for the transpose",
    "’": "x' for the transpose",
    "′": "x' for the transpose",
    "‘": "x' for the transpose",
    "“": 'straight quotes: "ij,jk->ik"',
    "”": 'straight quotes: "ij,jk->ik"',
    "–": "- (a hyphen)",
    "—": "- (a hyphen)",
    "|": "abs(x), norm(x) or det(A)",
    "{": "( ) for grouping, [ ] for indices and conditions",
    "}": "( ) for grouping, [ ] for indices and conditions",
    "\\": "plain names: Omega or Ω, not LaTeX",
    "$": "plain text, without LaTeX's dollars",
    "!": "!= to compare",
    "&": "a product of conditions: [a > 0] * [b > 0]",
    "~": "1 - [a > 0] for the opposite of a condition",
    "%": "x / 100 for a percentage; there is no remainder",
    ".": "0.5 for a number, .T for a transpose",
    "?": "where(condition, a, b)",
}
_SCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "0123456789" * 2, strict=True))


def tokenize(source: str) -> list[Token]:
    """The tokens of a formula, ending with one of kind ``end``.

    >>> [(t.kind, t.text) for t in tokenize("y = A.T @ x")][2:5]
    [('name', 'A'), ("'", '.T'), ('@', '@')]

    Raises:
        FormulaError: a character that is not in the language, a malformed number, brackets that do not match.
    """
    tokens: list[Token] = []
    open_brackets: list[Token] = []
    position = 0
    while position < len(source):
        match = _PATTERN.match(source, position)
        if match is None:
            _stray(source, position)
        kind, text, end = match.lastgroup or "", match.group(), match.end()
        if kind == "name":
            _check_name(source, position, text)
        elif kind == "number":
            _check_number(source, position, end)
        elif kind == "operator":
            kind = _CANONICAL.get(text, text)
            if text in _CLOSING:
                open_brackets.append(Token(kind, text, position, end))
            elif text in (")", "]"):
                _close(source, open_brackets, text, position)
            elif text == '"' or (text == "'" and not (tokens and tokens[-1].kind in VALUE_ENDS)):
                kind, end = "string", _string_end(source, position)
                text = source[position + 1 : end - 1]
        if kind != "space" and not (text == "\n" and open_brackets):
            if kind == "separator" and open_brackets:
                raise FormulaError(
                    "';' inside brackets",
                    source=source,
                    position=open_brackets[-1].start,
                    given="a bracket that is not closed before the end of its statement",
                    required=f"a {_CLOSING[open_brackets[-1].text]!r} for it",
                )
            tokens.append(Token(kind, text, position, end))
        position = end
    if open_brackets:
        unmatched = open_brackets[-1]
        raise FormulaError(
            f"unbalanced {unmatched.text!r}",
            source=source,
            position=unmatched.start,
            given="a bracket that is never closed",
            required=f"a {_CLOSING[unmatched.text]!r} for it",
        )
    tokens.append(Token("end", "", len(source), len(source)))
    return tokens


def _close(source: str, open_brackets: list[Token], text: str, position: int) -> None:
    if not open_brackets:
        raise FormulaError(
            f"unbalanced {text!r}",
            source=source,
            position=position,
            given="a closing bracket that nothing opens",
            required=f"a {'(' if text == ')' else '['!r} before it, or one {text!r} less",
        )
    opened = open_brackets.pop()
    if _CLOSING[opened.text] != text:
        raise FormulaError(
            f"{opened.text!r} closed by {text!r}",
            source=source,
            position=opened.start,
            given=f"{opened.text!r} here and {text!r} {position - opened.start} characters later",
            required=f"a {_CLOSING[opened.text]!r} for it",
        )


def _string_end(source: str, position: int) -> int:
    end = source.find(source[position], position + 1)
    line = source.find("\n", position)
    if end < 0 or 0 <= line < end:
        raise FormulaError(
            "a string that is not closed",
            source=source,
            position=position,
            required='subscripts in quotes, on one line: einsum("ij,jk->ik", A, B)',
            instead="x' for a transpose: directly after a value",
        )
    return end + 1


def _check_name(source: str, position: int, text: str) -> None:
    if text.isidentifier():
        return
    odd = next((k for k, c in enumerate(text) if not ("_" + c).isidentifier()), 0)  # 0: a mark that begins no name
    _stray(source, position + odd)


def _check_number(source: str, position: int, end: int) -> None:
    follows = source[end : end + 1]
    text = source[position:end]
    if text.startswith("0") and follows in ("x", "X", "b", "o") and source[end + 1 : end + 2].isalnum():
        message, instead = "a number that is not decimal", "decimal digits"
    elif follows in ("j", "J") and not _is_word(source[end + 1 : end + 2]):
        message, instead = "a complex number", "real numbers; complex values as pairs of real ones"
    elif follows in _SCRIPTS:
        _stray(source, end)
    elif _is_word(follows) or follows in ('"', "⅓", "½"):
        message, instead = "a number directly followed by a name", f"a product: {text}*{follows}"
    elif follows == "." and source[end : end + 2] != ".T" and source[end : end + 3] != "...":
        message, instead = "a malformed number", "one decimal point"
    elif float(text) == float("inf"):
        message, instead = "a number too large for float64", "a number below 1.8e308"
    else:
        return
    raise FormulaError(message, source=source, position=position, given=repr(text + follows), instead=instead)


def _is_word(character: str) -> bool:
    return character == "_" or character.isalnum()


def _stray(source: str, position: int) -> NoReturn:
    character = source[position]
    instead = _SUGGESTIONS.get(character, "")
    if character in _SCRIPTS:
        digit = _SCRIPTS[character]
        instead = f"^{digit} for a power" if character in "⁰¹²³⁴⁵⁶⁷⁸⁹" else f"_{digit}, as in x_{digit}"
    raise FormulaError(
        f"{character!r} is not in the formula language",
        source=source,
        position=position,
        given=f"{character!r} (U+{ord(character):04X})",
        required="names, numbers, + - * / @ ^ ' ( ) [ ] , and comparisons",
        instead=instead,
    )
