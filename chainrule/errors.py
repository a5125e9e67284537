"""Every exception that chainrule raises on purpose.

    ChainruleError                     anything a user can cause or meet
    ├── FormulaError   (ValueError)    text that is not in the formula language; carries line, column and a caret
    ├── ShapeError     (ValueError)    operands whose shapes do not fit
    ├── UnsupportedOpError (NotImplementedError)   an op, or a rule of an op, that is not declared
    ├── BudgetError    (ValueError)    a memory budget that no plan can meet; carries the least feasible bytes
    ├── BackendError   (RuntimeError)  a back end that cannot compile or run a graph
    ├── ModelError     (ValueError)    a model, batch, loss or optimizer that cannot be used as given
    │   └── StaleTraceError            a batch on which the program would do other ops than it did when traced
    └── MissingExtraError (ImportError) a verb whose optional packages are not installed; names the extra

Each message has four parts: what failed and where, what was given, what is required, what to write instead.
The lowest layer raises with what it knows; an entry point may add the place with :meth:`ChainruleError.located`.
"""

from __future__ import annotations

from typing import Any


class ChainruleError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what failed, and where.
        given: what was given (shapes, values, names).
        required: what is required.
        instead: what to write instead.
    """

    def __init__(self, what: str, *, given: str = "", required: str = "", instead: str = "") -> None:
        self.what, self.given, self.required, self.instead = what, given, required, instead
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        for label, part in (("given", self.given), ("required", self.required), ("instead", self.instead)):
            if part:
                parts.append(f"  {label + ':':10}{part}")
        return "\n".join(parts)

    def located(self, where: str) -> ChainruleError:
        """The same error with the place in front of it, for entry points that know more than the raiser."""
        self.what = f"{where}: {self.what}"
        return self


class FormulaError(ChainruleError, ValueError):
    """Text that is not in the formula language: carries ``source``, ``line`` and ``column`` (both from 1)."""

    def __init__(
        self,
        what: str,
        *,
        source: str = "",
        position: int | None = None,
        given: str = "",
        required: str = "",
        instead: str = "",
    ) -> None:
        super().__init__(what, given=given, required=required, instead=instead)
        self.source, self.position = source, position
        self.line = self.column = None
        if position is not None:
            self.line = source.count("\n", 0, position) + 1
            self.column = position - (source.rfind("\n", 0, position) + 1) + 1

    def __str__(self) -> str:
        text = super().__str__()
        if self.position is None or self.column is None:
            return text
        start = self.source.rfind("\n", 0, self.position) + 1
        end = self.source.find("\n", self.position)
        excerpt, caret = self.source[start : end if end >= 0 else None], self.column - 1
        if len(excerpt) > 100:  # a long line: show the neighbourhood of the caret only
            left = max(0, caret - 60)
            excerpt, caret = excerpt[left : left + 100], caret - left
        head, *rest = text.split("\n")
        where = f"line {self.line}, column {self.column}"
        return "\n".join([f"{head} ({where})", f"    {excerpt}", f"    {' ' * caret}^", *rest])


class ShapeError(ChainruleError, ValueError):
    """Operands whose shapes do not fit together; names both."""


class UnsupportedOpError(ChainruleError, NotImplementedError):
    """An op that is not declared, or has no rule for what was asked."""


class BudgetError(ChainruleError, ValueError):
    """A budget below what any plan needs. ``minimum_bytes`` is the least feasible one."""

    def __init__(self, what: str, *, minimum_bytes: int, given: str = "", required: str = "", instead: str = ""):
        super().__init__(what, given=given, required=required, instead=instead)
        self.minimum_bytes = minimum_bytes


class BackendError(ChainruleError, RuntimeError):
    """A back end that cannot compile or run a graph."""


class ModelError(ChainruleError, ValueError):
    """A model, batch, loss or optimizer that cannot be used as given.

    Attributes:
        place: of what the user's code raised, its line (:class:`chainrule.frontends.torch.places.Place`), where known.
        module: path of the module that ran then.
    """

    place: Any = None
    module: str = ""


class StaleTraceError(ModelError):
    """A batch on which the program would do other ops than it did when it was traced."""


class MissingExtraError(ChainruleError, ImportError):
    """A verb whose optional packages are not installed; names the extra to install."""

    def __init__(self, verb: str, package: str, extra: str) -> None:
        super().__init__(
            f"{verb} needs {package}, which is not installed",
            required=f"the extra {extra!r}",
            instead=f'pip install "chainrule[{extra}]"',
        )
