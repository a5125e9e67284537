"""``torch.compile(model, backend="chainrule", options={"memory_budget": ...})``: our plan in AOTAutograd.

AOTAutograd traces the joint graph; here it is planned and cut into a forward and a backward graph, in which what is
recomputed is written again where it is needed (more than once, where the plan nests). Inductor compiles the two where a
C++ compiler or Triton exists, else they run eagerly, node by node, and free as they go. Draws never run twice here:
what they drew is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx.node import map_arg

from chainrule.backends.torch.recompute.extract import CPU, CUDA, Extraction
from chainrule.backends.torch.recompute.fx_lines import extract_fx, is_item, items_of
from chainrule.backends.torch.recompute.sizes import BySizes, symbolic
from chainrule.errors import BackendError, BudgetError
from chainrule.planning.budget import parsed
from chainrule.planning.frontier import frontier
from chainrule.planning.problem import Schedule


def chainrule(module: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
    """A back end of ``torch.compile``.

    Options: ``memory_budget``: bytes for everything that is alive (an int, or text such as ``"8GB"``), or a float, a
    fraction of the unplanned activation peak; ``compiler``: ``"inductor"`` or ``"eager"``.

    Raises:
        ModelError: a budget that is none. BackendError: another option, or a graph that this back end does not take.
        BudgetError: less than any plan needs. ``torch.compile`` wraps them in an error of its own.
    """
    options = dict(kwargs.get("options") or {})
    budget = parsed(options.pop("memory_budget", 1.0))
    compiler = options.pop("compiler", None) or ("inductor" if has_compiler() else "eager")
    if options:
        raise BackendError(
            f"unknown options of the back end chainrule: {', '.join(options)}",
            required="memory_budget and compiler",
        )
    if symbolic(inputs):
        return BySizes(module, lambda graph, tensors: _compiled(graph, tensors, budget, compiler))
    return _compiled(module, inputs, budget, compiler)


def _compiled(module: fx.GraphModule, inputs: Sequence[Any], budget: int | float, compiler: str) -> Any:
    partition = Partition(budget)
    if compiler == "inductor":
        from chainrule.backends.torch.recompute.inductor import compiled  # heavy: Inductor's own modules

        return compiled(module, inputs, partition)
    from torch._dynamo.backends.common import aot_autograd

    def run_as_it_is(graph: fx.GraphModule, _: Any) -> Any:
        def boxed(arguments: list[Any]) -> Any:
            return fx.Interpreter(graph).boxed_run(arguments)

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed

    return aot_autograd(fw_compiler=run_as_it_is, partition_fn=partition)(module, list(inputs))


def has_compiler() -> bool:
    """Whether Inductor has what it needs: Triton for CUDA, a C++ compiler otherwise."""
    return torch.cuda.is_available() or any(shutil.which(c) for c in ("g++", "clang++", "c++"))


_CUT = 2  # counts up when plans are cut otherwise: Inductor's caches outlive this process


class Partition:
    """Cuts a joint graph by a plan; ``extraction`` and ``schedule`` are those of the last graph."""

    def __init__(self, budget: int | float) -> None:
        self.budget = budget
        self.extraction: Extraction | None = None
        self.schedule: Schedule | None = None

    def uuid(self) -> str:
        """What Inductor's cache goes by."""
        return f"chainrule-{_CUT}-{self.budget!r}"

    def __call__(
        self, joint: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **_: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        written = written_inputs(joint.graph, num_fwd_outputs)
        num_fwd_outputs += len(written)
        joint.graph.eliminate_dead_code()
        joint.graph = fx_graph_cse(joint.graph)
        joint.recompile()
        symbolic = [
            n for n in joint.graph.nodes if n.op == "placeholder" and isinstance(n.meta.get("val"), torch.SymInt)
        ]
        if symbolic:
            raise BackendError(
                "the back end chainrule plans for fixed sizes",
                given=f"{len(symbolic)} symbolic sizes",
                instead="torch.compile(..., dynamic=False)",
            )
        values = [n.meta["val"] for n in joint.graph.nodes if n.op == "placeholder" and _is_tensor(n)]
        on_cuda = any(v.device.type == "cuda" for v in values)
        extraction = extract_fx(joint.graph, num_fwd_outputs, CUDA if on_cuda else CPU)
        found = frontier(extraction.problem)
        static = sum(
            n.meta["val"].untyped_storage().nbytes()
            for n in joint.graph.nodes
            if n.op == "placeholder" and _is_tensor(n) and not str(n.target).startswith("tangents")
        )
        wanted = self.budget
        limit = wanted * found.plans[0].peak if isinstance(wanted, float) else wanted - static
        try:
            schedule = found.within(limit).schedule
        except BudgetError as error:
            least = found.plans[-1].peak
            raise BudgetError(
                "no plan fits into memory_budget",
                given=repr(self.budget),
                required=f"at least {static + least:,} bytes, or the fraction {least / found.plans[0].peak:.3f}",
                minimum_bytes=static + least,
            ) from error
        self.extraction, self.schedule = extraction, schedule
        return cut(joint, extraction, schedule, num_fwd_outputs, written)


def written_inputs(graph: fx.Graph, outputs: int) -> list[str]:
    """Takes writes into inputs (running statistics) out of a joint graph; what they write becomes outputs of the
    forward pass, behind the others.

    Returns:
        The names of these inputs, in order.
    Raises:
        BackendError: any other write into a tensor.
    """
    *_, end = graph.nodes
    names: list[str] = []
    news: list[fx.Node] = []
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        target, value = node.args[0], node.args[1] if len(node.args) > 1 else None
        copy = node.target is torch.ops.aten.copy_.default and isinstance(target, fx.Node) and not node.users
        if not copy or target.op != "placeholder" or not isinstance(value, fx.Node) or _after_tangents(value):
            raise BackendError(
                "the back end chainrule plans programs that write into no tensor but their inputs, in the forward pass",
                given=str(node.format_node()),
                instead='options={"compiler": "eager"}, or chainrule.checkpoint(model, batch, budget=...)',
            )
        names.append(target.name)
        news.append(value)
        graph.erase_node(node)
    found = list(end.args[0])
    end.args = ((*found[:outputs], *news, *found[outputs:]),)
    return names


def _after_tangents(node: fx.Node) -> bool:
    """Whether a value depends on a cotangent."""
    stack, seen = [node], set()
    while stack:
        n = stack.pop()
        if n.op == "placeholder" and str(n.target).startswith("tangents"):
            return True
        stack += [i for i in n.all_input_nodes if i not in seen]
        seen.update(n.all_input_nodes)
    return False


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def cut(
    joint: fx.GraphModule,
    extraction: Extraction,
    schedule: Schedule,
    outputs: int,
    written: Sequence[str] = (),
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and the backward graph of a schedule; ``written``: inputs that the last outputs are written into."""
    found = next(n for n in joint.graph.nodes if n.op == "output").args[0]
    placeholders = [n for n in joint.graph.nodes if n.op == "placeholder"]
    tangents = [n for n in placeholders if str(n.target).startswith("tangents")]
    primals = [n for n in placeholders if n not in tangents]
    # The backward pass first: what it reads of the forward pass is what has to be kept.
    behind = _Copy(extraction)
    for n in tangents:
        behind.placeholder(n)
    for t in schedule.order[schedule.split :]:
        behind.run(t)
    gradients = behind.outputs(found[outputs:])
    kept = list(behind.outside)
    ahead = _Copy(extraction)
    for n in primals:
        ahead.placeholder(n)
    for t in schedule.order[: schedule.split]:
        ahead.run(t)
    returned, held = ahead.outputs(found[:outputs]), ahead.outputs(kept)
    news = returned[outputs - len(written) :]
    inputs = {n.name: n for n in ahead.graph.nodes if n.op == "placeholder"}
    for name in written:  # the backward pass reads an input as it was
        was = ahead.graph.call_function(torch.ops.aten.clone.default, (inputs[name],)) if inputs[name] in held else None
        if was is not None:
            was.meta = dict(inputs[name].meta)
            held = [was if h is inputs[name] else h for h in held]
    for name, new in zip(written, news, strict=True):
        ahead.graph.call_function(torch.ops.aten.copy_.default, (inputs[name], new)).meta = dict(inputs[name].meta)
    ahead.graph.output((*returned[: outputs - len(written)], *held))
    behind.graph.output(tuple(gradients))
    # Placeholders of the backward graph in the order in which it is called: what is kept, then cotangents.
    first = next(iter(behind.graph.nodes))
    for n in kept:
        if behind.outside[n] is not first:
            first.prepend(behind.outside[n])
    modules = []
    for copy in (ahead, behind):
        copy.graph.lint()
        modules.append(fx.GraphModule(joint, copy.graph))
    return modules[0], modules[1]


class _Copy:
    """A graph that is written task by task; a task that runs again is written again."""

    def __init__(self, extraction: Extraction) -> None:
        self.extraction = extraction
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.outside: dict[fx.Node, fx.Node] = {}  # what comes from elsewhere -> its placeholder
        self._views_on: dict[int, set[fx.Node]] = {}

    def placeholder(self, node: fx.Node) -> None:
        """An input."""
        self.env[node] = self.graph.node_copy(node)

    def run(self, task: int) -> None:
        """One task, and the views that it reads."""
        line = self.extraction.lines[self.extraction.line_at[task]]
        node = line.writes[0]
        assert isinstance(node, fx.Node)
        for read in node.all_input_nodes:
            self.value(read)
        self._write(node)
        for s in self.extraction.problem.tasks[task].writes:  # views of what was there before are views no more
            for view in self._views_on.pop(s, ()):
                self.env.pop(view, None)

    def value(self, node: fx.Node) -> fx.Node:
        """A value: as it is, or as a view made again, or from outside."""
        stack = [node]
        while stack:
            n = stack[-1]
            if n in self.env:
                stack.pop()
                continue
            base = items_parent(n)
            at = self.extraction.made_by.get(base)
            if n.op == "get_attr":
                self.env[n] = self.graph.node_copy(n)
            elif at is not None and at in self.extraction.views:
                waiting = [r for r in base.all_input_nodes if r not in self.env]
                if waiting:
                    stack += waiting
                    continue
                self._write(base)
                for s in self.extraction.needs[base]:
                    self._views_on.setdefault(s, set()).update([base, *items_of(base)])
            else:
                self._from_outside(n)
            stack.pop()
        return self.env[node]

    def _from_outside(self, node: fx.Node) -> None:
        first = next(iter(self.graph.nodes), None)
        place = self.graph.inserting_before(first) if first is not None else self.graph.inserting_after()
        with place:
            made = self.graph.placeholder(node.name)
        made.meta = dict(node.meta)
        self.env[node] = self.outside[node] = made

    def _write(self, node: fx.Node) -> None:
        for n in (node, *items_of(node)):
            self.env[n] = self.graph.node_copy(n, lambda x: self.env[x])

    def outputs(self, values: Sequence[Any]) -> list[Any]:
        """Values that leave the graph."""
        return [map_arg(v, self.value) if isinstance(v, fx.Node) else v for v in values]


def items_parent(node: fx.Node) -> fx.Node:
    """The op that a ``getitem`` reads, or the node itself."""
    while is_item(node):
        node = node.args[0]  # type: ignore[assignment]
    return node
