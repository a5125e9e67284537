"""``d.function(backend)``: the emitted source as a callable that takes arguments by name and checks their shapes."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chainrule.errors import BackendError, ChainruleError, MissingExtraError, ShapeError
from chainrule.ir import Dim, Node, shape_text
from chainrule.ir.dims import solve_for
from chainrule.verbs.derivatives import derivatives

BACKENDS = ("torch", "numpy")
_MAIN = {"gradient": 1, "jacobian": 1, "hessian": 2, "third": 3}  # what a result of that order is


class CompiledDerivative:
    """The derivative of a result as a callable of the variables, by name or in order.

    Attributes:
        source: the text that runs, the same as ``d.code(backend)``.
        names: the variables, in order.

    Its other functions are attributes: ``value``, ``gradient``, ``hessian``, ``hessian_vector_product``, ``jacobian``,
    ``vjp``, as far as the source has them; the products take their vector as the last argument.
    """

    def __init__(self, result: Any, backend: str) -> None:
        if backend not in BACKENDS:
            raise ChainruleError(f"no backend {backend!r}", given=backend, required=f"one of {', '.join(BACKENDS)}")
        found = derivatives(result)
        self.backend, self.source = backend, result.code(backend)
        self.names = tuple(str(i.params["name"]) for i in found.inputs)
        self._inputs: dict[str, Sequence[Node]] = {p.name: p.graph.inputs for p in found.parts}
        self._main = next(p.name for p in found.parts[::-1] if _MAIN.get(p.kind) == result.order)
        self._namespace = _executed(self.source, backend)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """The derivative; a tuple where there are several variables.

        Raises:
            ShapeError: arguments whose shapes do not fit. ChainruleError: a missing or unknown argument.
        """
        return self._call(self._main, args, named)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self._inputs:
            raise AttributeError(f"no {name!r} here: {', '.join(self._inputs)}")
        return lambda *args, **named: self._call(name, args, named)

    def _call(self, part: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        inputs = self._inputs[part]
        names = [str(i.params["name"]) for i in inputs]
        given = dict(zip(names, args, strict=False))
        twice = [n for n in named if n in given]
        sizes = {n: v for n, v in named.items() if n not in names}
        given |= {n: v for n, v in named.items() if n in names}
        missing = [n for n in names if n not in given]
        if missing or twice or len(args) > len(names):
            raise ChainruleError(
                f"{part}: arguments that do not fit",
                given=f"{len(args)} in order, {', '.join(named) or 'none'} by name",
                required=f"each of {', '.join(names)} once",
            )
        values = [self._array(given[n]) for n in names]
        _fit(inputs, values, {n: int(v) for n, v in sizes.items()})
        try:
            return self._namespace[part](*values, **sizes)
        except TypeError as error:
            raise ChainruleError(f"{part}: {error}", given=", ".join(named)) from error

    def _array(self, value: Any) -> Any:
        if self.backend == "torch":
            torch = self._namespace["torch"]
            return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, dtype=torch.float64)
        array = np.asarray(value)
        return array if array.dtype.kind == "f" else array.astype(np.float64)


def _executed(source: str, backend: str) -> dict[str, Any]:
    """The namespace that the source defines; tracebacks show its lines."""
    file = f"<chainrule {backend} {hash(source) & 0xFFFFFFFF:08x}>"
    namespace: dict[str, Any] = {"__name__": "chainrule_emitted"}
    try:
        exec(compile(source, file, "exec"), namespace)  # the text is ours, made from the graph alone
    except ModuleNotFoundError as error:
        raise MissingExtraError("function", error.name or backend, backend) from error
    except SyntaxError as error:  # a template that does not give Python
        raise BackendError(f"the emitted source is not Python: {error}", given=error.text or "") from error
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    return namespace


def _fit(inputs: Sequence[Node], values: Sequence[Any], sizes: dict[str, int]) -> None:
    """Refuses arrays whose shapes are not those of the variables."""
    if not any(i.shape for i in inputs):
        return  # numbers alone: such a formula also works elementwise
    for node, value in zip(inputs, values, strict=True):
        shape = tuple(value.shape)
        fits = len(shape) == node.type.rank and all(
            solve_for(size, n, sizes) if isinstance(size, Dim) else size == n
            for size, n in zip(node.shape, shape, strict=True)
        )
        if not fits:
            known = ", ".join(f"{k} = {v}" for k, v in sizes.items())
            raise ShapeError(
                f"{node.params['name']!r} has a shape that does not fit",
                given=f"({shape_text(shape)})",
                required=f"({shape_text(node.shape)})" + (f" with {known}" if known else ""),
            )
