"""The three languages that source is written in: what they are called, and which field of an op has their words."""

from __future__ import annotations

from dataclasses import dataclass

from chainrule.ir import Code, Op
from chainrule.ir.op import Rule


@dataclass(frozen=True)
class Language:
    """One language: ``name``, the namespace of its functions, and the lines that import it."""

    name: str
    np: str
    imports: tuple[str, ...]

    def words(self, op: Op) -> str | Rule | None:
        """How an op is written, or None."""
        code = op.code
        if not isinstance(code, Code):
            return code if code is not None else self._own_words(op)
        own = {"torch": code.torch, "jax": code.jax}.get(self.name)
        return own if own is not None else self._own_words(op) or code.numpy

    def _own_words(self, op: Op) -> str | Rule | None:
        # What refers to an object of this process cannot be written down.
        return op.torch if self.name == "torch" and op.externals is None else None

    def borrows(self, op: Op) -> bool:
        """Whether the words are those of the back end for torch, whose rules take operands as text."""
        return callable(op.torch) and self.words(op) is op.torch

    def helpers(self, op: Op) -> tuple[str, ...]:
        """Sources of functions that the words call."""
        code, words = op.code, self.words(op)
        if words is op.torch and op.prelude:
            return (op.prelude,)
        if not isinstance(code, Code) or words is not code.numpy:
            return ()
        return tuple(h.replace("np.", f"{self.np}.") for h in code.helper)


NUMPY = Language("numpy", "np", ("import numpy as np",))
JAX = Language("jax", "jnp", ("import jax", "import jax.numpy as jnp"))
TORCH = Language("torch", "torch", ("import torch",))
LANGUAGES = {language.name: language for language in (NUMPY, JAX, TORCH)}
