"""Native code: a whole training loop of a small network as LLVM text, compiled by llvmlite.

``native_engine`` is what ``fit`` uses. From the graph to the machine: ``prepare`` (one step as one graph), ``schedule``
(which loops), ``layout`` (which memory), ``write`` (the loops as LLVM text, by ``values``, ``forms`` and
``vector_math``), ``jit`` (machine code and its cache), ``engine`` (torch's objects in and out).
"""

from chainrule.backends.native.engine import NativeEngine, native_engine

__all__ = ["NativeEngine", "native_engine"]
