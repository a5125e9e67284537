"""What a program holds, by kind: what ``Graph.summary()`` returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """What a program holds: name of op or call -> how often.

    Attributes:
        declared: ops with rules of their own. composite: ops declared by an expansion, with a fused kernel.
        opaque: calls without a declaration, by torch's name for them. inputs: leaves.
        constants: values that depend on no input; what was computed from them while tracing is folded into them.
    """

    declared: Mapping[str, int]
    composite: Mapping[str, int]
    opaque: Mapping[str, int]
    inputs: int
    constants: int

    @classmethod
    def of(cls, nodes: Iterable[Any]) -> Summary:
        """The summary of a program's nodes."""
        counts: dict[str, dict[str, int]] = {"declared": {}, "composite": {}, "opaque": {}}
        inputs = constants = 0
        for node in nodes:
            if not node.inputs and (node.op.family == "leaf" or "literal" in node.params):
                named = "name" in node.params
                inputs, constants = inputs + named, constants + (not named)
                continue
            kind = node.op.family if node.op.family in ("composite", "opaque") else "declared"
            kind = "composite" if node.op.family == "kernel" else kind
            name = getattr(node.params.get("call"), "name", node.op.name)
            counts[kind][name] = counts[kind].get(name, 0) + 1
        return cls(inputs=inputs, constants=constants, **{k: dict(sorted(v.items())) for k, v in counts.items()})

    def to_dict(self) -> dict[str, Any]:
        return {
            "declared": dict(self.declared),
            "composite": dict(self.composite),
            "opaque": dict(self.opaque),
            "inputs": self.inputs,
            "constants": self.constants,
        }

    def __str__(self) -> str:
        def row(kind: str, counts: Mapping[str, int]) -> str:
            return f"{kind:10}" + (", ".join(f"{n} x{c}" if c > 1 else n for n, c in counts.items()) or "none")

        rows = [row(k, getattr(self, k)) for k in ("declared", "composite", "opaque")]
        return "\n".join([*rows, f"{'inputs':10}{self.inputs}", f"{'constants':10}{self.constants}"])
