"""What an op's ``native`` rule may use: arithmetic by Python operators, and the functions here.

A rule ``(m, *values, **params) -> value`` is written once and serves scalars and vectors of every width and dtype.
"""

from __future__ import annotations

from chainrule.backends.native import vector_math as vm
from chainrule.backends.native.emitter import Emitter
from chainrule.backends.native.values import Operand, Value


class Forms:
    """The functions of the native back end, bound to the module being written."""

    def __init__(self, e: Emitter) -> None:
        self.e = e

    def where(self, c: Value, a: Operand, b: Operand) -> Value:
        """``a`` where the condition holds, else ``b``."""
        return self.e.where(c, a, b)

    def compare(self, op: str, a: Operand, b: Operand) -> Value:
        """``gt ge lt le eq ne``."""
        return self.e.compare(op, a, b)

    def maximum(self, a: Operand, b: Operand) -> Value:
        """The larger; NaN wins."""
        return self.e.maximum(a, b)

    def minimum(self, a: Operand, b: Operand) -> Value:
        """The smaller; NaN wins."""
        return self.e.minimum(a, b)

    def cast(self, a: Value, dtype: str) -> Value:
        """``a`` in a dtype of the IR."""
        return self.e.convert(a, KINDS[dtype])

    def like(self, number: float, x: Value) -> Value:
        """A number in the type of ``x``."""
        return self.e.constant(number, x.kind, x.lanes)

    def call(self, name: str, *xs: Value) -> Value:
        """An LLVM intrinsic: sqrt, fabs, floor, ceil, trunc, rint, copysign, tan, asin, acos, atan, ..."""
        return self.e.call(name, *xs)

    def pow(self, a: Value, b: Operand) -> Value:
        """``a^b``."""
        return vm.power(self.e, a, b)

    def exp(self, x: Value) -> Value:
        """e^x."""
        return vm.exp(self.e, x)

    def expm1(self, x: Value) -> Value:
        """e^x - 1."""
        return vm.expm1(self.e, x)

    def log(self, x: Value) -> Value:
        """Natural logarithm."""
        return vm.log(self.e, x)

    def log1p(self, x: Value) -> Value:
        """log(1 + x)."""
        return vm.log1p(self.e, x)

    def tanh(self, x: Value) -> Value:
        """Hyperbolic tangent."""
        return vm.tanh(self.e, x)

    def sigmoid(self, x: Value) -> Value:
        """1 / (1 + e^-x)."""
        return vm.sigmoid(self.e, x)

    def erf(self, x: Value) -> Value:
        """Error function."""
        return vm.erf(self.e, x)

    def sin(self, x: Value) -> Value:
        """Sine."""
        return vm.sin(self.e, x)

    def cos(self, x: Value) -> Value:
        """Cosine."""
        return vm.cos(self.e, x)

    def softplus(self, x: Value) -> Value:
        """log(1 + e^x), without overflow."""
        return self.e.maximum(x, 0.0) + self.log1p(self.exp(-self.call("fabs", x)))


KINDS = {
    "bool": "i1",
    "uint8": "i8",
    "int8": "i8",
    "int32": "i32",
    "int64": "i64",
    "float32": "f32",
    "float64": "f64",
}
