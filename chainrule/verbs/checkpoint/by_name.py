"""Plans by hand, named by modules: which storages are the outputs of these layers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from chainrule.errors import ModelError
from chainrule.verbs.checkpoint.program import Program


def storages_kept(program: Program, every: int | None, keep: Sequence[str]) -> set[int]:
    """Storages of the outputs of every so many layers, or of the named modules.

    Raises:
        ModelError: ``every`` below 1, or a name that is no module that was called.
    """
    calls = {c.path: c for c in program.trace.calls if c.path}
    if every is not None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ModelError("every= counts layers", given=repr(every), required="an integer from 1 on")
        keep = layers_of(program)[every - 1 :: every]
    for name in keep:
        if name not in calls:
            near = difflib.get_close_matches(name, calls, 3)
            raise ModelError(
                f"there is no module {name!r} that was called",
                given=repr(name),
                required="names as in model.named_modules()",
                instead=", ".join(map(repr, near or list(calls)[:3])),
            )
    names = program.trace.graph.name_of()
    now = program.joint.graph.names
    found: set[int] = set()
    for name in keep:
        for node in calls[name].outputs:
            value = now.get(names.get(node, ""), node)
            found.update(program.extraction.storage_of.get(value, ()))
    return found


def layers_of(program: Program) -> list[str]:
    """The layers of a model in calling order: of the longest row of modules with parameters that share a parent."""
    calls = [c.path for c in program.trace.calls if c.path]
    modules = dict(program.model.named_modules())
    rows: dict[str, list[str]] = {}
    for path in calls:
        parent, _, _ = path.rpartition(".")
        if isinstance(modules.get(path), nn.Module) and next(modules[path].parameters(), None) is not None:
            rows.setdefault(parent, []).append(path)
    if not rows:
        raise ModelError("the model has no layers to count", required="modules with parameters")
    return max(rows.values(), key=len)
