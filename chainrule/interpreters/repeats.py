"""Which parts of a program are the same but for their leaves: the layers of a deep network, found by their structure.

A part is given by its outputs and by the values that go into it. Its pattern is a hash of ops, static parameters,
types and of how they hang together; names, weights and the numbers of random streams are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence

from chainrule.ir import Node, toposort

Part = tuple[Sequence[Node], Sequence[Node]]  # outputs, inputs


def pattern(outputs: Sequence[Node], inputs: Sequence[Node]) -> bytes:
    """Equal for two parts that do the same to values of the same types.

    >>> from chainrule.ir import variable
    >>> x, y, a, b = (variable(name) for name in "xyab")
    >>> pattern([x * a + x], [x]) == pattern([y * b + y], [y]) != pattern([y * b + b], [y])
    True
    """
    number: dict[Node, int] = {}
    hashed = hashlib.blake2b(digest_size=12)
    stop = set(inputs)
    for node in [*dict.fromkeys(inputs), *toposort(outputs, stop=stop.__contains__)]:
        if node in number:
            continue
        number[node] = len(number)
        if node in stop:
            hashed.update(f"in {node.type};".encode())
        elif "name" in node.params:
            hashed.update(f"leaf {node.type};".encode())
        else:
            params = sorted((key, repr(value)) for key, value in node.params.items() if key != "stream")
            operands = [number[i] for i in node.inputs]
            hashed.update(f"{node.op.name} {params} {operands} {node.type};".encode())
    hashed.update(repr([number[o] for o in outputs]).encode())
    return hashed.digest()


def repeated(parts: Mapping[Hashable, Part]) -> list[tuple[Hashable, ...]]:
    """The names of parts with one pattern, in order; parts that occur once are left out."""
    groups: dict[bytes, list[Hashable]] = {}
    for name, (outputs, inputs) in parts.items():
        groups.setdefault(pattern(outputs, inputs), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]
