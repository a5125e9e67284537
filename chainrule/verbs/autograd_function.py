"""``d.code("autograd")``: a formula as a ``torch.autograd.Function`` in a file that runs and checks itself.

Forward pass, the residuals it saves, and the simplified vector-Jacobian product, as a person writes them for a kernel:
one matrix product per line, statistics named, nothing computed that no gradient asked for. What is kept and what is
computed again is decided in :mod:`chainrule.verbs.residual_plan`; this file writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from chainrule.backends.identifiers import identifier, unique
from chainrule.backends.source import TORCH, Function, write
from chainrule.backends.source.passes import Pass, describe, reading_sizes, write_pass
from chainrule.backends.source.sizes import shape_helper, with_valid_sizes
from chainrule.backends.source.write import RESERVED
from chainrule.errors import BackendError
from chainrule.interpreters.text import text
from chainrule.ir import Dim, Graph, Node, TensorType, shape_text, substitute_nodes, toposort, variable
from chainrule.ir.dims import substitute
from chainrule.verbs.autograd_check import check_source
from chainrule.verbs.expression import resolve
from chainrule.verbs.named_program import NamedProgram
from chainrule.verbs.residual_plan import ELEMENT, ResidualPlan, residual_plan

_WIDTH = 110


def autograd(result: Any, sizes: Mapping[str, int] | None = None, name: str = "formula") -> str:
    """Source of a ``torch.autograd.Function`` of a derived formula.

    Args:
        result: of ``derive``; it gives gradients for all of its ``wrt``. sizes: numbers for named dimensions, by
            which values are kept or computed again. name: of the function; the class has it in capitals.

    Raises:
        ChainruleError: ``wrt`` names something that is no input, or an unknown size.
        BackendError: a part that torch cannot compute (an unknown function), or a size that no input has.
    """
    program = _with_valid_sizes(result.program)
    plan = residual_plan(program, result.wrt, sizes)
    return _File(program, plan, identifier(name)).text()


def _with_valid_sizes(program: NamedProgram) -> NamedProgram:
    """The program with sizes whose names are no variable's: in Python they would be one name."""
    nodes = [resolve(program.symbol[n], program.definitions) for n in program.order]
    graph = Graph(program.leaves, tuple(nodes))
    taken: list[str] = [*RESERVED, "ctx", "inputs", "output", "math", "sys"]
    taken += [identifier(str(i.params["name"]), taken) for i in program.leaves]
    renamed, _ = with_valid_sizes(graph, taken)
    return NamedProgram(list(zip(program.order, renamed.outputs, strict=True)), renamed.inputs)


class _File:
    """The parts of the file, in the order in which they are written."""

    def __init__(self, program: NamedProgram, plan: ResidualPlan, name: str) -> None:
        self.program, self.plan, self.name = program, plan, name
        self.class_name = "".join(p[:1].upper() + p[1:] for p in name.split("_")) or "Formula"
        self.class_name += "Function" if self.class_name == name else ""
        taken = [*RESERVED, "ctx", "inputs", "output", "math", "sys"]
        self.argument: dict[Node, str] = {}
        for i in plan.inputs:
            self.argument[i] = unique(str(i.params["name"]), [*taken, *self.argument.values()])
        self.like = next((a for i, a in self.argument.items() if i.shape), next(iter(self.argument.values())))
        self.forward = self._forward_pass()
        self.called: dict[Node, str] = {**self.forward.named}
        if plan.output not in self.called:
            self.called[plan.output] = unique(program.output, [*taken, *self.called.values()])
        self.cotangent = unique(str(plan.cotangent.params["name"]), self.called.values())
        self.main = self._backward_pass(plan.gradients, {plan.cotangent: self.cotangent}, self.cotangent)
        self.again: dict[Node, tuple[str, Pass]] = {}
        for node, (seed, gradients) in (plan.again or {}).items():
            called = unique(f"g_{self.called[node]}", self.called.values())
            self.again[node] = called, self._backward_pass(gradients, {seed: called}, called)

    # ---- the passes ----------------------------------------------------------------------------------------
    def _forward_pass(self) -> Pass:
        plan = self.plan
        graph = Graph(plan.inputs, (plan.output, *plan.extra))
        extra = {n: plan.names.get(n) or describe(n, self.argument) for n in plan.extra}
        names = {**plan.names, **extra, plan.output: self.program.output}
        return write_pass(graph, list(self.argument.values()), names, self.like)

    def _backward_pass(self, gradients: Sequence[Node | None], seeds: Mapping[Node, str], like: str) -> Pass:
        """The lines of a backward pass: residuals are leaves there, by the names of the forward pass."""
        plan = self.plan
        image = {n: variable(self._residual(n), n.type) for n in plan.kept}
        image |= {n: variable(called, n.type) for n, called in seeds.items()}
        roots = [g for g in gradients if g is not None]
        marked = [*plan.names, *plan.ends]
        cut = substitute_nodes([*roots, *marked], image)
        graph = Graph(tuple(image.values()), cut[: len(roots)])
        arguments = [*(self._residual(n) for n in plan.kept), *seeds.values()]
        inside = set(graph.nodes)
        names: dict[Node, str] = {}
        for node, new in zip(marked, cut[len(roots) :], strict=True):
            if new in inside and new.inputs:
                names.setdefault(new, plan.names.get(node) or self._of_cotangent(plan.ends[node]))
        for i, g in zip((i for i, g in zip(plan.inputs, gradients, strict=True) if g is not None), roots, strict=True):
            new = cut[roots.index(g)]
            if new.inputs:
                names.setdefault(new, f"d{self.argument[i]}")
        return write_pass(graph, arguments, names, like)

    def _of_cotangent(self, value: Node) -> str:
        return f"d{self.forward.named.get(value) or describe(value, {**self.argument, **self.forward.named})}"

    def _residual(self, node: Node) -> str:
        return self.called[node]

    # ---- the text ------------------------------------------------------------------------------------------
    def text(self) -> str:
        plan = self.plan
        reference = self._reference()
        helpers = dict.fromkeys((*self.forward.helpers, *self.main.helpers, *reference.helpers))
        body = "\n".join(
            [self._class(), "", "", self._wrapper(), "", "", *(f"{h}\n" for h in helpers), reference.text, ""]
        )
        check = check_source(plan, self.name, [self.argument[i] for i in plan.inputs])
        uses_math = re.search(r"\bmath\.", body + check)
        imports = [*(["import math"] if uses_math else []), "import sys", "", "import torch"]
        if "_shape(" in reference.text:
            body = body.replace(reference.text, f"{shape_helper(TORCH)}\n\n{reference.text}", 1)
        return "\n".join([self._docstring(), "", *imports, "", "", body, check])

    def _docstring(self) -> str:
        plan = self.plan
        lines = [f'"""{self.class_name}: a torch.autograd.Function, forward and backward pass in closed form.', ""]
        for name in self.program.order:
            lines.append(f"    {name} = {text(self.program.local[name])}")
        shaped = [f"{self.argument[i]} ({shape_text(i.shape)})" for i in plan.inputs if i.shape]
        lines += [
            "",
            *(
                [
                    f"Inputs: {', '.join(shaped)}; the others are scalars."
                    if len(shaped) < len(plan.inputs)
                    else f"Inputs: {', '.join(shaped)}."
                ]
                if shaped
                else ["Inputs: scalars."]
            ),
        ]
        lines += ["", f"Saved for the backward pass: {', '.join(self.called[n] for n in plan.kept) or 'nothing'}."]
        lines += [f"{line}." for line in self._bytes()]
        if plan.recomputed:
            again = [self.main.named[n] for n in self._line_nodes() if n in self.main.named]
            if again:
                lines.append(f"Computed again there: {', '.join(dict.fromkeys(again))}.")
        lines.append(f"Multiplications of the backward pass: {plan.multiplications()}.")
        kinks = _kinks(plan.output)
        if kinks:
            lines += ["", *kinks]
        return "\n".join([*lines, '"""']).replace("\\", "\\\\")

    def _line_nodes(self) -> list[Node]:
        image = {n: variable(self._residual(n), n.type) for n in self.plan.kept}
        return [n for n in substitute_nodes(self.plan.recomputed, image) if n.inputs]

    def _bytes(self) -> list[str]:
        """The size of what is kept, as a formula and for the sizes that were assumed."""
        plan = self.plan
        inside = [n for n in plan.kept if n.is_leaf or n is plan.output]
        own = [n for n in plan.kept if n not in inside]
        lines = []
        assumed = ", ".join(f"{k} = {v}" for k, v in plan.sizes.items())
        for what, nodes in (("inputs and output, which are alive anyway", inside), ("values of its own", own)):
            floats = [n for n in nodes if n.type.is_float]
            masks = [n for n in nodes if not n.type.is_float]
            if not nodes:
                continue
            total = _elements(floats) * ELEMENT + _elements(masks)
            example = substitute(total, plan.sizes)
            number = f" = {example:,} for {assumed}" if isinstance(total, Dim) and not isinstance(example, Dim) else ""
            lines.append(f"  {total} bytes in float32{number}: {what}")
        return lines

    def _class(self) -> str:
        plan = self.plan
        lines = [f"class {self.class_name}(torch.autograd.Function):", "    generate_vmap_rule = True", ""]
        lines += ["    @staticmethod", f"    def forward({', '.join(self.argument.values())}):"]
        tensors = [(a, i) for i, a in self.argument.items()]
        top, missing = reading_sizes(self.forward.sizes, tensors)
        if missing:
            raise BackendError(
                f"no input has dimension {missing[0]}", required="a variable whose shape says what the size is"
            )
        returned = ", ".join(self.forward.returned)
        lines += _indented([*top, *(f"{x.name} = {x.text}" for x in self.forward.lines), f"return {returned}"], 8)
        lines += ["", "    @staticmethod", "    def setup_context(ctx, inputs, output):"]
        lines += _indented(self._setup(), 8)
        lines += ["", "    @staticmethod"]
        if plan.again is None:
            lines.append(
                "    @torch.autograd.function.once_differentiable  # a second derivative needs more than is saved"
            )
        seeds = [self.cotangent, *(self._seed(n) for n in plan.extra)]
        lines.append(f"    def backward(ctx, {', '.join(seeds)}):")
        lines += _indented(self._backward(), 8)
        return "\n".join(lines)

    def _seed(self, node: Node) -> str:
        return self.again[node][0] if node in self.again else f"_{self.called[node]}"

    def _setup(self) -> list[str]:
        plan = self.plan
        used = set(plan.kept)
        lines = []
        if any(i in used for i in plan.inputs):
            names = [self.argument[i] if i in used else "_" for i in plan.inputs]
            lines.append(f"{', '.join(names)}{',' if len(names) == 1 else ''} = inputs")
        if plan.extra:
            outputs = [self.called[plan.output] if plan.output in used else "_", *(self.called[n] for n in plan.extra)]
            lines.append(f"{', '.join(outputs)} = output")
        elif plan.output in used:
            lines.append(f"{self.called[plan.output]} = output")
        lines.append(f"ctx.save_for_backward({', '.join(self.called[n] for n in plan.kept)})")
        self.stored = self._stored_sizes()
        for size in self.stored:
            place = next((self.argument[i], i.shape.index(Dim(size))) for i in plan.inputs if Dim(size) in i.shape)
            lines.append(f"ctx.{size} = inputs[{list(self.argument.values()).index(place[0])}].shape[{place[1]}]")
        masks = [self.called[n] for n in plan.extra if not n.type.is_float or plan.again is None]
        if masks:
            lines.append(f"ctx.mark_non_differentiable({', '.join(masks)})")
        if plan.extra:
            lines.append("ctx.set_materialize_grads(False)")
        return lines

    def _at_hand(self) -> list[tuple[str, Node]]:
        return [(self.called[n], n) for n in self.plan.kept]

    def _stored_sizes(self) -> list[str]:
        passes = [self.main, *(p for _, p in self.again.values())]
        sizes = dict.fromkeys(s for p in passes for s in p.sizes)
        return reading_sizes(list(sizes), [*self._at_hand(), (self.cotangent, self.plan.cotangent)])[1]

    def _backward(self) -> list[str]:
        plan = self.plan
        lines: list[str] = []
        if plan.kept:
            names = [self.called[n] for n in plan.kept]
            lines.append(f"{', '.join(names)}{',' if len(names) == 1 else ''} = ctx.saved_tensors")
        places = [k for k, g in enumerate(plan.gradients) if g is not None]
        results = {
            k: unique(f"d{list(self.argument.values())[k]}", [*self.called.values(), self.cotangent]) for k in places
        }
        nothing = " = ".join(results.values())
        several = len(places) > 1
        if results and (several or plan.extra):
            lines.append(f"{nothing} = None")
        main = self._pass_lines(
            self.main, places, results, add=False, guard=several, seed=(self.cotangent, plan.cotangent)
        )
        if plan.extra and results:
            lines += [f"if {self.cotangent} is not None:", *_indented(main, 4)]
        else:
            lines += main
        for node, (called, again) in self.again.items():
            seed, gradients = (plan.again or {})[node]
            own = [k for k, g in enumerate(gradients) if g is not None]
            if own:
                lines.append(f"if {called} is not None:  # only in derivatives of this backward pass")
                lines += _indented(
                    self._pass_lines(again, own, results, add=True, guard=several, seed=(called, seed)), 4
                )
        returned = [results.get(k, "None") for k in range(len(plan.inputs))]
        lines.append(f"return {', '.join(returned)}")
        return lines

    def _pass_lines(
        self,
        done: Pass,
        places: Sequence[int],
        results: Mapping[int, str],
        add: bool,
        guard: bool,
        seed: tuple[str, Node],
    ) -> list[str]:
        """The lines of one pass, those that not all gradients need behind a question."""
        top, missing = reading_sizes(done.sizes, [*self._at_hand(), seed])
        lines = [*top, *(f"{s} = ctx.{s}" for s in missing)]
        everything = frozenset(range(len(places)))
        # What is added to a gradient has a name of its own beside it.
        names = {x.name for x in done.lines}
        beside = {r: unique(f"{r}_", {*names, *results.values()}) for r in results.values() if add and r in names}

        def renamed(text: str) -> str:
            return re.sub(r"\w+", lambda word: beside.get(word[0], word[0]), text)

        rows = [(x.outputs, f"{renamed(x.name)} = {renamed(x.text)}") for x in done.lines]
        for number, k in enumerate(places):
            value, target = renamed(done.returned[number]), results[k]
            if add:
                rows.append((frozenset((number,)), f"{target} = {value} if {target} is None else {target} + {value}"))
            elif value != target:
                rows.append((frozenset((number,)), f"{target} = {value}"))
        # What is shared comes first; a line is needed where its users are.
        rows.sort(key=lambda r: (-len(r[0]), sorted(r[0])))
        before: frozenset[int] | None = None
        for need, line in rows:
            if not guard or need == everything:
                lines.append(line)
                continue
            if need != before:
                asked = " or ".join(f"ctx.needs_input_grad[{places[n]}]" for n in sorted(need))
                lines.append(f"if {asked}:")
                before = need
            lines.append(f"    {line}")
        return lines

    def _wrapper(self) -> str:
        plan = self.plan
        arguments = list(self.argument.values())
        scalars = [a for i, a in self.argument.items() if not i.shape]
        lines = [f"def {self.name}({', '.join(arguments)}):"]
        if scalars and len(scalars) < len(arguments):
            place = f"dtype={self.like}.dtype, device={self.like}.device"
            lines += [f"    {a} = torch.as_tensor({a}, {place})" for a in scalars]
        elif scalars:
            lines += [
                f"    {a} = torch.as_tensor({a}, dtype=torch.get_default_dtype())"
                if False
                else f"    {a} = torch.as_tensor({a})"
                for a in scalars
            ]
        call = f"{self.class_name}.apply({', '.join(arguments)})"
        lines.append(f"    return {call}{'[0]' if plan.extra else ''}")
        return "\n".join(lines)

    def _reference(self) -> Function:
        """The formula as it was given, for plain autograd."""
        output = resolve(self.program.symbol[self.program.output], self.program.definitions)
        return write(
            Graph(self.plan.inputs, (output,)), "reference", TORCH, "The formula by plain operations of torch."
        )


def _elements(nodes: Sequence[Node]) -> int | Dim:
    total: int | Dim = 0
    for node in nodes:
        assert isinstance(node.type, TensorType)
        total = total + node.type.numel
    return total


def _indented(lines: Sequence[str], by: int) -> list[str]:
    return [" " * by + line for line in lines]


def _kinks(output: Node) -> list[str]:
    found: dict[str, None] = {}
    for node in toposort([output]):
        for kink in node.op.kinks:
            where = f"{node.op.name} at {kink.at:g}" if len(node.inputs) == 1 else f"{node.op.name} where it switches"
            found[f"Kink: the derivative of {where} is taken as {kink.value}."] = None
    return list(found)
