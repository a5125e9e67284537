"""Emitted source as a callable whose tracebacks show its lines, and a graph run on tensors."""

from __future__ import annotations

import builtins
import hashlib
import linecache
import traceback
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch

from chainrule.backends.torch.emit import source_of
from chainrule.errors import BackendError
from chainrule.ir import Graph, Node


class Compiled:
    """A graph as a callable of tensors in the order of its inputs, without a tape; ``source`` is its text."""

    def __init__(self, graph: Graph, source: str, function: Callable[..., Any]) -> None:
        self.graph, self.source, self._function = graph, source, function

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return self.tracked(*tensors)

    def tracked(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A call that autograd records where gradients are on: for results that are differentiated again."""
        try:
            if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
                with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                    return self._function(*tensors)  # its casts are written out
            return self._function(*tensors)
        except (RuntimeError, IndexError, TypeError) as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("<chainrule ")]
            raise BackendError(
                f"torch refused a line of the compiled function: {str(error).splitlines()[0]}",
                given=(frames[-1].line or "") if frames else "",
                required="values that the op accepts (class numbers from 0, the shapes that were traced)",
            ) from error


def compile(
    graph: Graph,
    name: str = "forward",
    free: bool = True,
    reuse: bool = False,
    inductor: bool = False,
    tracked: bool = False,
) -> Compiled:
    """The graph as a callable.

    Args:
        graph, name, free, reuse, tracked: as in ``emit.source_of``.
        inductor: hand the source to ``torch.compile`` (at the first call; it wants a C++ compiler). Random numbers
            stay those of eager execution.

    Raises:
        BackendError: it cannot be written in torch.
    """
    # Inductor lays out memory by itself.
    emitted = source_of(graph, name, free, reuse and not inductor, tracked=tracked)
    source = emitted.text
    file = f"<chainrule {name} {hashlib.blake2b(source.encode(), digest_size=6).hexdigest()}>"
    # The text is ours, made from the graph alone.
    namespace: dict[str, Any] = {"torch": torch}
    for held_name, held in emitted.names.items():
        namespace[held_name] = (
            torch.from_numpy(held.copy()).to(emitted.device) if isinstance(held, np.ndarray) else held
        )
    try:
        exec(builtins.compile(source, file, "exec"), namespace)
    except SyntaxError as error:  # a template that does not give Python
        raise BackendError(f"the emitted source is not Python: {error}", given=error.text or "") from error
    function = next(
        f for f in reversed(namespace.values()) if isinstance(f, FunctionType) and f.__code__.co_filename == file
    )
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    if inductor:
        for called, f in list(namespace.items()):
            if getattr(f, "as_it_is", False):
                namespace[called] = torch.compiler.disable(f)
    run = _by_inductor(function) if inductor else function
    compiled = Compiled(graph, source, run)
    weakref.finalize(compiled, linecache.cache.pop, file, None)
    return compiled


def _by_inductor(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled by torch, for the shapes of its first call."""
    compiled = torch.compile(function, dynamic=False, options={"fallback_random": True})

    def run(*tensors: torch.Tensor) -> Any:
        try:
            return compiled(*tensors)
        except Exception as error:
            if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise BackendError(
                    f"torch.compile refused the program: {str(error).splitlines()[0]}",
                    required="what torch.compile needs: a C++ compiler on the CPU, Triton on CUDA",
                    instead="compile=False, which runs the same source without it",
                ) from error
            raise

    return run


def run(graph: Graph, values: Mapping[Node, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The outputs of a graph for given tensors of its inputs.

    Raises:
        BackendError: an input without a tensor, or a graph that cannot be written in torch.
    """
    missing = [str(i.params["name"]) for i in graph.inputs if i not in values]
    if missing:
        raise BackendError(f"no value for input {', '.join(missing)}", required="a tensor for every input of the graph")
    return compile(graph)(*(values[i] for i in graph.inputs))
