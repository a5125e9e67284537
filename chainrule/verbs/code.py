"""``d.code(target)`` and ``d.function(backend)``: the derivatives of a result as source that runs on its own.

Each target has one writer, ``(result) -> text``; a new target is one more entry in :data:`WRITERS`. The writers of this
file give functions for people to paste: the value, its gradient, Hessian and products with them, and a check of all of
these by finite differences (:mod:`chainrule.verbs.self_check`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from chainrule.backends.source import LANGUAGES, Language, helpers, write
from chainrule.backends.source.sizes import shape_helper
from chainrule.errors import ChainruleError
from chainrule.ir import shape_text
from chainrule.verbs.autograd_function import autograd
from chainrule.verbs.derivatives import Derivatives, derivatives
from chainrule.verbs.self_check import check_source


def code(result: Any, target: str, **options: Any) -> str:
    """The source of a result's derivatives for a target.

    Raises:
        ChainruleError: an unknown target, or an option that it does not have.
    """
    if target not in WRITERS:
        raise ChainruleError(f"no code for {target!r}", given=target, required=f"one of {', '.join(WRITERS)}")
    known = [p.name for p in signature(WRITERS[target]).parameters.values() if p.name not in ("result", "language")]
    for option in options:
        if option not in known:
            required = f"one of {', '.join(known)}" if known else "no option"
            raise ChainruleError(f"code({target!r}) has no option {option!r}", given=option, required=required)
    return WRITERS[target](result, **options)


def _source(result: Any, language: Language) -> str:
    """A file: what it computes, imports, helpers, one function per derivative, and the check."""
    found = derivatives(result)
    functions = [write(part.graph, part.name, language, part.doc, part.kind != "value") for part in found.parts]
    check = check_source(found, functions, language)
    shared = [*helpers(functions), shape_helper(language)]
    imports = list(language.imports)
    if any("math." in h for h in shared):
        imports.insert(0, "import math\n")
    if language.name == "jax":
        imports.append("import numpy as np")
    texts = [*shared, *(f.text for f in functions), check]
    head = "\n".join([*_header(found), "", *imports])
    return "\n\n\n".join(t.rstrip("\n") for t in (head, *texts)) + "\n"


def _header(found: Derivatives) -> list[str]:
    """The formula and its derivatives as comments; a user's text is data, so it never leaves its comment line."""
    lines = [f"{name} = {body}" for name, body in found.definitions]
    lines += [""] + [f"{symbol} = {body}" for symbol, body in found.closed_forms]
    shapes = ", ".join(f"{i.params['name']}: {shape_text(i.shape)}" for i in found.inputs if i.shape)
    lines += ["", f"shapes: {shapes}"] if shapes else []
    lines += ["", "Written by chainrule. Run this file to check it against finite differences."]
    flat = [part for line in lines for part in (line.splitlines() or [""])]
    return [f"# {line}".rstrip() for line in flat]


WRITERS: dict[str, Callable[..., str]] = {
    **{name: partial(_source, language=language) for name, language in LANGUAGES.items()},
    "autograd": autograd,
}
