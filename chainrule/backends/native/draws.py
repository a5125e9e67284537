"""Random draws of compiled loops: a hash of step, stream and element number. Not torch's bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import chainrule.ops  # noqa: F401  it declares what a variable is
from chainrule.backends.native.access import ZERO, Index, sizes
from chainrule.backends.native.values import Value
from chainrule.backends.native.write import Writer
from chainrule.errors import UnsupportedOpError
from chainrule.ir import Node, TensorType, variable

STEP_COUNTER = variable("random_step", TensorType((), "int64"))


def drawing(w: Writer) -> Callable[[Node, Index], Value]:
    """Bernoulli draws from a counter: a hash of step, stream and element number. Not torch's bits."""

    def draw(node: Node, index: Index) -> Value:
        e = w.e
        if node.params["method"] != "bernoulli_":
            raise UnsupportedOpError(f"random draw {node.params['method']} in native code", instead='backend="torch"')
        (keep,) = node.params["args"]
        number, stride = ZERO, 1
        for a in reversed(range(len(index))):
            number, stride = number + index[a] * stride, stride * sizes(node)[a]
        x = e.convert(e.index(number), "i32")
        step = e.convert(w.value(STEP_COUNTER, ()), "i32")
        salt = _salt(node)
        x = x * _signed(_OF_ELEMENT) + (step * _signed(_OF_STEP) + _signed(salt))
        for shift, factor in _ROUNDS:
            x = e.logic("xor", x, e.shift("lshr", x, shift))
            if factor != 1:
                x = x * _signed(factor)
        # The upper 24 bits as a number in [0, 2^24).
        uniform = e.shift("lshr", x, 8)
        kept = e.compare("lt", uniform, round(float(keep) * 2**24))
        return e.convert(kept, w.kind(node))

    return draw


def drawn(node: Node, step: int) -> np.ndarray:
    """What compiled code draws for a node in step number ``step``: the same hash in NumPy."""
    (keep,) = node.params["args"]
    shape = sizes(node)
    x = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint32) * np.uint32(_OF_ELEMENT)
    x += np.uint32((step * _OF_STEP + _salt(node)) & 0xFFFFFFFF)
    for shift, factor in _ROUNDS:
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    return (x >> np.uint32(8) < round(float(keep) * 2**24)).reshape(shape).astype(node.type.dtype)


_OF_ELEMENT, _OF_STEP = 0x85EBCA77, 0xC2B2AE3D
_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 0x9E3779B1), (15, 0x85EBCA6B), (16, 1))


def _salt(node: Node) -> int:
    return (node.params["stream"] * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number
