"""LaTeX tokens to the formula language's syntax trees: a product that is only written side by side stays open (``""``),
because the shapes decide what it is.

strength     weakest first
5            comparisons, inside [ ]
10           + -
15           unary minus
18           \\odot, elementwise
20           side by side, \\cdot, \\times, /
30           ^ _ ' and arguments of functions
"""

from __future__ import annotations

from chainrule.frontends.formula import tree
from chainrule.frontends.formula.trampoline import Steps, run
from chainrule.frontends.latex.lexer import Token
from chainrule.frontends.latex.reader import Reader
from chainrule.frontends.latex.tree import Element, ElementwisePower, Identity, IndexSum, Tensor

COMPARISON, SUM, MINUS, HADAMARD, PRODUCT = 5, 10, 15, 18, 20
_INFIX = {"+": SUM, "-": SUM, "*": HADAMARD, "cdot": PRODUCT, "/": PRODUCT}
_COMPARISONS = {"<": "<", ">": ">", "<=": "<=", ">=": ">=", "=": "==", "!=": "!="}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_STOPS = ("end", "row", ",", ")", "]", "}", "=", ";")


class Parser(Reader):
    """One pass over the tokens of one side of an equation: recursion through ``trampoline``."""

    # ---- tokens --------------------------------------------------------------------------------------------
    # ---- expressions ---------------------------------------------------------------------------------------
    def whole(self) -> tree.Tree:
        """The only expression of these tokens."""
        found: tree.Tree = run(self.expression(0))
        if self.token.kind != "end":
            self.fail(f"{self.token.text!r} after a complete formula", self.token)
        return found

    def expression(self, strength: int) -> Steps:
        first = self.token
        if first.kind in ("-", "+"):
            self.advance()
            inside = yield self.expression(max(MINUS, strength))
            left = tree.Negative(first.start, first.start, inside.end, inside) if first.kind == "-" else inside
        else:
            left = yield self.factor()
        while True:
            token = self.token
            if token.kind in _COMPARISONS and strength <= COMPARISON:
                self.advance()
                right = yield self.expression(COMPARISON + 1)
                symbol = _COMPARISONS[token.kind]
                left = tree.Comparison(token.start, left.start, right.end, symbol, left, right)
            elif token.kind in _INFIX:
                own = _INFIX[token.kind]
                if own < strength:
                    return left
                self.advance()
                right = yield self.expression(own + 1)
                symbol = "" if token.kind == "cdot" else token.kind
                left = tree.Binary(token.start, left.start, right.end, symbol, left, right)
            elif self.begins_value(token):
                if strength > PRODUCT:
                    return left
                right = yield self.factor()
                left = tree.Binary(right.start, left.start, right.end, "", left, right)
            else:
                return left

    def factor(self) -> Steps:
        """A value with its powers, transposes and indices."""
        value = yield self.atom()
        while True:
            token = self.token
            if token.kind == "'":
                self.advance()
                value = tree.Transposed(token.start, value.start, token.end, value)
            elif token.kind == "^":
                value = yield self.power(value)
            elif token.kind == "_":
                self.advance()
                labels = self.labels()
                value = Element(token.start, value.start, self.place(token)[2], value, labels)
            elif token.kind == "[" and self.is_index():
                value = self.index(value)
            else:
                return value

    def power(self, base: tree.Tree) -> Steps:
        sign = self.advance()
        if self.token.kind != "{":
            if self.token.kind == "word":
                self.split(1)
            if self.is_transpose(self.token):
                self.advance()
                return tree.Transposed(sign.start, base.start, self.place(sign)[2], base)
            if self.token.kind == "-":
                self.fail("a sign as an exponent", self.token, instead="^{-1}")
            exponent = yield self.atom()
            return tree.Binary(sign.start, base.start, self.place(sign)[2], "^", base, exponent)
        self.advance()
        if self.is_transpose(self.token):
            self.transpose_mark()
            end = self.expect("}").end
            return tree.Transposed(sign.start, base.start, end, base)
        if self.token.kind == "-" and self.is_transpose(self.tokens[self.at + 1]):
            minus = self.advance()
            self.transpose_mark()
            end = self.expect("}").end
            one = tree.Number(minus.start, minus.start, end, -1.0)
            return tree.Transposed(
                sign.start, base.start, end, tree.Binary(sign.start, base.start, end, "^", base, one)
            )
        if self.token.kind == "*" and self.token.text == "circ":
            self.advance()
            exponent = yield self.expression(0)
            end = self.expect("}").end
            return ElementwisePower(sign.start, base.start, end, base, exponent)
        exponent = yield self.expression(0)
        end = self.expect("}").end
        return tree.Binary(sign.start, base.start, end, "^", base, exponent)

    # ---- values --------------------------------------------------------------------------------------------
    def atom(self) -> Steps:
        token = self.token
        if token.kind == "number":
            return self.number()
        if token.kind == "word":
            return (yield self.word())
        if token.kind in ("(", "[", "{"):
            if token.kind == "{" and (named := self.grouped_symbol()) is not None:
                return named
            self.advance()
            inside = yield self.expression(0)
            if self.token.kind != _CLOSING[token.kind]:
                self.fail(f"unbalanced {token.kind!r}", token, required=f"a {_CLOSING[token.kind]!r} for it")
            self.advance()
            return inside
        if token.kind in ("|", "||"):
            return (yield self.barred())
        if token.kind == "command":
            return (yield self.command())
        before = self.tokens[self.at - 1] if self.at else token
        self.fail("a value is missing", before if token.kind == "end" else token, given=repr(token.text or "the end"))

    def word(self) -> Steps:
        """Letters: the longest name of the user's at their beginning, else one letter."""
        text = self.token.text
        known = [
            k for k in range(len(text), 0, -1) if self.symbols.find(text[:k]) is not None or text[:k] in self.functions
        ]
        if len(text) > 1 and text not in ("None",):
            self.split(known[0] if known else 1)
        return (yield self.symbol())

    def symbol(self) -> Steps:
        """A name with its subscript, or a value read at indices, or the call of a function."""
        first = self.token
        begun = self.at
        written = self.symbol_text()
        if written is None:
            self.fail(f"\\{first.text} is not read", first, required="a name, a number or a function")
        name = self.symbols.find(written)
        if name is None and "_" in written:  # the subscript is no part of the name
            after = self.at
            self.at = begun
            bare = self.symbol_text(subscript=False) or ""
            special = self.special(first, bare)
            if special is not None:
                return special
            if (known := self.symbols.find(bare)) is not None:
                return tree.Name(*self.place(first), known)  # the caller reads the indices
            function = self.function_named(bare)
            if function is not None:
                return (yield self.call(first, function))
            self.at = after
        if name is None:
            special = self.special(first, written)
            if special is not None:
                return special
            function = self.function_named(written)
            if function is not None:
                return (yield self.call(first, function))
        elif self.is_call(name):
            return (yield self.call(first, name))
        name = name if name is not None else written.replace("{", "").replace("}", "").replace(",", "_")
        if name == "e" and self.token.kind == "^":
            power = yield self.power(tree.Name(*self.place(first), "e"))
            return tree.Call(first.start, first.start, power.end, "exp", (power.right,))
        return tree.Name(*self.place(first), name)

    def special(self, first: Token, written: str) -> tree.Tree | None:
        """Identity, ones, pi, indicator brackets."""
        plain = written.strip("_")
        if plain == "pi":
            return tree.Number(*self.place(first), 3.141592653589793)
        if plain in ("I", "1") and self.token.kind == "[" and not self.is_index():
            opened = self.advance()
            condition: tree.Tree = run(self.expression(0))
            if self.token.kind != "]":
                self.fail("unbalanced '['", opened, required="a ']' for it")
            self.advance()
            return tree.Iverson(*self.place(first), condition)
        if plain in ("I", "1") and (plain == "1" or self.symbols.find("I") is None):
            if self.token.kind == "_":
                self.advance()
                sizes = self.sizes()
                return tree.Call(*self.place(first), "eye" if plain == "I" else "ones", sizes)
            if plain == "I":
                return Identity(*self.place(first))
            self.fail("\\mathbf{1} without a size", first, instead="\\mathbf{1}_{n}")
        return None

    def sizes(self) -> tuple[tree.Tree, ...]:
        """The sizes of ``I_{n}`` and ``\\mathbf{1}_{m \\times n}``."""
        if self.token.kind != "{":
            if self.token.kind == "word":
                self.split(1)
            return (run(self.atom()),)
        self.advance()
        found = [run(self.expression(PRODUCT + 1))]
        while self.token.kind in ("cdot", ","):
            self.advance()
            found.append(run(self.expression(PRODUCT + 1)))
        self.expect("}")
        return tuple(found)

    # ---- indices in brackets -------------------------------------------------------------------------------
    def index(self, value: tree.Tree) -> tree.Tree:
        opened = self.advance()
        items: list[tree.Tree] = []
        while self.token.kind != "]":
            token = self.token
            if token.kind == "end":
                self.fail("unbalanced '['", opened)
            parts: list[tree.Tree | None] = [None]
            while self.token.kind not in (",", "]", "end"):
                if self.token.kind == ":":
                    self.advance()
                    parts.append(None)
                elif self.token.text == "None":
                    self.advance()
                    parts[-1] = tree.NewAxis(*self.place(token))
                else:
                    parts[-1] = run(self.expression(0))
            if len(parts) == 1 and parts[0] is not None:
                items.append(parts[0])
            else:
                items.append(tree.Slice(*self.place(token), *[*parts, None, None][:3]))
            if self.token.kind == ",":
                self.advance()
        self.advance()
        return tree.Index(opened.start, value.start, self.place(opened)[2], value, tuple(items))

    # ---- commands ------------------------------------------------------------------------------------------
    def command(self) -> Steps:
        token = self.token
        name = token.text
        if name == "frac" or name in ("dfrac", "tfrac"):
            return (yield self.fraction())
        if name == "sqrt":
            self.advance()
            if self.token.kind == "[":
                self.fail("a root of another order", self.token, instead="x^{1/3}")
            inside = yield self.braces()
            return tree.Call(*self.place(token), "sqrt", (inside,))
        if name == "sum":
            return (yield self.sum())
        if name in ("partial", "nabla", "int", "prod", "lim", "infty", "otimes", "langle"):
            self.fail(f"\\{name} is not read", token, required="a closed form: sums, products, functions and fractions")
        return (yield self.symbol())

    def braces(self) -> Steps:
        if self.token.kind != "{":
            if self.token.kind in ("number", "word"):
                self.split(1)
            return (yield self.atom())
        opened = self.advance()
        inside = yield self.expression(0)
        if self.token.kind != "}":
            self.fail("unbalanced '{'", opened, required="a '}' for it")
        self.advance()
        return inside

    def fraction(self) -> Steps:
        first = self.advance()
        inside = self.tokens[self.at + 1] if self.token.kind == "{" else self.token
        if inside.text == "partial" and inside.kind == "command":
            return self.derivative(first)
        above = yield self.braces()
        below = yield self.braces()
        return tree.Binary(*self.place(first), "/", above, below)

    def sum(self) -> Steps:
        """``\\sum_{i} x_i``, ``\\sum_{0}\\left(X\\right)`` along a dimension, ``\\sum\\left(X\\right)``."""
        first = self.advance()
        labels: tuple[str, ...] = ()
        if self.token.kind == "_":
            self.advance()
            inside = self.tokens[self.at + 1] if self.token.kind == "{" else self.token
            if inside.kind == "number":
                return (yield self.call(first, "sum", back=True))
            labels = self.bounds()
        if not labels and self.token.kind in ("(", "["):
            return (yield self.call(first, "sum"))
        body = yield self.expression(HADAMARD)
        if not labels:
            return tree.Call(*self.place(first), "sum", (body,))
        return IndexSum(*self.place(first), labels, body)

    def bounds(self) -> tuple[str, ...]:
        """The letters of a sum; a lower bound of 1 and an upper one are the whole dimension."""
        opened = self.token
        if opened.kind != "{":
            labels = self.labels()
        else:
            self.advance()
            found = ""
            while self.token.kind in ("word", ","):
                found += self.advance().text.replace(",", "")
            labels = tuple(found)
            if self.token.kind == "=":
                self.advance()
                if self.expect("number").text not in ("0", "1"):
                    self.fail("a sum over a part of a dimension", opened, required="all of it, from 1 to its size")
            if self.token.kind != "}":
                self.fail("a condition under a sum", self.token, required="the letters alone: \\sum_{i,j}")
            self.advance()
        if self.token.kind == "^":
            self.advance()
            self.sizes()
        return labels

    def barred(self) -> Steps:
        """``|x|`` and ``\\lVert x \\rVert``, with the norm's index."""
        opened = self.advance()
        self.bars += 1
        inside = yield self.expression(0)
        if self.token.kind != opened.kind:
            self.fail("a bar that is not closed", opened)
        self.advance()
        self.bars -= 1
        name = "abs" if opened.kind == "|" else "norm"
        if self.token.kind == "_" and name == "norm":
            self.advance()
            below = self.braced_text()
            if below not in ("2", "F", "1"):
                self.fail(f"a norm with index {below!r}", opened, required="2, F or 1")
            name = "norm1" if below == "1" else "norm"
        return tree.Call(*self.place(opened), name, (inside,))

    def call(self, first: Token, name: str, back: bool = False) -> Steps:
        """The arguments of a function: in brackets, or the product that follows; ``_`` is an axis, ``^`` a power."""
        axes: list[tree.Tree] = []
        exponent: tree.Tree | None = None
        if back:
            self.at -= 1
        while self.token.kind in ("_", "^"):
            sign = self.advance()
            if sign.kind == "^" and self.token.kind in ("number", "word"):
                self.split(1)
            inside = list(self.sizes()) if sign.kind == "_" else [(yield self.braces())]
            axes, exponent = (inside, exponent) if sign.kind == "_" else (axes, inside[0])
        if self.token.kind in ("(", "[", "{"):
            opened = self.advance()
            arguments = [(yield self.expression(0))]
            while self.token.kind == ",":
                self.advance()
                arguments.append((yield self.expression(0)))
            if self.token.kind != _CLOSING[opened.kind]:
                self.fail(f"unbalanced {opened.kind!r}", opened, required=f"a {_CLOSING[opened.kind]!r} for it")
            self.advance()
        else:
            arguments = [(yield self.argument(first))]
        if name in ("max", "min") and len(arguments) == 2:
            name = f"{name}imum"
        if name == "tensor":
            return Tensor(*self.place(first), arguments[0])
        found = tree.Call(*self.place(first), name, (*arguments, *axes))
        if exponent is None:
            return found
        if isinstance(exponent, tree.Negative) and name != "det":
            self.fail("an inverse function", first, instead="\\arcsin(x), or 1/\\sin(x)")
        return ElementwisePower(*self.place(first), found, exponent)

    def argument(self, function: Token) -> Steps:
        """``\\sin 2x``: factors up to the next function or operator."""
        if not self.begins_value(self.token):
            self.fail(f"{function.text!r} without an argument", function, required="its argument in brackets")
        found = yield self.factor()
        while self.begins_value(self.token) and self.token.kind in ("word", "number") and not self._names_function():
            right = yield self.factor()
            found = tree.Binary(right.start, found.start, right.end, "", found, right)
        return found
