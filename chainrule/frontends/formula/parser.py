"""Tokens to syntax trees: a Pratt parser whose recursion goes through ``trampoline``: depth is no limit.

strength     weakest first
5            comparisons (not chained)
10           + -
15           unary minus: -a*b is -(a*b), and 2^-x needs no brackets
20           * / @
30           ^ (right associative: 2^3^2 is 2^9)
40           postfix: ' .T [index] f(call)
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from itertools import pairwise
from typing import NoReturn

from chainrule.errors import FormulaError
from chainrule.frontends.formula import tree
from chainrule.frontends.formula.lexer import VALUE_ENDS, Token
from chainrule.frontends.formula.trampoline import Steps, run

COMPARISON, SUM, MINUS, PRODUCT, POWER = 5, 10, 15, 20, 30
_INFIX = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "@": PRODUCT, "^": POWER} | dict.fromkeys(
    ["<", ">", "<=", ">=", "==", "!="], COMPARISON
)
_ENDS = ("separator", "end")
_DERIVED = re.compile(r"d([0-9]*)(\w+)")


def assigned_names(tokens: Sequence[Token]) -> dict[str, int]:
    """The names that a text assigns, each with the position of its first assignment."""
    names: dict[str, int] = {}
    starts = True
    for k, (token, following) in enumerate(pairwise(tokens)):
        if starts and token.kind == "name" and following.kind == "=":
            names.setdefault(token.text, token.start)
        elif starts and is_derivative(tokens[k : k + 4], "="):
            names.setdefault(f"{token.text}/{tokens[k + 2].text}", token.start)
        starts = token.kind == "separator"
    return names


def is_derivative(tokens: Sequence[Token], after: str = "") -> bool:
    """Whether these begin with the name of a derivative, ``dy/dx`` (and then ``after``)."""
    kinds = [t.kind for t in tokens[:3]]
    named = kinds == ["name", "/", "name"] and tokens[0].text[0] == tokens[2].text[0] == "d"
    return named and (not after or (len(tokens) > 3 and tokens[3].kind == after))


def unknown_functions(tokens: Sequence[Token], known: Container[str]) -> frozenset[str]:
    """Names called that are not ``known``: ``l`` in ``l(f)`` and ``l[f]``, but not ``x`` in ``x[0]``."""
    found: set[str] = set()
    for k, token in enumerate(tokens[:-2]):
        if token.kind == "name" and tokens[k + 1].kind in ("(", "[") and token.text not in known:
            inside, after = tokens[k + 2], tokens[min(k + 3, len(tokens) - 1)]
            number = inside.kind == "number" or (inside.kind == "-" and after.kind == "number")
            index = number or inside.kind in (":", "...", "]") or inside.text == "None"
            if tokens[k + 1].kind == "(" or not index:
                found.add(token.text)
    return frozenset(found)


def parse_tokens(
    source: str, tokens: Sequence[Token], functions: Container[str] = (), variables: Container[str] = ()
) -> list[tree.Assignment]:
    """The statements of a text, in order.

    ``functions`` are the unknown functions: ``dl/df`` is read as a derivative of ``l`` only where ``l`` is
    one of them and neither ``dl`` nor ``df`` is one of the ``variables``. Where ``dl/df`` itself is a variable
    (assigned before, ``dl/df = ...``, or given) it is that name. Everywhere else it is a division.

    Raises:
        FormulaError: anything that is not in the grammar.
    """
    return _Parser(source, tokens, functions, variables).statements()


class _Parser:
    def __init__(
        self, source: str, tokens: Sequence[Token], functions: Container[str], variables: Container[str]
    ) -> None:
        self.source, self.tokens, self.functions, self.variables = source, tokens, functions, variables
        self.at = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    @property
    def following(self) -> Token:
        return self.tokens[min(self.at + 1, len(self.tokens) - 1)]

    @property
    def previous_end(self) -> int:
        return self.tokens[self.at - 1].end if self.at else 0

    def advance(self) -> Token:
        token = self.tokens[self.at]
        self.at += token.kind != "end"
        return token

    def fail(self, what: str, token: Token, **parts: str) -> NoReturn:
        raise FormulaError(what, source=self.source, position=token.start, **parts)

    # ---- statements ----------------------------------------------------------------------------------------
    def statements(self) -> list[tree.Assignment]:
        found: list[tree.Assignment] = []
        while self.token.kind != "end":
            if self.token.kind == "separator":
                self.advance()
                continue
            if found and not found[-1].name:
                raise FormulaError(
                    "a statement without a name before the last one",
                    source=self.source,
                    position=found[-1].start,
                    given=repr(_short(self.source[found[-1].start : found[-1].end])),
                    required="name = expression; only the last statement may be a bare expression",
                )
            found.append(self.statement())
        if not found:
            self.fail("an empty formula", self.token, required="at least one expression", instead="y = exp(x)")
        return found

    def statement(self) -> tree.Assignment:
        first = self.token
        name = ""
        if first.kind == "name" and self.following.kind == "=":
            name = self.advance().text
            self.advance()
        elif is_derivative(self.tokens[self.at : self.at + 4], "="):
            name = f"{first.text}/{self.tokens[self.at + 2].text}"
            self.at += 4
        expression: tree.Tree = run(self.expression(0))
        if self.token.kind not in _ENDS:
            self.unexpected(expression, named=bool(name))
        return tree.Assignment(first.start, first.start, expression.end, name, expression)

    def unexpected(self, expression: tree.Tree, named: bool) -> NoReturn:
        """A complete expression is followed by something that cannot follow it."""
        token = self.token
        if token.kind == "=":
            self.fail(
                "'=' a second time in one statement" if named else "'=' after something that is not a name",
                token,
                given=repr(_short(self.source[expression.start : token.end])),
                required="one name on the left of '='",
                instead="'==' to compare; ';' or a new line between statements",
            )
        if token.kind in (",", ":"):
            self.fail(
                f"{token.text!r} outside brackets",
                token,
                required="',' between arguments and ':' in an index only",
                instead="';' or a new line between statements",
            )
        self.juxtaposed(token)

    def juxtaposed(self, token: Token) -> NoReturn:
        self.fail(
            "two values next to each other",
            token,
            given=f"{token.text!r} directly after a value",
            required="an operator between them",
            instead=f"* (elementwise) or @ (matrix product) before {token.text!r}",
        )

    # ---- expressions ---------------------------------------------------------------------------------------
    def expression(self, strength: int) -> Steps:
        """An expression whose operators bind at least as strongly as ``strength``."""
        left: tree.Tree = yield self.prefix(strength)
        while True:
            token = self.token
            kind = token.kind
            if kind in _INFIX:
                own = _INFIX[kind]
                if own < strength:
                    return left
                self.advance()
                right = yield self.expression(own if kind == "^" else own + 1)
                if own == COMPARISON:
                    left = tree.Comparison(token.start, left.start, right.end, kind, left, right)
                    self.refuse_chain(left)
                else:
                    left = tree.Binary(token.start, left.start, right.end, kind, left, right)
            elif kind == "'":
                self.advance()
                left = tree.Transposed(token.start, left.start, token.end, left)
            elif kind == "[":
                self.advance()
                items = yield self.index_items()
                left = tree.Index(token.start, left.start, self.advance().end, left, items)
            elif kind == "(":
                self.refuse_call(left)
            else:
                return left

    def prefix(self, strength: int) -> Steps:
        """A value: what an expression begins with."""
        token = self.advance()
        kind, start, end = token.kind, token.start, token.end
        if kind == "name":
            if token.text == "None":
                self.fail("None outside an index", token, required="None in x[:, None] only")
            if self.token.kind == "(":
                return (yield self.call(token))
            if self.token.kind == "/":
                return (yield self.partial(token))
            return tree.Name(start, start, end, token.text)
        if kind == "number":
            return tree.Number(start, start, end, float(token.text))
        if kind == "string":
            return tree.String(start, start, end, token.text)
        if kind == "-":
            operand = yield self.expression(max(MINUS, strength))
            return tree.Negative(start, start, operand.end, operand)
        if kind == "(":
            return (yield self.bracketed(token))
        if kind == "[":
            condition = yield self.expression(0)
            if self.token.kind != "]":
                self.not_closed("]", "one condition, as in [z > 0]; the language has no lists of numbers")
            return tree.Iverson(start, start, self.advance().end, condition)
        self.no_value(token)

    def bracketed(self, opened: Token) -> Steps:
        if self.token.kind == ")":
            self.no_value(self.token)
        inner = yield self.expression(0)
        if self.token.kind != ",":
            self.expect_close(")")
            # The brackets belong to the text of the value but leave no trace in the tree.
            return inner
        items = [inner]
        while self.token.kind == ",":
            self.advance()
            if self.token.kind != ")":
                items.append((yield self.expression(0)))
        self.expect_close(")")
        return tree.Sequence(opened.start, opened.start, self.previous_end, tuple(items))

    def call(self, name: Token) -> Steps:
        self.advance()
        arguments: list[tree.Tree] = []
        keywords: list[tuple[tree.Name, tree.Tree]] = []
        while self.token.kind != ")":
            first = self.token
            if first.kind == "name" and self.following.kind == "=":
                self.at += 2
                keyword = tree.Name(first.start, first.start, first.end, first.text)
                if any(keyword.name == k.name for k, _ in keywords):
                    self.fail(f"argument {first.text!r} given twice", first)
                keywords.append((keyword, (yield self.expression(0))))
            else:
                if keywords:
                    self.fail(
                        "an argument by position after one by name",
                        first,
                        required=f"{keywords[-1][0].name}=... last",
                    )
                arguments.append((yield self.expression(0)))
            if self.token.kind == ",":
                self.advance()
            elif self.token.kind != ")":
                self.not_closed(")", "',' between arguments")
        end = self.advance().end
        return tree.Call(name.start, name.start, end, name.text, tuple(arguments), tuple(keywords))

    def index_items(self) -> Steps:
        items: list[tree.Tree] = []
        while self.token.kind != "]":
            items.append((yield self.index_item()))
            if self.token.kind == ",":
                self.advance()
            elif self.token.kind != "]":
                self.not_closed("]", "',' between indices")
        if not items:
            self.fail("an empty index", self.token, required="integers, slices, None or '...'")
        return tuple(items)

    def index_item(self) -> Steps:
        token = self.token
        if token.kind == "...":
            self.advance()
            return tree.Dots(token.start, token.start, token.end)
        if token.kind == "name" and token.text == "None":
            self.advance()
            return tree.NewAxis(token.start, token.start, token.end)
        parts: list[tree.Tree | None] = [None]
        while True:
            if self.token.kind == ":" and len(parts) < 3:
                self.advance()
                parts.append(None)
            elif self.token.kind in (",", "]", ":") and len(parts) > 1:
                break
            elif parts[-1] is None:
                parts[-1] = yield self.expression(0)
            else:
                break
        if len(parts) == 1:
            return parts[0]
        first, last, step = [*parts, None, None][:3]
        return tree.Slice(token.start, token.start, self.previous_end, first, last, step)

    def partial(self, name: Token) -> Steps:
        """``dl/df`` where ``l`` is an unknown function of the text; else the name of a division."""
        plain = tree.Name(name.start, name.start, name.end, name.text)
        below = self.following
        whole = f"{name.text}/{below.text}"
        if below.kind == "name" and whole in self.variables:  # the name of a derivative that is known
            self.at += 2
            return tree.Name(name.start, name.start, below.end, whole)
        match = _DERIVED.fullmatch(name.text)
        if not match or match[2] not in self.functions or below.kind != "name" or not below.text.startswith("d"):
            return plain
        if name.text in self.variables or below.text in self.variables:
            return plain
        before = self.at
        self.advance()
        wrt: list[str | tuple[tree.Tree, int]] = []
        while self.token.kind == "name" and self.token.text.startswith("d"):
            factor = self.advance()
            if factor.text == "d" and self.token.kind == "(":
                self.advance()
                inner = yield self.expression(0)
                self.expect_close(")")
                times = int(self.advance().text) if self.token.kind == "number" and self.token.text.isdigit() else 1
                wrt.append((inner, min(times, 99)))
            elif factor.text == "d":
                self.at = before
                return plain
            else:
                wrt.append(factor.text[1:])
        order = int(match[1][:3]) if match[1] else 1
        return tree.Partial(name.start, name.start, self.previous_end, match[2], order, tuple(wrt))

    # ---- messages ------------------------------------------------------------------------------------------
    def expect_close(self, closing: str) -> None:
        if self.token.kind != closing:
            self.not_closed(closing, f"{closing!r} or an operator")
        self.advance()

    def not_closed(self, closing: str, required: str) -> NoReturn:
        token = self.token
        if token.kind == "=":
            self.fail("'=' inside brackets", token, required=required, instead="'==' to compare")
        if token.kind in VALUE_ENDS or token.kind in ("(", "["):
            self.juxtaposed(token)
        self.fail(f"{token.text!r} where {closing!r} is expected", token, required=required)

    def no_value(self, token: Token) -> NoReturn:
        """A value is expected and ``token`` begins none."""
        before = self.tokens[self.tokens.index(token) - 1] if token.start else None
        given = repr(token.text) if token.kind not in _ENDS else "the end of the statement"
        if before is not None and before.kind in _INFIX and token.kind in (*_ENDS, ")", "]", ","):
            self.fail(
                f"nothing after the operator {before.text!r}",
                before,
                given=given,
                required="a value on both sides",
                instead="brackets around an expression of several lines" if token.text == "\n" else "",
            )
        if token.kind == "+":
            self.fail("'+' in front of a value", token, given=given, instead="the value without '+'")
        if token.kind == "=":
            self.fail(
                "'=' where a value is expected",
                token,
                required="name = expression",
                instead="'==' to compare",
            )
        if token.kind == ")" and before is not None and before.kind == "(":
            self.fail("empty brackets", before, given="'()'", required="a value inside")
        self.fail(f"{given} where a value is expected", token, required="a name, a number, a call, ( or [condition]")

    def refuse_chain(self, left: tree.Comparison) -> None:
        if _INFIX.get(self.token.kind) == COMPARISON:
            a, b = self.source[left.start : left.end], self.source[left.right.start : left.right.end]
            self.fail(
                "chained comparisons",
                self.token,
                given=f"{_short(a)} {self.token.text} ...",
                required="one comparison at a time",
                instead=f"[{_short(a)}] * [{_short(b)} {self.token.text} ...]",
            )

    def refuse_call(self, left: tree.Tree) -> NoReturn:
        what = _short(self.source[left.start : left.end])
        self.fail(
            f"{what!r} is called as a function",
            self.token,
            required="the name of a function before '('",
            instead=f"{what} * (...) for a product",
        )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
