"""Models, losses and optimizers of torch on compiled loops (``backends.native``).

engine      native_engine, what ``fit`` uses     step, forward, closure   single calls, and L-BFGS
traced      a traced case as the graph of one step          verify      the first step against torch
shared, architecture     what engines of one architecture share
"""

from chainrule.verbs.native.engine import NativeEngine, native_engine

__all__ = ["NativeEngine", "native_engine"]
