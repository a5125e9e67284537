"""LLVM IR as text: typed values with Python operators, nested loops, and addresses that are hoisted where they belong.

A loop body has a head, where addresses are computed that change with that loop only: an address asked for deep inside
is built one loop level at a time, so the innermost loop adds constants alone. Nothing here knows what is computed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LLVM = {"f32": "float", "f64": "double", "i64": "i64", "i32": "i32", "i8": "i8", "i1": "i1"}
BYTES = {"f32": 4, "f64": 8, "i64": 8, "i32": 4, "i8": 1, "i1": 1}


def in_memory(kind: str) -> str:
    """The kind of an element in memory: conditions take a byte there (LLVM's vectors of i1 are packed bits)."""
    return "i8" if kind == "i1" else kind


@dataclass(frozen=True, eq=False)
class LoopVar:
    """The counter of an open loop: ``ssa`` is its i64 value, ``depth`` how many loops are around it."""

    ssa: str
    depth: int


@dataclass(frozen=True)
class Affine:
    """An index or address: a sum of loop counters times constants, plus ``const``, plus ``lane`` times the lane."""

    terms: tuple[tuple[LoopVar, int], ...] = ()
    const: int = 0
    lane: int = 0

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.const + other, self.lane)
        found = dict(self.terms)
        for var, k in other.terms:
            found[var] = found.get(var, 0) + k
        return Affine(tuple((v, k) for v, k in found.items() if k), self.const + other.const, self.lane + other.lane)

    def __mul__(self, k: int) -> Affine:
        if k == 0:
            return Affine()
        return Affine(tuple((v, c * k) for v, c in self.terms), self.const * k, self.lane * k)


@dataclass
class Scope:
    """Text of one loop body: ``head`` comes first, then ``body`` (lines and inner loops)."""

    head: list[str] = field(default_factory=list)
    body: list[str | Scope] = field(default_factory=list)
    pointers: dict = field(default_factory=dict)
    values: dict = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The text, inner loops included."""
        out = list(self.head)
        for part in self.body:
            if isinstance(part, Scope):
                out += part.lines()
            else:
                out.append(part)
        return out


class Value:
    """An SSA value or a constant: ``kind`` of :data:`LLVM`, ``lanes`` 1 for a scalar; ``number`` of a constant."""

    __slots__ = ("e", "kind", "lanes", "number", "text")

    def __init__(self, e: Arithmetic, kind: str, lanes: int, text: str, number: float | int | None = None) -> None:
        self.e, self.kind, self.lanes, self.text, self.number = e, kind, lanes, text, number

    @property
    def type(self) -> str:
        """LLVM's spelling of the type."""
        return LLVM[self.kind] if self.lanes == 1 else f"<{self.lanes} x {LLVM[self.kind]}>"

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point value."""
        return self.kind[0] == "f"

    def __add__(self, o: Operand) -> Value:
        return self.e.arith("add", self, o)

    def __radd__(self, o: Operand) -> Value:
        return self.e.arith("add", o, self)

    def __sub__(self, o: Operand) -> Value:
        return self.e.arith("sub", self, o)

    def __rsub__(self, o: Operand) -> Value:
        return self.e.arith("sub", o, self)

    def __mul__(self, o: Operand) -> Value:
        return self.e.arith("mul", self, o)

    def __rmul__(self, o: Operand) -> Value:
        return self.e.arith("mul", o, self)

    def __truediv__(self, o: Operand) -> Value:
        return self.e.arith("div", self, o)

    def __rtruediv__(self, o: Operand) -> Value:
        return self.e.arith("div", o, self)

    def __neg__(self) -> Value:
        return self.e.neg(self)

    def __gt__(self, o: Operand) -> Value:
        return self.e.compare("gt", self, o)

    def __ge__(self, o: Operand) -> Value:
        return self.e.compare("ge", self, o)

    def __lt__(self, o: Operand) -> Value:
        return self.e.compare("lt", self, o)

    def __le__(self, o: Operand) -> Value:
        return self.e.compare("le", self, o)

    def __and__(self, o: Value) -> Value:
        return self.e.logic("and", self, o)

    def __or__(self, o: Value) -> Value:
        return self.e.logic("or", self, o)


Operand = Value | float | int

_PY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}
_F_COMPARE = {"gt": "ogt", "ge": "oge", "lt": "olt", "le": "ole", "eq": "oeq", "ne": "une"}
_I_COMPARE = {"gt": "sgt", "ge": "sge", "lt": "slt", "le": "sle", "eq": "eq", "ne": "ne"}


def rounded(number: float, kind: str) -> float:
    """A number as the kind can hold it."""
    if kind != "f32":
        return float(number)
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")


class Arithmetic:
    """Writes instructions, loops and functions of one module. ``lanes``: elements of the main dtype per vector."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.declared: dict[str, str] = {}
        self.functions: list[str] = []
        self.count = 0
        self.scopes: list[Scope] = []
        self.valid = lanes  # lanes that count in the block being written
        self.replicas = 1  # trainings side by side, see ``replicated``

    # ---- text ----------------------------------------------------------------------------------------------
    def fresh(self) -> str:
        """A new SSA name."""
        self.count += 1
        return f"%v{self.count}"

    def line(self, text: str) -> None:
        """One instruction without a result."""
        self.scopes[-1].body.append("  " + text)

    def let(self, text: str) -> str:
        """One instruction with a result, whose name comes back."""
        name = self.fresh()
        self.scopes[-1].body.append(f"  {name} = {text}")
        return name

    def label(self, name: str) -> None:
        """Starts a basic block."""
        self.scopes[-1].body.append(f"{name}:")

    def function(self, name: str, arguments: str, body: Callable[[], None]) -> None:
        """Defines ``void name(arguments)``."""
        scope = Scope()
        self.scopes.append(scope)
        body()
        self.line("ret void")
        self.scopes.pop()
        lines = scope.lines()
        self.functions.append(f"define void @{name}({arguments}) {{\nentry:\n" + "\n".join(lines) + "\n}")

    def module(self) -> str:
        """The whole text."""
        return "\n".join([*self.declared.values(), *self.functions]) + "\n"

    def intrinsic(self, name: str, result: str, arguments: Sequence[str]) -> str:
        """``@name`` declared once."""
        self.declared.setdefault(name, f"declare {result} @{name}({', '.join(arguments)})")
        return f"@{name}"

    # ---- loops ---------------------------------------------------------------------------------------------
    def loop(
        self,
        count: int | str,
        body: Callable[[LoopVar, list[Value]], list[Value]],
        carry: Sequence[Value] = (),
        step: int = 1,
        start: int | str = 0,
    ) -> list[Value]:
        """``for (i = start; i < count; i += step)``, at least once; ``body(i, carried) -> carried``.

        ``carry`` are values that go from turn to turn; their last values come back.
        """
        self.count += 1
        n = self.count
        var = LoopVar(f"%i{n}", len(self.scopes))
        before, enter, latch, leave = f"pre{n}", f"loop{n}", f"latch{n}", f"exit{n}"
        self.line(f"br label %{before}")
        self.label(before)
        self.line(f"br label %{enter}")
        inner = Scope()
        self.scopes[-1].body.append(inner)
        self.scopes.append(inner)
        names = [Value(self, c.kind, c.lanes, self.fresh()) for c in carry]
        out = body(var, names)
        self.line(f"br label %{latch}")
        self.label(latch)
        following = self.let(f"add nuw nsw i64 {var.ssa}, {step}")
        again = self.let(f"icmp ult i64 {following}, {count}")
        self.line(f"br i1 {again}, label %{enter}, label %{leave}")
        phis = [f"{enter}:", f"  {var.ssa} = phi i64 [ {start}, %{before} ], [ {following}, %{latch} ]"]
        for name, first, last in zip(names, carry, out, strict=True):
            phis.append(f"  {name.text} = phi {name.type} [ {first.text}, %{before} ], [ {last.text}, %{latch} ]")
        inner.head[:0] = phis
        self.scopes.pop()
        self.label(leave)
        return out

    def when(self, condition: str, body: Callable[[], None]) -> None:
        """``body`` where an i1 holds."""
        self.count += 1
        inside, after = f"then{self.count}", f"after{self.count}"
        self.line(f"br i1 {condition}, label %{inside}, label %{after}")
        self.label(inside)
        scope = Scope()
        self.scopes[-1].body.append(scope)
        self.scopes.append(scope)
        body()
        self.scopes.pop()
        self.line(f"br label %{after}")
        self.label(after)

    # ---- constants and shapes of values --------------------------------------------------------------------
    def constant(self, number: float | int | bool, kind: str, lanes: int = 1) -> Value:
        """A constant, the same in every lane."""
        if kind[0] == "f":
            number = rounded(float(number), kind)
            text = f"0x{struct.unpack('Q', struct.pack('d', number))[0]:016X}"
        elif kind == "i1":
            text = "true" if number else "false"
        else:
            text = str(int(number))
        if lanes > 1:
            text = f"splat ({LLVM[kind]} {text})"
        return Value(self, kind, lanes, text, number)

    def vector(self, x: Value, lanes: int | None = None) -> Value:
        """A scalar in every lane; a vector as it is."""
        lanes = lanes or self.lanes
        if x.lanes == lanes:
            return x
        if x.number is not None:
            return self.constant(x.number, x.kind, lanes)
        kind = LLVM[x.kind]
        one = self.let(f"insertelement <{lanes} x {kind}> poison, {kind} {x.text}, i32 0")
        zeros = f"<{lanes} x i32> zeroinitializer"
        out = self.let(f"shufflevector <{lanes} x {kind}> {one}, <{lanes} x {kind}> poison, {zeros}")
        return Value(self, x.kind, lanes, out)

    def together(self, *operands: Operand) -> list[Value]:
        """Operands of one instruction: numbers in the kind of the values, scalars in every lane beside a vector."""
        values = [o for o in operands if isinstance(o, Value)]
        kind = next((v.kind for v in values if v.is_float), values[0].kind)
        if any(v.kind == "f64" for v in values):
            kind = "f64"
        lanes = max(v.lanes for v in values)
        out = []
        for o in operands:
            v = o if isinstance(o, Value) else self.constant(o, kind, lanes)
            if v.kind != kind:
                v = self.convert(v, kind)
            out.append(v if v.lanes == lanes else self.vector(v, lanes))
        return out

    # ---- arithmetic ----------------------------------------------------------------------------------------
    def arith(self, op: str, a: Operand, b: Operand) -> Value:
        """``a op b``."""
        a, b = self.together(a, b)
        if a.kind == "i1":
            a, b = self.convert(a, "i64"), self.convert(b, "i64")
        if a.number is not None and b.number is not None and not (op == "div" and (b.number == 0 or not a.is_float)):
            return self.constant(_PY[op](a.number, b.number), a.kind, a.lanes)
        name = ("f" if a.is_float else "s" if op == "div" else "") + op
        return Value(self, a.kind, a.lanes, self.let(f"{name} {a.type} {a.text}, {b.text}"))

    def neg(self, a: Value) -> Value:
        """``-a``."""
        if a.number is not None:
            return self.constant(-a.number, a.kind, a.lanes)
        if not a.is_float:
            return self.arith("sub", 0, a)
        return Value(self, a.kind, a.lanes, self.let(f"fneg {a.type} {a.text}"))

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """``a * b + c`` with one rounding."""
        a, b, c = self.together(a, b, c)
        return self.call("fma", a, b, c)

    def call(self, name: str, *xs: Value) -> Value:
        """An LLVM intrinsic whose operands and result are alike: fma, sqrt, fabs, floor, minnum, ..."""
        x = xs[0]
        suffix = f".v{x.lanes}{x.kind}" if x.lanes > 1 else f".{x.kind}"
        target = self.intrinsic(f"llvm.{name}{suffix}", x.type, [x.type] * len(xs))
        arguments = ", ".join(f"{a.type} {a.text}" for a in xs)
        return Value(self, x.kind, x.lanes, self.let(f"call {x.type} {target}({arguments})"))

    def compare(self, op: str, a: Operand, b: Operand) -> Value:
        """A comparison: an i1 value. NaN compares false, except that it is unequal to everything."""
        a, b = self.together(a, b)
        words = f"fcmp {_F_COMPARE[op]}" if a.is_float else f"icmp {_I_COMPARE[op]}"
        return Value(self, "i1", a.lanes, self.let(f"{words} {a.type} {a.text}, {b.text}"))

    def logic(self, op: str, a: Value, b: Value) -> Value:
        """``and``, ``or``, ``xor`` of integers or conditions."""
        a, b = self.together(a, b)
        return Value(self, a.kind, a.lanes, self.let(f"{op} {a.type} {a.text}, {b.text}"))

    def shift(self, op: str, a: Value, by: int) -> Value:
        """``shl``, ``lshr``, ``ashr`` by a constant."""
        return Value(
            self, a.kind, a.lanes, self.let(f"{op} {a.type} {a.text}, {self.constant(by, a.kind, a.lanes).text}")
        )

    def where(self, c: Value, a: Operand, b: Operand) -> Value:
        """``a`` where the condition holds, else ``b``."""
        if not isinstance(a, Value) and not isinstance(b, Value):
            a = self.constant(a, "f64" if isinstance(a, float) else "i64")
        a, b = self.together(a, b)
        lanes = max(a.lanes, c.lanes)
        a, b, c = self.vector(a, lanes), self.vector(b, lanes), self.vector(c, lanes)
        return Value(self, a.kind, lanes, self.let(f"select {c.type} {c.text}, {a.type} {a.text}, {b.type} {b.text}"))

    def maximum(self, a: Operand, b: Operand) -> Value:
        """The larger; NaN wins, as in torch."""
        a, b = self.together(a, b)
        larger = self.where(a > b, a, b)
        return self.where(self.compare("ne", a, a), a, larger)

    def minimum(self, a: Operand, b: Operand) -> Value:
        """The smaller; NaN wins, as in torch."""
        a, b = self.together(a, b)
        smaller = self.where(a < b, a, b)
        return self.where(self.compare("ne", a, a), a, smaller)

    def convert(self, a: Value, kind: str) -> Value:
        """``a`` in another kind: floats round, floats to integers truncate, conditions are 0 and 1."""
        if a.kind == kind:
            return a
        if a.number is not None:
            number = a.number
            return self.constant(
                number if kind[0] == "f" else bool(number) if kind == "i1" else int(number), kind, a.lanes
            )
        if kind == "i1":
            return self.compare("ne", a, 0)
        to = LLVM[kind] if a.lanes == 1 else f"<{a.lanes} x {LLVM[kind]}>"
        if a.is_float and kind[0] == "f":
            word = "fpext" if BYTES[kind] > BYTES[a.kind] else "fptrunc"
        elif a.is_float:
            word = "fptosi"
        elif kind[0] == "f":
            word = "uitofp" if a.kind == "i1" else "sitofp"
        elif BYTES[kind] >= BYTES[a.kind] and a.kind != kind:
            word = "zext" if a.kind == "i1" else "sext" if BYTES[kind] > BYTES[a.kind] else "bitcast"
        else:
            word = "trunc"
        return Value(self, kind, a.lanes, self.let(f"{word} {a.type} {a.text} to {to}"))

    def bits(self, a: Value, kind: str) -> Value:
        """The same bits as another kind of the same size."""
        to = LLVM[kind] if a.lanes == 1 else f"<{a.lanes} x {LLVM[kind]}>"
        return Value(self, kind, a.lanes, self.let(f"bitcast {a.type} {a.text} to {to}"))

    def total(self, x: Value, op: str = "add") -> Value:
        """All lanes together, pairwise: a fixed order."""
        while x.lanes > 1:
            half = x.lanes // 2
            low, high = (self._part(x, k * half, half) for k in range(2))
            x = low + high if op == "add" else self.maximum(low, high) if op == "max" else self.minimum(low, high)
        return x

    def _part(self, x: Value, first: int, count: int) -> Value:
        if count == 1:
            return Value(self, x.kind, 1, self.let(f"extractelement {x.type} {x.text}, i32 {first}"))
        picked = ", ".join(f"i32 {first + k}" for k in range(count))
        text = self.let(f"shufflevector {x.type} {x.text}, {x.type} poison, <{count} x i32> <{picked}>")
        return Value(self, x.kind, count, text)

    def tail(self, x: Value, valid: int, rest: float = 0.0) -> Value:
        """``x`` with ``rest`` in the lanes from ``valid`` on."""
        if valid >= x.lanes:
            return x
        mask = ", ".join(f"i1 {'true' if k < valid else 'false'}" for k in range(x.lanes))
        filler = self.constant(rest, x.kind, x.lanes)
        return Value(
            self,
            x.kind,
            x.lanes,
            self.let(f"select <{x.lanes} x i1> <{mask}>, {x.type} {x.text}, {x.type} {filler.text}"),
        )
