"""Reading tokens: names with fonts and subscripts, numbers, what a bracket or a superscript is."""

from __future__ import annotations

from collections.abc import Collection
from typing import NoReturn

from chainrule.errors import FormulaError
from chainrule.frontends.formula import tree
from chainrule.frontends.latex.lexer import Token
from chainrule.frontends.latex.symbols import ACCENTS, FONTS, FUNCTIONS, GREEK, Symbols

_TRANSPOSES = ("T", "top", "intercal", "prime", "mathsf", "transp")
_BARE = frozenset("exp log ln sin cos tan sinh cosh tanh arcsin arccos arctan det max min tr".split())


class Reader:
    """The tokens of one side of an equation, and a place in them.

    Args:
        symbols: the user's names. functions: the functions of the formula language, and those that names stand for.
        unknown: unknown functions, whose derivatives may be written as fractions.
    """

    def __init__(
        self,
        source: str,
        tokens: list[Token],
        symbols: Symbols,
        functions: Collection[str],
        unknown: Collection[str],
    ) -> None:
        self.source, self.tokens, self.at = source, tokens, 0
        self.symbols, self.functions, self.unknown = symbols, functions, unknown
        self.bars = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def advance(self) -> Token:
        token = self.token
        self.at += token.kind != "end"
        return token

    def fail(self, what: str, token: Token, **parts: str) -> NoReturn:
        raise FormulaError(what, source=self.source, position=token.start, **parts)

    def expect(self, kind: str) -> Token:
        if self.token.kind != kind:
            self.fail(f"{self.token.text or 'the end'!r} where {kind!r} is expected", self.token)
        return self.advance()

    def place(self, first: Token) -> tuple[int, int, int]:
        """position, start, end of what began with this token."""
        return first.start, first.start, self.tokens[max(self.at - 1, 0)].end

    def split(self, count: int) -> None:
        """The word at hand becomes two: its first ``count`` characters, and the rest."""
        kind, text, start, end = self.token
        if count < len(text):
            rest = text[count:]
            second = Token("number" if rest.isdigit() else "word", rest, start + count, end)
            self.tokens[self.at : self.at + 1] = [Token(kind, text[:count], start, start + count), second]

    def begins_value(self, token: Token) -> bool:
        """Whether a factor can begin here."""
        if token.kind in ("|", "||"):
            return token.text == "open" or (token.text == "" and not self.bars)
        if token.kind == "command":
            return token.text not in ("rangle", "rbrace")
        return token.kind in ("number", "word", "(", "[", "{")

    def is_transpose(self, token: Token) -> bool:
        return token.kind == "'" or (token.kind in ("word", "command") and token.text in _TRANSPOSES)

    def transpose_mark(self) -> None:
        if self.advance().text == "mathsf":
            self.expect("{")
            self.advance()
            self.expect("}")

    def number(self) -> tree.Tree:
        first = self.advance()
        value = float(first.text)
        ten = [t.text for t in self.tokens[self.at : self.at + 4]]
        if ten[:1] == ["times"] and ten[1:4] == ["10", "^", "{"]:
            self.at += 4
            sign = -1 if self.token.kind == "-" else 1
            self.at += self.token.kind == "-"
            value = float(f"{first.text}e{sign * int(self.expect('number').text)}")
            self.expect("}")
        return tree.Number(*self.place(first), value)

    def grouped_symbol(self) -> tree.Tree | None:
        """``{W_{2}}``: a name in braces, to be read at indices."""
        before, first = self.at, self.token
        self.advance()
        if self.token.kind in ("word", "command"):
            written = self.symbol_text()
            if written is not None and self.token.kind == "}" and (name := self.symbols.find(written)) is not None:
                self.advance()
                return tree.Name(*self.place(first), name)
        self.at = before
        return None

    def is_call(self, name: str) -> bool:
        """Whether one of the user's names is called: an unknown function, or an activation that it stands for."""
        return (name in self.unknown or name in self.functions) and self.token.kind in ("(", "[")

    def function_named(self, written: str) -> str | None:
        if written == "tensor":
            return written
        plain = FUNCTIONS.get(written, written)
        if plain in self.functions or plain in self.unknown:
            return plain
        return None

    def symbol_text(self, subscript: bool = True) -> str | None:
        """The spelling of a symbol, ``omega_0``; None where none begins."""
        token = self.token
        if token.kind == "word" or token.kind == "number":
            self.advance()
            text = token.text
        elif token.kind == "command" and (token.text in GREEK or token.text in self.functions or token.text in _BARE):
            self.advance()
            text = token.text
        elif token.kind == "command" and (token.text in FONTS or token.text in ACCENTS):
            self.advance()
            text = self.braced_text()
            if token.text in ACCENTS:
                accent = ACCENTS[token.text]
                spellings = [text + accent, f"{text}_{accent}", accent + text]
                text = next((s for s in spellings if self.symbols.find(s) is not None), spellings[0])
        else:
            return None
        if subscript and self.token.kind == "_":
            before = self.at
            self.advance()
            below = self.braced_text()
            if below:
                return f"{text}_{below}"
            self.at = before
        return text

    def braced_text(self) -> str:
        """What is in braces, or one character, as the text of a name; empty if it is no name."""
        if self.token.kind != "{":
            if self.token.kind == "word":
                self.split(1)
            return self.symbol_text(subscript=False) or ""
        before = self.at
        self.advance()
        found = ""
        while self.token.kind not in ("}", "end"):
            if self.token.kind in (",", "_"):
                self.advance()
                found += "_"
            else:
                piece = self.symbol_text(subscript=False)
                if piece is None:
                    self.at = before
                    return ""
                found += piece
        self.expect("}")
        return found

    def labels(self) -> tuple[str, ...]:
        """The letters of an index: ``_{ij}``, ``_{i,j}``, ``_i``."""
        first = self.token
        written = self.braced_text()
        letters = tuple(written.replace("_", ""))
        if not letters or not all(c.isalpha() for c in letters):
            self.fail(
                "an index that is not read", first, required="letters, as in x_{ij}", instead="x[0] for an element"
            )
        return letters

    def is_index(self) -> bool:
        """Whether the bracket at hand holds ``:``, ``None`` or only numbers."""
        depth, inside = 0, []
        for token in self.tokens[self.at :]:
            depth += (token.kind in ("(", "[")) - (token.kind in (")", "]"))
            if depth == 0:
                break
            if depth == 1:
                inside.append(token)
        texts = [t.text for t in inside[1:]]
        return bool(texts) and (":" in texts or "None" in texts or all(t.kind in ("number", ",") for t in inside[1:]))

    def derivative(self, first: Token) -> tree.Tree:
        """``\\frac{\\partial l}{\\partial f}`` of an unknown function."""
        self.expect("{")
        order, of = self.differential()
        self.expect("}")
        self.expect("{")
        wrt: list[str | tuple[tree.Tree, int]] = []
        while self.token.kind == "command":
            begun = self.token
            _, name = self.differential()
            times = 1
            if self.token.kind == "^":
                self.advance()
                times = int(self.braced_text() or "1")
            wrt.append((tree.Name(*self.place(begun), name), times))
        self.expect("}")
        if of not in self.unknown:
            self.fail(
                f"the derivative of {of!r} inside a formula",
                first,
                required="derivatives of unknown functions only, dl/df of l(f)",
                instead="its closed form",
            )
        return tree.Partial(*self.place(first), of, order, tuple(wrt))

    def differential(self) -> tuple[int, str]:
        if self.token.text != "partial":
            self.fail("\\partial is expected", self.token)
        self.advance()
        order = 1
        if self.token.kind == "^":
            self.advance()
            order = int(self.braced_text() or "1")
        written = self.symbol_text()
        if written is None:
            self.fail("a name is expected after \\partial", self.token)
        return order, self.symbols.find(written) or written

    def _names_function(self) -> bool:
        return self.token.text in self.functions and self.symbols.find(self.token.text) is None
