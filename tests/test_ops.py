"""One contract over the whole registry: what every op promises, tried on the samples that it declares.

A new op is tested by existing. What an op cannot be asked is listed below with the reason; an op that is in no list
and fails to answer is a failure, and so is an entry that is no longer needed.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import chainrule.ops  # noqa: F401  fills the registry
from chainrule.backends.torch import compile
from chainrule.errors import BackendError, ChainruleError, ShapeError, UnsupportedOpError
from chainrule.frontends.formula import parse
from chainrule.interpreters import cost
from chainrule.interpreters.differentiate import expand_composites, gradient, jvp, vjp
from chainrule.interpreters.evaluate import evaluate
from chainrule.interpreters.latex import latex
from chainrule.interpreters.moments import expanded, forward
from chainrule.interpreters.simplify import simplify
from chainrule.interpreters.text import text
from chainrule.ir import OPS, Graph, Op, Sample, TensorType, apply, check, rebuild, variable
from chainrule.ir.moments import Moments
from tests.op_contract import (
    Trial,
    central,
    close,
    emitted,
    named_sizes,
    number,
    outputs_of,
    outputs_of_source,
    tensor_of,
    trial,
    type_of,
    weighted,
    written,
)

# ---- what cannot be asked, and why -------------------------------------------------------------------------
NO_VALUE = {
    "input": "an argument of a program: its value is given, never computed",
    "function": "of an unknown function only the name is known",
}
RANDOM = {
    name: "torch's generator makes its numbers; tests/frontends/test_torch_programs.py compares them"
    for name in ("draw", "sampled")
}
OPAQUE = {
    name: "a call of something that is not declared; tests/frontends/test_torch_programs.py compares with autograd"
    for name in ("opaque", "opaque_random", "opaque_taped", "opaque_taped_random", "opaque_backward")
}
NO_SAMPLES = NO_VALUE | RANDOM | OPAQUE | {"item": "reads an op with several outputs: it is tried with scan's samples"}
NO_TORCH = NO_VALUE
KERNELS = {
    op.name: "a kernel of programs: formulas print what it computes"
    for op in OPS.values()
    if op.family == "kernel" or (op.fused_vjp and not op.names)
}
NO_TEXT = (
    NO_VALUE
    | RANDOM
    | OPAQUE
    | KERNELS
    | {
        "take_elements": "its positions are data of a program",
        "put_elements": "its positions are data of a program",
        "item": "one output of several: formulas have single values",
        "several": "formulas have single values",
        "scan": "its body is a program, not an operand",
        "cast": "dtypes are no part of the mathematics: it prints as its operand",
        "one_hot": "class numbers are data of a model",
        "cross_entropy": "a model's loss; its expansion prints, class numbers do not parse",
        "layer_norm_affine": "torch's layer; the language's layer_norm is an expression",
        **dict.fromkeys(
            ("hardtanh", "threshold", "hardshrink", "softshrink", "celu", "softplus_above"),
            "options that the formula language does not have",
        ),
        "constant": "numbers have no operands; test_formula.py holds their text",
        "dim": "sizes have no operands; test_formula.py holds their text",
    }
)
# How torch itself computes what has a kink: (function of tensors and static parameters).
TORCH_AT_KINKS = {
    "selu": torch.selu,
    "abs": torch.abs,
    "sign": torch.sign,
    "relu": torch.relu,
    "leaky_relu": lambda x, a: torch.nn.functional.leaky_relu(x, a.detach().flatten()[0].item()),
    "elu": lambda x, a: torch.nn.functional.elu(x, a.detach().flatten()[0].item()),
    "hardtanh": torch.nn.functional.hardtanh,
    "threshold": torch.nn.functional.threshold,
    "hardshrink": torch.nn.functional.hardshrink,
    "softshrink": torch.nn.functional.softshrink,
    "hardsigmoid": torch.nn.functional.hardsigmoid,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "amax": lambda x, axes, keepdims: torch.amax(x, axes, keepdim=keepdims),
    "amin": lambda x, axes, keepdims: torch.amin(x, axes, keepdim=keepdims),
}


Case = tuple[Op, Sample, str]
SAMPLES: list[Case] = [(op, s, f"{op.name}-{k}") for op in OPS.values() for k, s in enumerate(op.samples)]


def _over(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("op, sample", [pytest.param(op, s, id=name) for op, s, name in cases])


every_op = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
every_sample = _over(SAMPLES)
every_smooth_sample = _over([c for c in SAMPLES if c[1].smooth and not c[1].kink])
every_composite = _over([c for c in SAMPLES if c[0].expansion])
at_every_kink = _over([c for c in SAMPLES if c[1].kink])
every_error = _over([(op, s, f"{op.name}-{k}") for op in OPS.values() for k, s in enumerate(op.error_samples)])


# ---- declarations ------------------------------------------------------------------------------------------
@every_op
def test_declaration_is_complete(op: Op):
    assert op.source, "every op says where its formula can be checked"
    assert op.text or op.expansion, "nothing to print"
    if op.name not in NO_SAMPLES:
        assert op.samples, "an op without samples is an op without tests"
    if not op.differentiable:
        assert op.vjp is None or op.name == "stop_gradient", "a rule that is never used"
    elif op.family != "leaf" and op.name not in OPAQUE:
        assert op.vjp or op.jvp or op.expansion, "no derivative, and it does not say so (differentiable=False)"
    if op.kinks:
        assert any(s.kink for s in op.samples), "no sample sits on its kink"
        assert any(not s.kink for s in op.samples), "no sample avoids its kinks"
    several = any(len(s.args) > 1 for s in op.samples) or any(s.params for s in op.samples if s.args)
    if several and op.name not in MAY_ACCEPT_ALL:
        assert op.error_samples, "operands that do not fit, or parameters that make no sense, are tried too"


MAY_ACCEPT_ALL = {
    "several": "any values",
    "iverson": "any condition, any float dtype",
    "one_hot": "any array of class numbers",
    "padded_rows": "any number may be the padding",
    "round_decimals": "any whole number of decimals",
    "polygamma": "any order",
    **dict.fromkeys(
        ("hardtanh", "threshold", "hardshrink", "softshrink", "celu", "softplus_above"), "any numbers as options"
    ),
}


def test_every_exemption_is_needed():
    for exempt in (NO_SAMPLES, NO_TORCH, NO_TEXT, MAY_ACCEPT_ALL):
        assert set(exempt) <= set(OPS)
    assert {n for n, op in OPS.items() if op.torch is None and op.expansion is None} == set(NO_TORCH)
    assert {n for n, op in OPS.items() if not op.samples} == set(NO_SAMPLES)
    assert not any(OPS[n].error_samples for n in MAY_ACCEPT_ALL)
    assert {n for n, op in OPS.items() if op.kinks and op.aten} == set(TORCH_AT_KINKS)


@pytest.mark.parametrize("name", NO_VALUE)
def test_without_a_value_it_says_so(name: str):
    node = variable("x") if name == "input" else apply(OPS[name], variable("x"), name="l", wrt=())
    with pytest.raises(ChainruleError, match="no value|unknown"):
        evaluate([node], {} if name == "input" else {node.inputs[0]: 1.0})


# ---- value -------------------------------------------------------------------------------------------------
@every_sample
def test_value_has_the_type_that_the_shape_rule_says(op: Op, sample: Sample):
    t = trial(op, sample)
    check(Graph(t.leaves, t.outputs))
    values = evaluate(t.outputs, t.values)
    for output, value in zip(t.outputs, values, strict=True):
        assert np.shape(value) == output.shape
        kind = np.asarray(value).dtype
        if output.type.is_float:
            assert kind == np.float64, "the oracle computes in float64"
        else:
            assert np.issubdtype(kind, np.bool_ if output.type.dtype == "bool" else np.integer)
        assert sample.kink or np.all(np.isfinite(np.asarray(value, dtype=float)))


@every_sample
def test_torch_computes_the_same_value(op: Op, sample: Sample):
    if op.name in NO_TORCH:
        pytest.skip(NO_TORCH[op.name])
    t = trial(op, sample)
    found = compile(Graph(t.leaves, t.outputs))(*(tensor_of(a) for a in t.arrays))
    for output, ours, value in zip(t.outputs, found, evaluate(t.outputs, t.values), strict=True):
        assert str(ours.dtype) == f"torch.{output.type.dtype}"
        assert close(ours.to(torch.float64).numpy(), value, 1e-13 if op.name != "erf" else 1e-12)


@every_sample
@pytest.mark.parametrize("language", ["numpy", "torch"])
@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
def test_source_computes_the_same_value(op: Op, sample: Sample, language: str, named: bool):
    if op.name in NO_VALUE:
        pytest.skip(NO_VALUE[op.name])
    if named and not set(sample.params) <= SIZELESS:
        pytest.skip("its parameters are sizes: they are numbers in the sample")
    t = trial(op, sample)
    try:
        graph = named_sizes(t) if named else Graph(t.leaves, t.outputs)
    except ShapeError as error:
        assert "number" in str(error)
        pytest.skip("its shape rule wants numbers")
    try:
        found = outputs_of_source(graph, language, t.arrays)
    except BackendError as error:
        assert f"cannot be written in {language}" in str(error)
        assert not op.names or op.name in NO_NUMPY, "every function of the formula language can be written"
        return
    for output, ours, value in zip(t.outputs, found, evaluate(t.outputs, t.values), strict=True):
        assert np.shape(ours) == output.shape
        assert close(np.asarray(ours), value, 1e-13 if op.name != "erf" else 1e-12)


NO_NUMPY = {n: "neither NumPy nor math has it" for n in ("digamma", "erfinv", "erfcx", "ndtri", "log_ndtr")}
SIZELESS = {"axes", "axis", "keepdims", "operands", "result", "dtype", "reduction"}


@every_composite
def test_composites_equal_their_expansion(op: Op, sample: Sample):
    t = trial(op, sample)
    (inner,) = expand_composites([t.node], keep_named=False)
    assert not any(n.op.expansion for n in Graph(t.leaves, (inner,)).nodes)
    assert inner.type == t.node.type
    for a, b in zip(outputs_of(inner), t.outputs, strict=True):
        assert close(number(a, t.values), number(b, t.values), 1e-13)
    if not sample.smooth:
        return
    ours, weights = weighted(t.outputs, t.generator())
    theirs = rebuild([ours], image={t.node: inner})[ours]
    values = t.values | weights
    for a, b in zip(gradient(ours, t.floats), gradient(theirs, t.floats), strict=True):
        assert (a is None) == (b is None)
        assert a is None or close(number(a, values), number(b, values), 1e-12)


# ---- derivatives -------------------------------------------------------------------------------------------
def _no_derivative(t: Trial) -> bool:
    """Whether the op says that nothing flows: it is not differentiable, or its operands or results are no floats."""
    return not t.floats or not t.op.differentiable or not any(o.type.is_float for o in t.outputs)


# Operands that the value does not depend on.
# The kept statistics are written, not read; the slope of relu is flat.
NOT_READ = {("batch_norm_tracked", "x1"), ("batch_norm_tracked", "x2"), ("relu_backward", "x1")}


@every_smooth_sample
def test_derivative_equals_central_differences(op: Op, sample: Sample):
    t = trial(op, sample)
    if _no_derivative(t):
        if any(o.type.is_float for o in t.outputs):
            loss, _ = weighted(t.outputs, t.generator())
            assert all(g is None for g in gradient(loss, t.floats))
        return
    loss, weights = weighted(t.outputs, t.generator())
    values = t.values | weights
    for leaf, g in zip(t.floats, gradient(loss, t.floats), strict=True):
        if g is None and (op.name, leaf.params["name"]) in NOT_READ:
            continue
        assert g is not None, f"operand {leaf.params['name']} has no derivative and the op does not say so"
        assert g.type == leaf.type
        check(Graph((*t.leaves, *weights), (g,)))
        expected = central(lambda x, leaf=leaf: number(loss, values | {leaf: x}), values[leaf])
        assert close(number(g, values), expected, 1e-8)


@every_smooth_sample
def test_second_derivative_equals_central_differences(op: Op, sample: Sample):
    t = trial(op, sample)
    if _no_derivative(t):
        return
    generator = t.generator()
    loss, weights = weighted(t.outputs, generator)
    values = t.values | weights
    found = [g for g in gradient(loss, t.floats) if g is not None]
    along, directions = weighted(found, generator)  # sum over operands of <gradient, direction>
    values |= directions
    again = gradient(along, t.floats)
    for leaf, g in zip(t.floats, again, strict=True):
        expected = central(lambda x, leaf=leaf: number(along, values | {leaf: x}), values[leaf])
        ours = np.zeros(leaf.shape) if g is None else number(g, values)
        assert close(ours, expected, 1e-7)


@every_smooth_sample
def test_forward_and_reverse_are_each_others_transpose(op: Op, sample: Sample):
    """<jvp(tangent), cotangent> = <tangent, vjp(cotangent)>."""
    t = trial(op, sample)
    if _no_derivative(t):
        return
    generator = t.generator()
    tangents = [variable(f"tangent {k}", leaf.type) for k, leaf in enumerate(t.floats)]
    cotangents = [variable(f"cotangent {k}", o.type) for k, o in enumerate(t.outputs)]
    values = t.values | {v: generator.standard_normal(v.shape) for v in (*tangents, *cotangents)}
    moved = jvp(t.outputs, t.floats, tangents)
    back = vjp(t.outputs, cotangents, t.floats)
    assert all(m.type == o.type for m, o in zip(moved, t.outputs, strict=True) if m is not None)
    left = sum(np.sum(number(m, values) * values[g]) for m, g in zip(moved, cotangents, strict=True) if m is not None)
    right = sum(np.sum(number(g, values) * values[d]) for g, d in zip(back, tangents, strict=True) if g is not None)
    assert left == pytest.approx(right, rel=1e-11, abs=1e-11)


# ---- kinks -------------------------------------------------------------------------------------------------
@at_every_kink
def test_derivative_at_a_kink_is_the_declared_one(op: Op, sample: Sample):
    t = trial(op, sample)
    loss = weighted(t.outputs, t.generator())[0]
    ones = {leaf: np.ones(leaf.shape) for leaf in Graph((), (loss,)).nodes if "weight" in str(leaf.params.get("name"))}
    found = [number(g, t.values | ones) for g in gradient(loss, t.floats) if g is not None]
    first = found[0]
    declared = {k.value for k in op.kinks}
    if declared == {"alpha"}:
        expected = np.broadcast_to(t.arrays[1], first.shape)
    elif declared == {"1 / number of equal extrema"}:
        expected = np.broadcast_to(1.0 / t.arrays[0].shape[-1], first.shape)
    else:
        (value,) = declared
        expected = np.full(first.shape, value)
    assert np.array_equal(first, expected)
    if not op.aten:
        return
    tensors = [tensor_of(a, requires_grad=True) for a in t.arrays]
    TORCH_AT_KINKS[op.name](*tensors, **sample.params).sum().backward()
    assert np.array_equal(first, tensors[0].grad.numpy())
    again = [tensor_of(a, requires_grad=True) for a in t.arrays]
    emitted(Graph(t.leaves, t.outputs))(*again)[0].sum().backward()
    assert np.array_equal(first, again[0].grad.numpy())


# ---- printed form ------------------------------------------------------------------------------------------
@every_sample
def test_text_parses_back_to_an_equal_graph(op: Op, sample: Sample):
    if op.name in NO_TEXT:
        pytest.skip(NO_TEXT[op.name])
    if sample.kink:
        return
    node, shapes = written(op, sample)
    if not op.text:  # it prints as its expansion
        (node,) = expand_composites([node], keep_named=False)
    if node.type.dtype == "bool":  # a condition is no result: it is printed inside a bracket
        node = apply(OPS["iverson"], node, dtype="float64")
    shown = text(node)
    again = parse(shown, {k: v for k, v in shapes.items() if v != ()}).outputs[0]
    assert again.type == node.type
    assert simplify(again) is simplify(node), shown


@every_sample
def test_latex_is_well_formed(op: Op, sample: Sample):
    shown = latex(trial(op, sample).node)
    assert shown.strip()
    depth = 0
    for character in re.sub(r"\\[{}]", "", shown):
        depth += (character == "{") - (character == "}")
        assert depth >= 0, shown
    assert depth == 0, shown
    assert shown.count(r"\left") == shown.count(r"\right"), shown


# ---- cost --------------------------------------------------------------------------------------------------
@every_sample
def test_cost_is_a_non_negative_whole_number(op: Op, sample: Sample):
    found = cost.multiplications([trial(op, sample).node])
    assert isinstance(found, int) and found >= 0


# ---- errors ------------------------------------------------------------------------------------------------
@every_error
def test_bad_operands_raise(op: Op, sample: Sample):
    with pytest.raises((ShapeError, UnsupportedOpError)) as caught:
        trial(op, sample)
    assert "given:" in str(caught.value) or re.search(r"\d|'", str(caught.value)), "the message shows what was given"


# ---- moments -----------------------------------------------------------------------------------------------
DRAWS = 200_000
LAWS = {"centred": (0.0, 1.3), "shifted": (0.6, 0.9)}
WITH_MOMENTS = [op for op in OPS.values() if op.moments is not None and op.samples]


def _normal(name: str, mean: float, std: float, fresh: bool) -> Moments:
    source = frozenset({name})
    centred = mean == 0.0
    return Moments(
        mean,
        mean**2 + std**2,
        law="normal",
        sources=source,
        odd=source if centred else frozenset(),
        fresh=fresh and centred,
    )


def _moment_trials(op: Op):
    """The op with its first operand normal and the others given, and with all operands normal."""
    sample = next(s for s in op.samples if not s.kink)
    for law, (mean, std) in LAWS.items():
        for others in ("given", "normal") if len(sample.args) > 1 else ("given",):
            yield pytest.param(op, sample, mean, std, others, id=f"{op.name}-{law}-{others}")


@pytest.mark.parametrize("op, sample, mean, std, others", [p for op in WITH_MOMENTS for p in _moment_trials(op)])
def test_moments_equal_sampling(op: Op, sample: Sample, mean: float, std: float, others: str):
    """First and second moments of 200,000 draws, within four standard errors (and 10 % where not exact)."""
    if any(not type_of(a).is_float for a in sample.args):
        pytest.skip("conditions and class numbers have no normal law")
    pointwise = op.family == "elementwise"
    generator = np.random.default_rng(op.name.encode()[0] + len(others))
    leaves, states, draws = [], {}, []
    count = DRAWS if pointwise else DRAWS // 20
    for k, array in enumerate(map(np.asarray, sample.args)):
        fixed = k > 0 and others == "given"
        shape = () if pointwise else array.shape
        leaf = variable(f"x{k}", TensorType(shape))
        leaves.append(leaf)
        if fixed:
            value = np.asarray(array).flat[0] if pointwise else array
            states[leaf] = Moments(np.asarray(value), np.asarray(value) ** 2, law="given", kurtosis=1.0)
            draws.append(np.broadcast_to(value, (count, *shape)))
        else:
            states[leaf] = _normal(f"x{k}", mean, std, fresh=k == 1)
            draws.append(mean + std * generator.standard_normal((count, *shape)))
    node = apply(op, *leaves, **sample.params)
    image = expanded([node])
    state = forward([image[node]], states)[image[node]]
    with np.errstate(all="ignore"):
        if pointwise:
            values = np.asarray(op.value(*draws, **sample.params), dtype=float)[:, None]
        else:
            values = np.stack([np.ravel(op.value(*row, **sample.params)) for row in zip(*draws, strict=True)])
    if not np.all(np.isfinite(values)):
        assert not state.known, "the function has no value on part of a normal law"
        return
    if not state.known:
        return
    for predicted, power in ((state.mean, 1), (state.second, 2)):
        if predicted is None:
            continue
        per_draw = (values**power).mean(axis=1)
        error = per_draw.std() / np.sqrt(count)
        allowed = 4 * error + 1e-9
        if state.kind != "exact":  # an approximation, or a probe of a few draws: the right size
            allowed += 0.1 * np.abs(per_draw).mean()
        assert abs(per_draw.mean() - float(np.mean(predicted))) <= allowed


@pytest.mark.parametrize("op", WITH_MOMENTS, ids=lambda op: op.name)
def test_a_moment_rule_answers_something(op: Op):
    """For at least one of the laws above, or for given numbers, the answer is known."""
    sample = next(s for s in op.samples if not s.kink)
    states = {}
    for k, array in enumerate(map(np.asarray, sample.args)):
        states[variable(f"x{k}", type_of(array))] = Moments(array, array * 1.0 * array, law="given", kurtosis=1.0)
    node = apply(op, *states, **sample.params)
    state = forward([node], states)[node]
    if state.law == "given" and state.known:
        value = np.asarray(number(node, {leaf: s.mean for leaf, s in states.items()}), dtype=float)
        assert close(np.broadcast_to(state.second, value.shape), value**2, 1e-12)


def test_the_table_of_ops_has_no_hole():
    """Every op has an answer to every question, or is in a list above: the table that a reader can print."""
    columns = ("value", "torch", "text", "latex", "source")
    exempt = {"torch": NO_TORCH}
    holes = [
        (op.name, column)
        for op in OPS.values()
        for column in columns
        if not (getattr(op, column) or op.expansion) and op.name not in exempt.get(column, {})
    ]
    assert not holes
