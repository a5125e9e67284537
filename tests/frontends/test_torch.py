"""The torch front end: what a trace holds, what it leaves untouched, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chainrule.backends.torch import run, step
from chainrule.errors import ModelError, UnsupportedOpError
from chainrule.frontends.torch import Trace, eager, trace, trace_case, untouched
from chainrule.frontends.torch.names import Names, identifier
from chainrule.ir import OPS, Op, check, register


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 3), torch.randn(5, 2)


class Function(nn.Module):
    """A module whose forward is a given function of itself and its input; it has one weight."""

    def __init__(self, function: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def line_of(function: Callable[..., Any]) -> int:
    return function.__code__.co_firstlineno


def values_equal(found: Trace) -> bool:
    """The graph computes what the program computes, bit for bit; and the graph is well formed."""
    check(found.graph)
    with untouched(()):  # the draws of both start from the same state
        outputs = run(found.graph, found.values)
    return bool(found.compared(outputs).bit_equal)


# ---- what a trace holds ------------------------------------------------------------------------------------
def test_a_case() -> None:
    model = mlp()
    found = trace_case(model, batch(), nn.MSELoss())
    assert [i.params["name"] for i in found.graph.inputs] == [
        *("weight_0", "bias_0", "weight_2", "bias_2"),
        *("x", "y"),
    ]
    assert list(found.parameters) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(found.batch_inputs) == ["x", "y"]
    assert all(found.values[found.parameters[n]] is p for n, p in model.named_parameters())
    assert list(found.graph.names)[6:] == ["loss", "f_0", "h_1", "f_2", "output"]
    assert found.graph.outputs == (found.loss,) and found.graph.output_names == ("loss",)
    assert found.output is found.graph.names["f_2"]
    assert found.graph.op_counts() == {"input": 6, "linear": 2, "mse": 1, "relu": 1}
    assert values_equal(found)


def test_calls_of_modules() -> None:
    found = trace_case(mlp(), batch(), nn.MSELoss())
    assert [(c.path, c.kind) for c in found.calls] == [
        ("0", "Linear(3, 4)"),
        ("1", "ReLU"),
        ("2", "Linear(4, 2)"),
        ("", "Sequential"),
        ("loss", "MSELoss"),
    ]
    first, second = found.calls[:2]
    assert first.inputs == (found.batch_inputs["x"],) and first.outputs == second.inputs
    assert first.has_parameters and not second.has_parameters


def test_a_module_called_twice_has_two_calls_and_two_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x).relu())

    found = trace_case(Twice(), torch.randn(2, 3))
    assert [c.path for c in found.calls] == ["layer", "layer", ""]
    assert {"f_layer", "f_layer_2"} <= set(found.graph.names)


def test_origins() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).tanh()

    model = nn.Sequential(Function(forward))
    found = trace_case(model, torch.randn(2, 3))
    origin = found.graph.origins[found.graph.outputs[0]]
    assert origin.module == "0" and origin.line == line_of(forward) + 1
    assert origin.file.endswith("tests/frontends/test_torch.py")
    assert found.graph.origins[found.parameters["0.weight"]].module == "0"


def test_a_function() -> None:
    found = trace(lambda a, b: (a @ b).sum(), (torch.randn(2, 3), torch.randn(3)))
    assert list(found.batch_inputs) == ["a", "b"] and not found.parameters and found.loss is None
    assert found.graph.output_names == ("output",)
    assert values_equal(found)


def test_static_arguments_and_keywords() -> None:
    found = trace(lambda x, n, *, flip, y: (x**n - y) * flip, (torch.randn(3), 2), {"flip": -1.0, "y": torch.ones(3)})
    assert list(found.batch_inputs) == ["x", "y"]
    assert values_equal(found)


def test_inputs_by_position_by_keyword_and_nested() -> None:
    class Two(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left - right

    a, b = torch.randn(3), torch.randn(3)
    assert list(trace_case(Two(), (a, b)).batch_inputs) == ["left", "right"]
    by_name = trace_case(Two(), ({"right": a, "left": b}, a), F.mse_loss)
    assert list(by_name.batch_inputs) == ["right", "left", "y"]
    nested = trace(lambda p: p["w"] * p["more"][0], ({"w": a, "more": [b]},))
    assert list(nested.batch_inputs) == ["p_w", "p_more_0"] and values_equal(nested)


def test_an_input_given_twice_is_two_inputs() -> None:
    x = torch.randn(4)
    found = trace(lambda a, b: a * b.exp(), (x, x))
    a, b = found.graph.inputs
    assert a is not b and set(found.graph.nodes) >= {a, b}
    assert all(value is x for value in found.values.values())


def test_several_outputs() -> None:
    found = trace(lambda x: {"a": x + 1, "rest": (x * 2, [x])}, (torch.randn(3),))
    assert found.graph.output_names == ("output_1", "output_2", "output_3") and values_equal(found)


def test_tied_parameters_are_one_leaf() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    found = trace_case(model, torch.randn(2, 3))
    assert found.parameters["0.weight"] is found.parameters["1.weight"]
    assert found.graph.names["weight_0"] is found.graph.names["weight_1"]
    assert len(found.graph.inputs) == 4


def test_frozen_parameters_and_buffers_are_inputs() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    model[0].bias.requires_grad_(False)
    model[1].register_buffer("offset", torch.ones(2))
    model[1].forward = lambda x: x + model[1].offset  # type: ignore[method-assign]
    found = trace_case(model, torch.randn(4, 3))
    assert found.frozen == {"0.bias"} and "1.offset" in found.buffers
    assert found.graph.names["offset_1"] in found.graph.nodes


def test_closed_over_tensors_are_inputs() -> None:
    outside = torch.randn(3)
    model = Function(lambda self, x: x * self.table + outside)
    model.table = torch.randn(3)
    found = trace_case(model, torch.randn(2, 3))
    assert list(found.captured) == ["table", "captured"]
    assert found.values[found.captured["table"]] is model.table
    assert values_equal(found)


def test_tensors_made_of_numbers_are_constants() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        mask = torch.tril(torch.ones(3, 3)) * torch.arange(3) * torch.tensor(0.5)
        mask[0, 0] = 7.0
        return (x @ mask) * self.weight + torch.zeros_like(x) + torch.full((3,), 2.0)

    found = trace_case(Function(forward), torch.randn(3, 3))
    assert not found.captured and values_equal(found)


def test_a_branch_on_constants_is_folded() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight if torch.arange(4).sum() > 5 and x.shape[0] == 2 else x

    assert "mul" in trace_case(Function(forward), torch.randn(2, 3)).graph.op_counts()


def test_writes_in_place_are_rebound() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        h = x * self.weight
        before = h.exp()
        h.relu_().add_(1.0)
        h += before
        total = torch.zeros(2, 3)
        total += h
        total.copy_(total.detach() * 2)
        return total.masked_fill_(x > 0, 0.5)

    assert values_equal(trace_case(Function(forward), torch.randn(2, 3)))


def test_detach_data_and_no_grad_are_kept() -> None:
    for function in (
        lambda self, x: x * self.weight.detach(),
        lambda self, x: x * self.weight.data,
        lambda self, x: x * torch.no_grad()(lambda: self.weight * 2)(),
        lambda self, x: (x * self.weight).detach_(),
    ):
        assert trace_case(Function(function), torch.randn(2, 3)).graph.op_counts()["stop_gradient"] == 1


def test_no_grad_around_nothing_is_nothing() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        h = x * self.weight
        with torch.no_grad():
            same = h.contiguous().to(torch.float32)
        return same * 2.0

    assert "stop_gradient" not in trace_case(Function(forward), torch.randn(2, 3)).graph.op_counts()


def test_alias_is_not_detach() -> None:
    found = trace(lambda x: torch.ops.aten.alias(x) * 2, (torch.randn(2),))
    assert "stop_gradient" not in found.graph.op_counts()


def test_dtypes() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = (x.double() * self.weight).to(torch.float32) + (x > 0).float() + torch.where(x > 0, 2.0, 1.0)
        return y.type_as(x) / torch.tensor([1, 2, 3])

    found = trace_case(Function(forward), torch.randn(2, 3))
    assert values_equal(found) and found.graph.op_counts()["cast"] >= 3
    integers = trace(lambda n: ((n + 1) * 2, n * 0.5, n / 3, n.float()), (torch.arange(4),))
    assert [o.type.dtype for o in integers.graph.outputs] == ["int64", *["float32"] * 3] and values_equal(integers)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 0, 3)])
def test_empty_and_small_batches(shape: tuple[int, ...]) -> None:
    assert values_equal(trace_case(Function(lambda self, x: (x * self.weight).relu()), torch.randn(shape)))


def test_products_broadcast_as_in_torch() -> None:
    for a, b in [
        ((2, 1, 3, 4), (5, 4, 2)),
        ((1, 3, 4), (5, 4, 2)),
        ((4,), (2, 4, 5)),
        ((3, 1, 2, 4), (1, 5, 4, 1)),
    ]:
        found = trace(lambda a, b: a @ b, (torch.randn(a), torch.randn(b)))
        found = found.compared(run(found.graph, found.values))
        assert found.largest_difference is not None and found.largest_difference < 1e-6


def test_ops_declared_later_are_seen() -> None:
    with pytest.raises(UnsupportedOpError, match="bessel_j0"):
        trace(torch.special.bessel_j0, (torch.ones(2),))
    register(
        Op(
            "test_bessel",
            "unary",
            shape=lambda x: x,
            value=np.cos,
            torch="torch.special.bessel_j0({0})",
            aten={"special_bessel_j0": None},
        )
    )
    try:
        assert values_equal(trace(lambda x: torch.ops.aten.special_bessel_j0(x), (torch.ones(2),)))
    finally:
        del OPS["test_bessel"]


def test_strides_of_inputs_are_kept() -> None:
    x = torch.randn(3, 4).t()
    found = trace(lambda x: x.contiguous().view(-1) * 1.5, (x,))
    assert found.batch_inputs["x"].type.layout == (1, 4) and values_equal(found)


def test_dropout_that_does_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Dropout(0.0))
    model[1].eval()
    assert trace_case(model, torch.randn(2, 3)).graph.op_counts() == {"input": 3, "linear": 1}


def test_eager_runs_the_program_again() -> None:
    found = trace_case(mlp(), batch(), nn.MSELoss())
    (loss,) = eager(found)
    assert torch.equal(loss, run(found.graph, found.values)[0])


def test_a_difference_is_reported() -> None:
    found = trace(lambda x: x * 2, (torch.ones(3),))
    (right,) = run(found.graph, found.values)
    wrong = found.compared([right + torch.tensor([0.0, 0.0, 0.5])])
    assert wrong.bit_equal is False and wrong.largest_difference == pytest.approx(0.25)
    assert found.compared([right]).largest_difference == 0.0


# ---- names -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("0.weight", "weight_0"),
        ("layers.3.attn.q.weight", "layers_3_attn_q_weight"),
        ("0.1.bias", "bias_0_1"),
        ("blocks.3x3.weight", "blocks_3x3_weight"),
        ("a-b.c d", "a_b_c_d"),
        ("0", "v_0"),
    ],
)
def test_identifiers(path: str, name: str) -> None:
    assert identifier(path) == name and name.isidentifier()


def test_names_are_unique_and_no_words_of_the_languages() -> None:
    names = Names()
    assert [names.unique(n) for n in ("x", "x", "x_2", "exp", "lambda")] == [
        "x",
        "x_2",
        "x_2_2",
        "exp_",
        "lambda_",
    ]


def test_names_of_a_trace_are_unique() -> None:
    model = Function(lambda self, x: x * self.weight * self.x)
    model.register_parameter("x", nn.Parameter(torch.randn(3)))
    found = trace_case(model, torch.randn(2, 3))
    assert [i.params["name"] for i in found.graph.inputs] == ["weight", "x", "x_2"]


# ---- promises ----------------------------------------------------------------------------------------------
def contents(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, id(item)) for key, item in items]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that somebody could see: bytes, flags, attributes, hooks."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "bytes": {n: t.detach().numpy().tobytes() for n, t in tensors.items()},
        "ids": {n: id(t) for n, t in tensors.items()},
        "versions": {n: t._version for n, t in tensors.items()},
        "flags": {n: (t.requires_grad, t.grad) for n, t in model.named_parameters()},
        "attributes": {
            name: [(key, id(value), contents(value)) for key, value in module.__dict__.items()]
            for name, module in model.named_modules()
        },
        "random": (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),  # type: ignore[index]
    }


class Careless(nn.Module):
    """A forward that leaves traces wherever it can, and raises if told to."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.layer, self.raises = nn.Linear(3, 3), raises
        self.register_buffer("seen", torch.zeros(3))
        self.log: list[Any] = []
        self.layer.bias.requires_grad_(False)
        self.handle = self.layer.register_forward_hook(lambda *_: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.drawn = torch.rand(3), np.random.rand(), random.random()
        self.cache = self.layer(x)
        self.log.append(self.cache)
        self.seen = self.seen + 1
        self.eval()
        self.layer.bias.requires_grad_(True)
        self.handle.remove()
        self.register_forward_hook(lambda *_: None)
        if self.raises:
            raise RuntimeError("no")
        return self.cache * self.seen


@pytest.mark.parametrize("raises", [False, True])
def test_nothing_about_the_model_changes(raises: bool) -> None:
    model, data = Careless(raises), (torch.randn(2, 3), torch.randn(2, 3))
    before, copies = snapshot(model), [t.clone() for t in data]
    try:
        assert values_equal(trace_case(model, data, nn.MSELoss())) and not raises
    except ModelError:
        assert raises
    assert snapshot(model) == before
    assert all(torch.equal(a, b) for a, b in zip(data, copies, strict=True))
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks
    assert torch.is_grad_enabled() and len(model.layer._forward_hooks) == 1
    assert torch.overrides._len_torch_function_stack() == 0  # type: ignore[attr-defined]


@pytest.fixture
def weight_of_a_write() -> Iterator[torch.Tensor]:
    weight = torch.randn(3)
    before = weight.clone()
    yield weight
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("write", "owner"),
    [
        (lambda self, x: x.mul_(2), "input 'x'"),
        (lambda self, x: x[0].zero_() + self.weight, "input 'x'"),
        (lambda self, x: torch.no_grad()(lambda: self.weight.clamp_(-1, 1))() * x, "parameter 'weight'"),
        (lambda self, x: self.weight.data.clamp_(-1, 1) * x, "parameter 'weight'"),
        (lambda self, x: self.table.add_(1) * x, "the closed-over tensor 'table'"),
        (
            lambda self, x: F.embedding(torch.tensor([0]), self.matrix, max_norm=0.1).sum() * x,
            "parameter 'matrix'",
        ),
    ],
)
def test_writes_into_what_belongs_to_the_user_are_refused(
    write: Callable[..., Any], owner: str, weight_of_a_write: torch.Tensor
) -> None:
    model = Function(write)
    model.register_buffer("buffer", torch.randn(3))
    model.matrix = nn.Parameter(torch.randn(2, 3))
    model.table = weight_of_a_write
    x, before = torch.randn(3), snapshot(model)
    copied = x.clone()
    with pytest.raises(UnsupportedOpError, match=f"writes into {owner}"):
        trace_case(model, x)
    assert torch.equal(x, copied) and snapshot(model) == before


# ---- refusals ----------------------------------------------------------------------------------------------
class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class Reversed(torch.autograd.Function):
    """Calls no op at all in its forward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return -grads[0]


straight_through = StraightThrough.apply  # bound before any trace, as people write it


def swallowed(self: Any, x: torch.Tensor) -> torch.Tensor:
    try:
        return x if x.sum() > 0 else -x
    except NotImplementedError:
        return x


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "branch": (lambda self, x: x if x.sum() > 0 else -x, "Python reads the value"),
    "branch on a parameter": (lambda self, x: x if self.weight[0] > 0 else -x, "Python reads the value"),
    "swallowed branch": (swallowed, "Python reads the value"),
    "item": (lambda self, x: x * x.sum().item(), "Python reads the value"),
    "float": (lambda self, x: x * float(x.sum()), "Python reads the value"),
    "int": (lambda self, x: x * int(x.sum()), "Python reads the value"),
    "tolist": (lambda self, x: x * x.tolist()[0], "Python reads the value"),
    "numpy": (lambda self, x: x * float(x.detach().numpy().sum()), "Python reads the value"),
    "asarray": (lambda self, x: x * float(np.asarray(x.detach()).sum()), "Python reads the value"),
    "equal": (lambda self, x: x if torch.equal(x, x + 1) else -x, "Python reads the value"),
    "sizes": (lambda self, x: x[x > 0].sum(), "aten.index.Tensor|size depends"),
    "nonzero": (lambda self, x: x.nonzero().sum() * x, "size depends on values"),
    "custom": (
        lambda self, x: StraightThrough.apply(x * self.weight),
        "custom autograd.Function 'StraightThrough'",
    ),
    "bound": (
        lambda self, x: straight_through(x * self.weight),
        "custom autograd.Function 'StraightThrough'",
    ),
    "no op": (lambda self, x: Reversed.apply(x * self.weight), "custom autograd.Function 'Reversed'"),
    "undeclared": (lambda self, x: torch.special.bessel_j0(x * self.weight), "bessel_j0.* is not declared"),
    "undeclared arguments": (lambda self, x: torch.special.zeta(x * self.weight, 2), "zeta.* is not declared"),
    "backward": (lambda self, x: torch.autograd.backward((x * self.weight).sum()) or x, "autograd.backward"),
    "batched derivative": (
        lambda self, x: torch.autograd.grad(x * self.weight, self.weight, torch.eye(3), is_grads_batched=True)[0],
        "is_grads_batched",
    ),
    "functorch": (lambda self, x: torch.func.jvp(torch.sin, (x,), (x,))[1], "torch.func transform"),
    "gradient hook": (lambda self, x: (x * self.weight).register_hook(lambda g: g) and x, "hook on a tensor"),
    "freezing": (
        lambda self, x: (self.weight * x).detach_() + self.weight.requires_grad_(False),
        "switched off",
    ),
    "data assignment": (lambda self, x: setattr(self.weight, "data", x) or x, "assignment to .data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_module_and_line(name: str) -> None:
    function, words = REFUSED[name]
    model = nn.Sequential(Function(function))
    with pytest.raises(UnsupportedOpError, match=words) as caught:
        trace_case(model, torch.randn(3), strict=True, follow=False)
    if name != "no op":  # only autograd's record shows it, which knows no lines
        assert str(caught.value).startswith("0 (tests/frontends/test_torch.py:")


def test_what_is_not_used_is_not_refused() -> None:
    model = Function(lambda self, x: (torch.special.bessel_j0(x), torch.rand(3), x * self.weight)[-1])
    assert values_equal(trace_case(model, torch.randn(3)))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(3, dtype=torch.complex64), "input 'x' is complex"),
        (torch.eye(3).to_sparse(), "input 'x' is torch.sparse_coo"),
    ],
)
def test_refused_tensors(tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(UnsupportedOpError, match=words):
        trace_case(Function(lambda self, x: x * self.weight), tensor)
    with pytest.raises(UnsupportedOpError, match=words.replace("input 'x'", "the closed-over tensor 'captured'")):
        trace(lambda x: tensor * x, (torch.ones(3),))


def test_backward_hooks_are_refused() -> None:
    model = mlp()
    handle = model[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(UnsupportedOpError, match="module '0' has a backward hook"):
        trace_case(model, batch(), F.mse_loss)
    handle.remove()
    model.get_parameter("0.weight").register_hook(lambda g: g * 2)
    with pytest.raises(UnsupportedOpError, match=r"parameter '0\.weight' has a gradient hook"):
        trace_case(model, batch(), F.mse_loss)


# ---- the user's mistakes -----------------------------------------------------------------------------------
def test_a_model_that_raises() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("missing")

    with pytest.raises(ModelError) as caught:
        trace_case(nn.Sequential(Function(forward)), torch.randn(2, 3))
    message = str(caught.value)
    assert f"raised KeyError at tests/frontends/test_torch.py:{line_of(forward) + 1}, module '0' (Function)" in message
    assert "tensor (2 x 3) torch.float32" in message and isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((mlp(), torch.randn(5, 3), nn.MSELoss()), "a batch is a pair of inputs and target"),
        ((mlp(), (torch.randn(5, 3),) * 3, nn.MSELoss()), "a batch is a pair of inputs and target"),
        ((mlp(), batch(), nn.MSELoss(reduction="none")), "the loss is not a scalar"),
        ((mlp(), batch(), lambda a, b: 1.0), "the loss is not a scalar"),
        ((mlp(), (torch.randn(5, 4), torch.randn(5, 2)), nn.MSELoss()), "raised RuntimeError.*module '0'"),
        ((mlp(), ([1.0, 2.0], torch.randn(5, 2)), nn.MSELoss()), "the batch holds no tensor"),
        ((mlp(), [1.0, 2.0]), "the batch holds no tensor"),
        ((mlp(), torch.randn(5, 3), "model"), "the loss that the model returned .* is not a scalar"),
        ((mlp(), batch(), "mse"), "the loss cannot be called"),
        ((None, batch(), "model"), "the model cannot be called"),
        ((mlp(), batch(), F.mse_loss, lambda m, b: b), "both loss and objective"),
        ((mlp(), batch(), None, lambda m, b: m(b[0])), "the objective is not a scalar"),
        ((Function(lambda self, x: None), torch.randn(3)), "the model returned no tensor"),
        (
            (Function(lambda self, x: None), (torch.randn(3), torch.ones(3)), F.mse_loss),
            "the model returned no tensor",
        ),
        ((nn.LazyLinear(3), torch.randn(2, 3)), "parameter 'weight' has no shape yet"),
    ],
)
def test_mistakes_are_explained(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        trace_case(*arguments)
    assert caught.value.required


def test_every_declared_aten_name_exists() -> None:
    for op in OPS.values():
        for key in op.aten:
            name, _, overload = key.partition(".")
            assert hasattr(torch.ops.aten, name), f"{op.name}: aten.{key}"
            packet = getattr(torch.ops.aten, name)
            assert not overload or overload in packet.overloads(), f"{op.name}: aten.{key}"


def test_a_write_under_no_grad_keeps_the_derivative() -> None:
    """The value changes and the tape does not, as eager execution has it."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        h = self.weight * x
        with torch.no_grad():
            h.clamp_(-0.1, 0.1)
        return (h * x).sum()

    model, x = Function(forward).double(), torch.randn(3, dtype=torch.float64)
    case = trace_case(model, x, "model")
    loss, grads = step(case)(dict(model.named_parameters()), x)
    expected = model(x)
    expected.backward()
    assert torch.equal(loss, expected.detach()) and torch.equal(grads["weight"], x * x)
    assert torch.equal(grads["weight"], model.weight.grad)
