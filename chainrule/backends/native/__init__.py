"""Native code: a whole training loop of a small network as LLVM text, compiled by llvmlite.

engine      native_engine, what ``fit`` uses
step, forward, closure     single calls, for loops of one's own and for L-BFGS
traced, prepare, optimizers     a trace as the graph of one step, torch's rules included
schedule, plan     which loops
layout, axes, memory     which memory
program, gather, copies, draws     the loop over steps
kernels, accumulate, write, access     one loop nest as LLVM text, by
emitter, values, forms, vector_math     instructions
jit         machine code and its cache
verify      the first step against torch
shared, architecture     what engines of one architecture share
"""

from chainrule.backends.native.engine import NativeEngine, native_engine

__all__ = ["NativeEngine", "native_engine"]
