"""A joint graph of torch.fx (AOTAutograd's) as lines for the planner.

An op with several results is one line together with the ``getitem`` nodes that read them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map

from chainrule.backends.torch.recompute.extract import CPU, Extraction, Line, Prices, extract


def extract_fx(graph: fx.Graph, outputs: int, prices: Prices = CPU) -> Extraction:
    """The problem of a joint graph.

    Args:
        graph: placeholders called ``tangents_*`` are the cotangents. outputs: how many outputs are the forward pass's;
            the others are gradients. Every node has its fake value in ``meta["val"]``.
    """
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    cotangents = [n for n in placeholders if str(n.target).startswith("tangents")]
    found = next(n for n in graph.nodes if n.op == "output").args[0]
    returned, gradients = found[:outputs], found[outputs:]
    needed = _needs([n for n in returned if isinstance(n, fx.Node)])
    order = list(graph.nodes)
    ahead = [n for n in order if n in needed]
    behind = [n for n in order if n not in needed]
    lines = [_line(n) for n in ahead if _is_line(n)]
    forward = len(lines)
    lines += [_line(n) for n in behind if _is_line(n)]
    given = {n: n.meta["val"] for n in placeholders if isinstance(n.meta.get("val"), torch.Tensor)}
    given |= {n: n.meta["val"] for n in order if n.op == "get_attr" and isinstance(n.meta.get("val"), torch.Tensor)}
    mode = next(t.fake_mode for t in given.values() if hasattr(t, "fake_mode"))
    with mode, torch.no_grad():
        return extract(
            lines,
            forward,
            given,
            cotangents,
            [n for n in returned if isinstance(n, fx.Node)],
            [n for n in gradients if isinstance(n, fx.Node)],
            prices,
        )


def is_item(node: fx.Node) -> bool:
    """Whether a node reads one result of an op with several."""
    return node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[0], fx.Node)


def _is_line(node: fx.Node) -> bool:
    return node.op == "call_function" and not is_item(node)


def _needs(roots: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def items_of(node: fx.Node) -> list[fx.Node]:
    """The ``getitem`` nodes of an op with several results, nested ones included."""
    found = [u for u in node.users if is_item(u)]
    return [*found, *(i for u in found for i in items_of(u))]


def _line(node: fx.Node) -> Line:
    items = items_of(node)
    reads = tuple(dict.fromkeys(node.all_input_nodes))

    def run(operands: Sequence[Any]) -> list[Any]:
        by = dict(zip(reads, operands, strict=True))
        args, kwargs = tree_map(lambda x: by.get(x, x) if isinstance(x, fx.Node) else x, (node.args, node.kwargs))
        out = node.target(*args, **kwargs)  # type: ignore[operator]
        results = {node: out}
        for i in items:
            results[i] = results[i.args[0]][i.args[1]]  # type: ignore[index]
        return [results[n] for n in (node, *items)]

    stack = node.meta.get("nn_module_stack") or {}
    module = list(stack.values())[-1][0] if stack else ""
    return Line(str(node.target), reads, (node, *items), run, module, again=not is_random(node))


def is_random(node: fx.Node) -> bool:
    """Whether a node may give something else a second time, or changes something."""
    target = node.target
    tags = getattr(target, "tags", ())
    schema = getattr(target, "_schema", None)
    return torch.Tag.nondeterministic_seeded in tags or (schema is not None and schema.is_mutable)
