"""LaTeX as MathML, which browsers show without any script.

Covers the LaTeX that :mod:`chainrule.interpreters.latex` writes, not LaTeX at large; ``mathml`` returns None for
anything else, and the page then shows the text form.
"""

from __future__ import annotations

import re
from html import escape

_TOKEN = re.compile(r"\s+|\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|.", re.DOTALL)
_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
).split()
_GREEK = dict(zip(_NAMES, "αβγδϵζηθικλμνξπρστυϕχψωΓΔΘΛΞΠΣΥΦΨΩ", strict=True))
_OPERATORS = {
    "odot": "⊙",
    "circ": "∘",
    "cdot": "⋅",
    "times": "×",
    "leq": "≤",
    "geq": "≥",
    "neq": "≠",
    "sum": "∑",
    "approx": "≈",
    "otimes": "⊗",
}
_LETTERS = {"partial": "∂", "top": "⊤", "infty": "∞", "ldots": "…", "ell": "ℓ"}
_FUNCTIONS = set("exp log sin cos tan sinh cosh tanh arcsin arccos arctan det max min".split())
_SPACES = {r"\,", r"\;", r"\:", r"\ ", r"\quad", r"\!"}
_DEEPEST = 60
_LETTER = re.compile(r"<mi>.</mi>")
_NO_FACTOR = ("<mo", "<mrow><mo", "<msup><mrow><mo")  # an operator, or the arguments of the function in front


class _Unknown(Exception):
    """LaTeX that is not covered."""


def mathml(latex: str) -> str | None:
    """MathML of a formula, or None if it holds LaTeX that is not covered.

    >>> mathml(r"\\frac{x_{1}}{2}")
    '<math><mfrac><msub><mi>x</mi><mn>1</mn></msub><mn>2</mn></mfrac></math>'
    >>> mathml(r"\\unheard{x}") is None
    True
    """
    tokens = [t for t in _TOKEN.findall(latex) if not t.isspace()]
    try:
        parser = _Parser(tokens)
        body = parser.row(stop=())
        return f"<math>{body}</math>" if parser.at == len(tokens) else None
    except _Unknown:
        return None


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise _Unknown(token)
        self.at += 1
        return token

    def row(self, stop: tuple[str, ...]) -> str:
        """Atoms with their scripts up to one of ``stop``, which is left; one element."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Unknown("too deep")
        parts = []
        while self.peek() and self.peek() not in stop:
            parts.append(self.scripted())
        self.depth -= 1
        parts = _spaced([p for p in parts if p])
        return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"

    def group(self) -> str:
        self.take("{")
        found = self.row(stop=("}",))
        self.take("}")
        return found

    def scripted(self) -> str:
        base = self.atom()
        scripts: dict[str, str] = {}
        while self.peek() in ("^", "_"):
            which = self.take()
            if which in scripts:
                raise _Unknown(which)
            scripts[which] = self.group() if self.peek() == "{" else self.atom()
        tag = "m" + "sub" * ("_" in scripts) + "sup" * ("^" in scripts)
        return f"<{tag}>{base}{scripts.get('_', '')}{scripts.get('^', '')}</{tag}>" if scripts else base

    def atom(self) -> str:
        token = self.peek()
        if token == "{":
            return self.group()
        self.take()
        if token.startswith("\\"):
            return self.command(token)
        if token in "}&^_":
            raise _Unknown(token)
        if token[0].isdigit():
            return f"<mn>{token}</mn>"
        if token.isalpha():
            return f"<mi>{escape(token)}</mi>"
        return f"<mo>{escape({'-': '−', '*': '∗'}.get(token, token))}</mo>"

    def command(self, token: str) -> str:
        name = token[1:]
        if name == "frac":
            return f"<mfrac>{self.group()}{self.group()}</mfrac>"
        if name == "sqrt":
            return f"<msqrt>{self.group()}</msqrt>"
        if name == "left":
            return self.fence()
        if name in ("mathrm", "operatorname", "text"):
            word = f"<mi>{escape(self.word())}</mi>"
            return word if len(word) > len("<mi>x</mi>") else f'<mi mathvariant="normal">{word[4:]}'
        if name in ("mathbb", "mathbf"):
            letters = self.word()
            return f"<mi>{''.join(_styled(c, name) for c in letters)}</mi>"
        if name in _GREEK:
            return f"<mi>{_GREEK[name]}</mi>"
        if name in _OPERATORS:
            return f"<mo>{_OPERATORS[name]}</mo>"
        if name in _LETTERS:
            return f"<mi>{_LETTERS[name]}</mi>"
        if name in _FUNCTIONS:
            return f"<mi>{name}</mi>"
        if token in _SPACES:
            return ""
        if name in ("_", "{", "}", "%", "&", "#", "$"):
            return f"<mo>{escape(name)}</mo>"
        if name == "|":
            return "<mo>‖</mo>"
        raise _Unknown(token)

    def word(self) -> str:
        """The text of a group of letters."""
        self.take("{")
        letters = []
        while self.peek() != "}":
            letters.append(self.take().removeprefix("\\"))
        self.take("}")
        return "".join(letters)

    def fence(self) -> str:
        opening = self.take()
        body = self.row(stop=(r"\right",))
        self.take(r"\right")
        closing = self.take()
        return f"<mrow>{_fence(opening)}{body}{_fence(closing)}</mrow>"


def _spaced(parts: list[str]) -> list[str]:
    """A little room between factors that stand side by side, unless both are single letters."""
    found: list[str] = []
    for part in parts:
        before = found[-1] if found else ""
        factors = not part.startswith(_NO_FACTOR) and not re.match(r"(<msub>)?<mo|<mi>(∂|𝕀)", before)
        if before and factors and not (_LETTER.fullmatch(before) and _LETTER.fullmatch(part)):
            found.append('<mspace width="0.25em"/>')
        found.append(part)
    return found


def _fence(token: str) -> str:
    shown = {r"\|": "‖", ".": "", r"\{": "{", r"\}": "}"}.get(token, token)
    if len(shown) > 1:
        raise _Unknown(token)
    return f'<mo fence="true">{escape(shown)}</mo>'


def _styled(letter: str, style: str) -> str:
    if style == "mathbf" and letter.isdigit():
        return chr(0x1D7CE + int(letter))
    if style == "mathbf" and letter.isascii() and letter.isalpha():
        return chr(0x1D400 + ord(letter) - ord("A") if letter.isupper() else 0x1D41A + ord(letter) - ord("a"))
    if style == "mathbb" and letter == "I":
        return "𝕀"
    return escape(letter)
