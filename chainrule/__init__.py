"""chainrule: what your network's gradients are, whether they flow, where to start, and does it train.

Names are loaded on first use: ``import chainrule`` imports neither torch nor NumPy, and formulas never need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name -> module that defines it
_EXPORTS = {
    "derive": "chainrule.verbs.derive",
    "formula": "chainrule.verbs.expression",
    "Expression": "chainrule.verbs.expression",
    "check": "chainrule.verbs.check",
    "activation": "chainrule.verbs.activation",
    "moments": "chainrule.verbs.moments",
    "initialize_": "chainrule.verbs.initialize",
    "trainability": "chainrule.verbs.initialize.trainability",
    "case": "chainrule.verbs.case",
    "chain": "chainrule.verbs.chain",
    "diagnose": "chainrule.verbs.diagnose",
    "monitor": "chainrule.verbs.monitor",
    "plan": "chainrule.verbs.checkpoint.plan",
    "checkpoint": "chainrule.verbs.checkpoint.module",
    "fit": "chainrule.verbs.fit",
    "compile_step": "chainrule.verbs.fit",
    "compile_forward": "chainrule.verbs.fit",
    "trace": "chainrule.verbs.case",
    **dict.fromkeys(("grad", "grad_and_value", "vjp", "jvp", "jacrev", "jacfwd"), "chainrule.verbs.transforms"),
    "hessian": "chainrule.verbs.hessian",
    "report": "chainrule.render.report",
    "errors": "chainrule.errors",
    "examples": "chainrule.examples",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'chainrule' has no attribute {name!r}")
    module = import_module(_EXPORTS[name])
    value = module if _EXPORTS[name].endswith("." + name) and not hasattr(module, name) else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
