"""The torch back end: emitted source equals eager execution, a step's gradients equal torch.autograd's."""

from __future__ import annotations

import ast
import math
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule as cr
from chainrule.backends.torch import compile, emit, run, step
from chainrule.errors import BackendError, ModelError
from chainrule.frontends.torch import trace, trace_case
from chainrule.ir import OPS, Graph, Op, TensorType, apply, constant, register, variable
from chainrule.ops.movement import broadcast

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = list(TOLERANCE)


def assert_step_is_autograd(
    model: nn.Module,
    batch: Any,
    loss: Any = None,
    objective: Any = None,
    eager: Callable[[], Any] | None = None,
) -> None:
    """Loss and every gradient of the compiled step against one backward pass of torch."""
    case = trace_case(model, batch, loss, objective)
    case = case.compared(run(case.graph, case.values))
    assert case.bit_equal, case.largest_difference
    compiled = step(case)
    value, grads = compiled(dict(model.named_parameters()), batch)
    expected = eager() if eager is not None else loss(model(batch[0]), batch[1])
    wanted = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    found = torch.autograd.grad(expected, list(dict.fromkeys(wanted.values())), allow_unused=True)
    by_parameter = dict(zip(dict.fromkeys(wanted.values()), found, strict=True))
    tolerance = TOLERANCE[value.dtype]
    assert abs(value - expected.detach()) <= tolerance * abs(expected)
    assert set(grads) == set(wanted)
    for name, parameter in wanted.items():
        ours, theirs = grads[name], by_parameter[parameter]
        if theirs is None:
            assert ours is None, name
            continue
        assert ours is not None and ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        assert (ours - theirs).norm() <= tolerance * theirs.norm() + 1e-30, name


def network(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(*layers).to(dtype)


def figure_7_8(dtype: torch.dtype) -> nn.Sequential:
    layers = nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5)
    return network(*layers, dtype=dtype)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# ---- gradients ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES)
def test_figure_7_8(dtype: torch.dtype) -> None:
    batch = torch.randn(100, 10, dtype=dtype), torch.randn(100, 5, dtype=dtype)
    assert_step_is_autograd(figure_7_8(dtype), batch, nn.MSELoss())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["class numbers", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy(dtype: torch.dtype, target: str, reduction: str) -> None:
    model = network(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4), dtype=dtype)
    y = torch.randint(4, (9,)) if target == "class numbers" else torch.rand(9, 4, dtype=dtype).softmax(-1)
    assert_step_is_autograd(model, (torch.randn(9, 6, dtype=dtype), y), nn.CrossEntropyLoss(reduction=reduction))


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_cross_entropy_with_logits(dtype: torch.dtype) -> None:
    model = network(nn.Linear(6, 3), dtype=dtype)
    batch = torch.randn(9, 6, dtype=dtype), torch.rand(9, 3, dtype=dtype)
    assert_step_is_autograd(model, batch, nn.BCEWithLogitsLoss())


ACTIVATIONS = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "leaky_relu": nn.LeakyReLU(0.3),
    "elu": nn.ELU(0.7),
    "selu": nn.SELU(),
    "softplus": nn.Softplus(),
    "softmax": nn.Softmax(-1),
    "log_softmax": nn.LogSoftmax(-1),
    "relu in place": nn.ReLU(inplace=True),
}
# Written in other words than torch's kernel (expanded, or through where), so the last bits may differ.
INEXACT = {"gelu tanh", "elu", "selu"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, dtype: torch.dtype) -> None:
    model = network(nn.Linear(7, 8), ACTIVATIONS[name], nn.Linear(8, 3), dtype=dtype)
    batch = 2 * torch.randn(11, 7, dtype=dtype), torch.randn(11, 3, dtype=dtype)
    if name not in INEXACT:
        assert_step_is_autograd(model, batch, F.mse_loss)
        return
    _, grads = step(trace_case(model, batch, F.mse_loss))(dict(model.named_parameters()), batch)
    F.mse_loss(model(batch[0]), batch[1]).backward()
    for key, parameter in model.named_parameters():
        difference = (grads[key] - parameter.grad).norm()  # type: ignore[operator]
        assert difference <= TOLERANCE[dtype] * parameter.grad.norm()  # type: ignore[union-attr]


class Attention(nn.Module):
    """A pre-norm block: two heads of softmax attention by hand, residuals, a gated layer, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8, bias=False)
        self.gate = nn.Linear(16, 12)
        self.head = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("mask", torch.tril(torch.ones(5, 5)) == 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (z.view(b, t, 2, d // 2).transpose(1, 2) for z in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(d // 2)
        scores = scores.masked_fill(self.mask, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(b, t, d)
        h = x + self.scale * self.out(mixed)
        left, right = self.gate(torch.cat([h, x[..., ::2], x[..., 1::2]], dim=-1)).split(6, dim=-1)
        return self.head((left * torch.sigmoid(right)).mean(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_module_with_its_own_forward(dtype: torch.dtype) -> None:
    batch = torch.randn(4, 5, 8, dtype=dtype), torch.tensor([0, 2, 1, 1])
    assert_step_is_autograd(Attention().to(dtype), batch, F.cross_entropy)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(affine: bool) -> None:
    model = network(nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=affine), nn.Linear(8, 2))
    batch = torch.randn(5, 6).double(), torch.randn(5, 2).double()
    assert_step_is_autograd(model, batch, F.mse_loss)


def test_tied_weights_have_one_gradient_under_both_names() -> None:
    model = network(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    batch = torch.randn(7, 5).double(), torch.randn(7, 5).double()
    assert_step_is_autograd(model, batch, F.mse_loss)
    _, grads = step(trace_case(model, batch, F.mse_loss))(dict(model.named_parameters()), batch)
    assert grads["0.weight"] is grads["2.weight"]


def test_frozen_parameters_have_no_gradient() -> None:
    model = network(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert_step_is_autograd(model, (torch.randn(3, 5).double(), torch.randn(3, 2).double()), F.mse_loss)


def test_parameter_outside_the_loss_has_none() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Spare().double()
    batch = torch.randn(4, 3).double(), torch.randn(4, 1).double()
    assert_step_is_autograd(model, batch, F.mse_loss)
    assert step(trace_case(model, batch, F.mse_loss)).unused == ("spare.weight", "spare.bias")


def test_loss_from_the_model() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.layer(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    model = WithLoss().double()
    batch = {"x": torch.randn(4, 3).double(), "labels": torch.tensor([0, 1, 1, 0])}
    assert_step_is_autograd(model, batch, "model", eager=lambda: model(**batch)["loss"])
    case = trace_case(model, batch, "model")
    assert list(case.batch_inputs) == ["x", "labels"]
    assert case.output is case.graph.names["f_layer"]


def test_objective() -> None:
    model = network(nn.Linear(3, 3))
    a, b = torch.randn(4, 3).double(), torch.randn(4, 3).double()

    def contrast(model: nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch[0]) - model(batch[1])).pow(2).mean() + 0.1 * model[0].weight.abs().sum()  # type: ignore[index]

    assert_step_is_autograd(model, (a, b), objective=contrast, eager=lambda: contrast(model, (a, b)))


def test_detached_paths_carry_no_gradient() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x).tanh()
            with torch.no_grad():
                k = self.b(h)
            return self.d(h * self.c(h).data + h.detach() * k)

    model = Detached().double()
    batch = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    assert_step_is_autograd(model, batch, F.mse_loss)
    assert step(trace_case(model, batch, F.mse_loss)).unused == ("b.weight", "b.bias", "c.weight", "c.bias")


def test_step_runs_on_other_numbers_than_the_traced() -> None:
    model = figure_7_8(torch.float64)
    compiled = step(trace_case(model, (torch.randn(6, 10).double(), torch.randn(6, 5).double()), F.mse_loss))
    batch = torch.randn(6, 10).double(), torch.randn(6, 5).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    _, grads = compiled(dict(model.named_parameters()), batch)
    F.mse_loss(model(batch[0]), batch[1]).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(grads[name], parameter.grad, rtol=1e-12)  # type: ignore[arg-type]


def test_nan_in_the_batch_goes_through() -> None:
    model = figure_7_8(torch.float32)
    x = torch.randn(3, 10)
    x[0, 0] = float("nan")
    case = trace_case(model, (x, torch.randn(3, 5)), F.mse_loss)
    assert case.compared(run(case.graph, case.values)).bit_equal


def test_bad_arguments_of_a_step_are_named() -> None:
    model = network(nn.Linear(3, 2))
    batch = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    compiled = step(trace_case(model, batch, F.mse_loss))
    params = dict(model.named_parameters())
    with pytest.raises(ModelError, match=r"parameter '0\.bias' is missing"):
        compiled({"0.weight": params["0.weight"]}, batch)
    with pytest.raises(ModelError, match=r"parameter '0\.bias' has another shape"):
        compiled({**params, "0.bias": torch.zeros(3)}, batch)
    with pytest.raises(ModelError, match="batch differs from the one that was traced"):
        compiled(params, (batch[0][:2], batch[1][:2]))
    with pytest.raises(ModelError, match="a step needs a loss"):
        step(trace_case(model, batch[0]))


# ---- the source --------------------------------------------------------------------------------------------
def test_source_is_readable_and_frees_what_is_done() -> None:
    model = network(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), dtype=torch.float32)
    case = trace_case(model, (torch.randn(4, 2), torch.randn(4, 1)), F.mse_loss)
    assert emit(case.graph) == (
        "def forward(weight_0, bias_0, weight_2, bias_2, x, y):\n"
        "    f_0 = torch.nn.functional.linear(x, weight_0, bias_0)  # 4 x 3\n"
        "    h_1 = torch.relu(f_0)  # 4 x 3\n"
        "    del f_0\n"
        "    f_2 = torch.nn.functional.linear(h_1, weight_2, bias_2)  # 4 x 1\n"
        "    del h_1\n"
        "    loss = torch.nn.functional.mse_loss(f_2, y, reduction='mean')  # scalar\n"
        "    del f_2\n"
        "    return (loss,)\n"
    )
    assert "del" not in emit(case.graph, free=False)


def test_gradients_leave_no_intermediate_to_the_end() -> None:
    case = trace_case(figure_7_8(torch.float32), (torch.randn(4, 10), torch.randn(4, 5)), F.mse_loss)
    source = step(case).source
    body = ast.parse(source).body[-1]
    assert isinstance(body, ast.FunctionDef)
    assigned = {n.targets[0].id for n in body.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}
    deleted = {t.id for n in body.body if isinstance(n, ast.Delete) for t in n.targets if isinstance(t, ast.Name)}
    assert {name for name in assigned - deleted if not name.startswith("grad_")} == {"loss"}


def x_of(*shape: int, name: str = "x") -> Any:
    return variable(name, TensorType(shape, "float64"))


def test_numbers_keep_their_sign_and_bits() -> None:
    x = x_of(3)
    graph = Graph((x,), ((-1.0) ** x * 0.0, x - (-2.5), constant(float("inf")) * x, 1.0 / x))
    values = torch.tensor([1.0, 2.0, -4.0], dtype=torch.float64)
    power, shifted, infinite, inverse = run(graph, {x: values})
    assert "(-1.0) ** x" in emit(graph)
    assert power.tolist() == [-0.0, 0.0, 0.0] and math.copysign(1, power[0]) == -1
    assert shifted.tolist() == [3.5, 4.5, -1.5]
    assert infinite.tolist() == [math.inf, math.inf, -math.inf]
    assert inverse.tolist() == [1.0, 0.5, -0.25]


def test_float32_constants_are_written_short() -> None:
    x = variable("x", TensorType((2,), "float32"))
    assert "x * 0.1 " in emit(Graph((x,), (x * 0.1,)))


def test_constants_are_made_once_above_the_function() -> None:
    x = x_of(2, 2)
    eye = apply(OPS["eye"], size=2, dtype="float64")
    compiled = compile(Graph((x,), (x + eye * 3.0, broadcast(constant(1.0), (2, 2)), constant(2.0))))
    above, _, below = compiled.source.partition("def forward")
    assert "torch.eye(2" in above and "torch.eye" not in below
    first, ones, two = compiled(torch.zeros(2, 2, dtype=torch.float64))
    assert first.tolist() == [[3.0, 0.0], [0.0, 3.0]] and ones.tolist() == [[1.0, 1.0]] * 2 and two == 2.0


def test_names_are_reduced_to_identifiers() -> None:
    hostile = variable("x); import os #", TensorType((2,), "float64"))
    other, keyword = variable("x___import_os__", TensorType((2,), "float64")), x_of(2, name="lambda")
    total = hostile + other + keyword
    graph = Graph((hostile, other, keyword), (total,), names={"torch": total})
    assert "import os #" not in emit(graph, name="f(); x")
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    (found,) = run(graph, dict.fromkeys(graph.inputs, values))
    assert found.tolist() == [3.0, 6.0]


def test_composites_without_a_kernel_are_written_out() -> None:
    x = x_of(2)
    composite = register(
        Op(
            "test_twice",
            "composite",
            shape=lambda x: x,
            value=lambda x: 2 * x,
            expansion=lambda x: apply(OPS["tanh"], x) + x,
        )
    )
    try:
        assert "torch.tanh(x)" in emit(Graph((x,), (apply(composite, x),)))
    finally:
        del OPS["test_twice"]


def test_op_without_torch_is_named() -> None:
    op = register(Op("test_unknown", "unary", shape=lambda x: x, value=lambda x: x))
    try:
        x = x_of(2)
        with pytest.raises(BackendError, match="op 'test_unknown' cannot be written in torch"):
            emit(Graph((x,), (apply(op, x),)))
    finally:
        del OPS["test_unknown"]


def test_leaf_that_is_no_input_is_named() -> None:
    with pytest.raises(BackendError, match="y is read but is no input"):
        emit(Graph((x_of(2),), (x_of(2) + x_of(2, name="y"),)))
    with pytest.raises(BackendError, match="no value for input x"):
        run(Graph((x_of(2),), (x_of(2),)), {})


def test_tracebacks_show_the_emitted_line() -> None:
    traced = trace(lambda x: (x @ x).tanh(), (torch.randn(2, 2),))
    with pytest.raises(RuntimeError) as caught:
        compile(traced.graph)(torch.randn(2, 3))
    assert "torch.mm(x, x)" in str(caught.value)  # the error names the line ...
    cause = caught.value.__cause__
    assert cause is not None  # ... and the traceback of its cause shows it
    assert any("torch.mm(x, x)" in (f.line or "") for f in traceback.extract_tb(cause.__traceback__))


def test_no_tape_is_kept() -> None:
    x = torch.randn(2, 2, requires_grad=True)
    traced = trace(lambda x: (x * 2.0).sum(), (x,))
    (found,) = run(traced.graph, traced.values)
    assert not found.requires_grad


@pytest.mark.gpu
def test_cuda() -> None:
    model = Attention().cuda()
    batch = torch.randn(4, 5, 8, device="cuda"), torch.tensor([0, 2, 1, 1], device="cuda")
    case = trace_case(model, batch, F.cross_entropy)
    _, grads = step(case)(dict(model.named_parameters()), batch)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(grads[name], parameter.grad, rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_same_source_through_torch_compile() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2))
    batch = (torch.randn(5, 6), torch.randn(5, 2))
    loss = torch.nn.functional.mse_loss
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    found = []
    for inductor in (False, True):
        torch.manual_seed(0)
        found.append(cr.case(model, batch, loss, compile=inductor).step(parameters, batch))
    (value, grads), (compiled_value, compiled_grads) = found
    torch.testing.assert_close(compiled_value, value)
    for name, g in grads.items():
        torch.testing.assert_close(compiled_grads[name], g, rtol=1e-5, atol=1e-6)
    x = torch.linspace(0.1, 2.0, 5)
    torch.testing.assert_close(cr.grad(lambda x: (x.log() * x).sum(), compile=True)(x), x.log() + 1)


@pytest.mark.parametrize("sums", ("sum", "prod", "cumsum", "cumprod"))
@pytest.mark.parametrize("dtype", (torch.int16, torch.int32, torch.int64, None))
def test_integers_are_added_up_in_the_dtype_that_was_asked_for(sums: str, dtype: torch.dtype | None) -> None:
    counts = torch.tensor([3, 1, 2, 0, 4])
    keep = {} if sums.startswith("cum") else {"keepdim": True}
    traced = trace(lambda i: getattr(i.int(), sums)(0, dtype=dtype, **keep), (counts,))
    (found,) = run(traced.graph, traced.values)
    expected = getattr(counts.int(), sums)(0, dtype=dtype, **keep)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
