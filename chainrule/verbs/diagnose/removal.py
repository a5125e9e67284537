"""The patch that takes one call out of the user's model: its module becomes an Identity, or its call its argument."""

from __future__ import annotations

import ast

from chainrule.frontends.torch.places import Edit
from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.naming import container
from chainrule.verbs.diagnose.patches import Patch
from chainrule.verbs.diagnose.values import Call


def without(e: Examination, made: Call, instead: str | None) -> Patch | None:
    """Takes an activation out: its module becomes an Identity, or its call in the source its argument."""
    module = container(e, made.module) if made.module else None
    if module is not None and not list(module.children()) and not list(module.parameters()):
        return Patch(f"model.set_submodule({made.module!r}, {instead or 'nn.Identity()'})")
    segment = made.place.segment
    tree = segment.tree if segment is not None else None
    if segment is None or not isinstance(tree, ast.Call):
        return None
    method = isinstance(tree.func, ast.Attribute) and made.name in tree.func.attr
    owner = ast.unparse(tree.func.value) if isinstance(tree.func, ast.Attribute) else "torch"
    free = owner in ("torch", "F", "nn.functional", "torch.nn.functional")
    if free and tree.args:
        inner = ast.unparse(tree.args[0])
    elif method:
        inner = ast.unparse(tree.func.value)  # type: ignore[union-attr]
    else:
        return None
    new = inner if instead is None else f"torch.log_softmax({inner}, 1)"
    return Patch(edits=(Edit(segment, new),))
