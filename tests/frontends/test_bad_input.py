"""Programs and inputs that a graph cannot hold: refused with the place and the fix, or right; never wrong.

What is refused leaves the model, the batch and the random generators as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chainrule as cr
from chainrule.errors import ChainruleError, ModelError, UnsupportedOpError
from chainrule.frontends.torch import trace


def case_of(model: nn.Module, batch: Any) -> cr.Case:  # type: ignore[name-defined]
    return cr.case(model, batch, objective=lambda m, b: m(b).square().mean())


def compared(model: nn.Module, batch: Any) -> None:
    """One step beside an eager one."""
    eager = copy.deepcopy(model)
    expected = eager(batch).square().mean()
    expected.backward()
    case = case_of(model, batch)
    assert case.trace.bit_equal
    loss, grads = case.step(dict(model.named_parameters()), batch)
    assert torch.equal(loss.nan_to_num(7.0), expected.detach().nan_to_num(7.0))
    for name, parameter in eager.named_parameters():
        found = grads[name]
        assert found is not None and parameter.grad is not None
        torch.testing.assert_close(found, parameter.grad, rtol=1e-12, atol=1e-14, equal_nan=True)


class Layer(nn.Module):
    """``forward(self, x)`` with a linear layer of width 4."""

    def __init__(self, forward: Callable[[Any, Any], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4).double()
        self.calls, self.seen = 0, []
        self._forward = forward

    def forward(self, x: Any) -> Any:
        return self.layer(x) if self._forward is None else self._forward(self, x)


X = torch.linspace(-1.0, 2.0, 24, dtype=torch.float64).reshape(6, 4)


# ---- inputs ------------------------------------------------------------------------------------------------
INPUTS: dict[str, torch.Tensor] = {
    "transposed": X.reshape(4, 6).t(),
    "every second": X.repeat(1, 2)[:, ::2],
    "backwards": X.flip(0),
    "expanded": X[:1].expand(5, 4),
    "one repeated": torch.tensor(0.5, dtype=torch.float64).expand(3, 4),
    "channels last": X.reshape(1, 4, 2, 3).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1),
    "overlapping": X.flatten().as_strided((5, 4), (2, 1)),
    "with an offset": torch.cat([X.flatten(), X.flatten()])[3:27].reshape(6, 4),
    "one row": X[:1],
    "a vector": X[0],
    "four dimensions": X.reshape(3, 1, 2, 4),
    "requires_grad": X.clone().requires_grad_(),
    "a parameter": nn.Parameter(X.clone()),
    "frozen": X.clone().requires_grad_(False),
    "with nan": X.where(X > -0.5, torch.nan),
    "with infinities": X.where(X > -0.5, torch.inf),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_every_layout(name: str) -> None:
    compared(Layer(), INPUTS[name])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_nothing_at_all(shape: tuple[int, ...]) -> None:
    """The mean of nothing is nan, and so are the gradients; a sum is 0."""
    model, x = Layer(), torch.zeros(shape, dtype=torch.float64)
    case = cr.case(model, x, objective=lambda m, b: m(b).sum())
    assert case.trace.bit_equal
    loss, grads = case.step(dict(model.named_parameters()), x)
    assert loss == 0
    assert all(g is not None and not g.any() for g in grads.values())


@pytest.mark.parametrize(
    "layer", ["LSTM", "GRU", "BatchNorm1d", "LayerNorm", "Conv1d", "MultiheadAttention", "Embedding"]
)
def test_no_samples(layer: str) -> None:
    """A batch without samples through layers whose kernels have no such case: right, or refused by torch itself."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            made = {
                "LSTM": lambda: nn.LSTM(4, 3),
                "GRU": lambda: nn.GRU(4, 3),
                "BatchNorm1d": lambda: nn.BatchNorm1d(5),
                "LayerNorm": lambda: nn.LayerNorm(4),
                "Conv1d": lambda: nn.Conv1d(5, 2, 3),
                "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2),
                "Embedding": lambda: nn.Embedding(6, 4),
            }
            self.layer = made[layer]().double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if layer == "MultiheadAttention":
                return self.layer(x, x, x)[0]
            out = self.layer(x.long() if layer == "Embedding" else x)
            return out[0] if isinstance(out, tuple) else out

    shape = (5, 0, 4) if layer in ("LSTM", "GRU", "MultiheadAttention") else (0, 5, 4)
    x, model = torch.zeros(shape, dtype=torch.float64), Model()
    try:
        eager = copy.deepcopy(model)
        expected = eager(x).sum()
    except (RuntimeError, ValueError):
        with pytest.raises(ModelError, match="the model raised"):
            _ = cr.case(model, x, objective=lambda m, b: m(b).sum()).trace
        return
    case = cr.case(model, x, objective=lambda m, b: m(b).sum())
    try:
        loss, grads = case.step(dict(model.named_parameters()), x)
    except UnsupportedOpError:
        return
    expected.backward()
    assert torch.equal(loss, expected.detach())
    for name, parameter in eager.named_parameters():
        found = grads[name]
        zero = torch.zeros_like(parameter)
        assert torch.equal(zero if found is None else found, zero if parameter.grad is None else parameter.grad)


REFUSED_TENSORS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "complex": (lambda: torch.complex(X, X), "complex"),
    "sparse": (lambda: X.to_sparse(), "sparse"),
    "compressed": (lambda: X.to_sparse_csr(), "sparse"),
}


@pytest.mark.parametrize("name", REFUSED_TENSORS)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_tensors_that_are_refused(name: str) -> None:
    make, word = REFUSED_TENSORS[name]
    with pytest.raises(UnsupportedOpError, match=word) as caught:
        _ = case_of(Layer(lambda self, x: self.layer(X) * x.abs().sum()), make()).trace
    assert "required:" in str(caught.value) and "instead:" in str(caught.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_of_other_layouts_inside() -> None:
    def nested(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.nested.nested_tensor([self.layer(x[:2]), self.layer(x[2:])]).to_padded_tensor(0.0)

    def sparse(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(torch.eye(6, dtype=torch.float64).to_sparse(), self.layer(x))

    for forward, word in ((nested, "nested"), (sparse, "sparse")):
        with pytest.raises(UnsupportedOpError, match=word):
            _ = case_of(Layer(forward), X).trace


def test_complex_parameters_and_results_are_refused() -> None:
    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, dtype=torch.complex128))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.weight).abs()

    with pytest.raises(UnsupportedOpError, match="parameter 'weight' is complex"):
        _ = case_of(Wave(), X).trace
    with pytest.raises(ChainruleError, match="complex"):
        trace(torch.fft.fft, (X,), strict=False, follow=True)
    with pytest.raises(UnsupportedOpError, match="complex"):
        trace(lambda x: torch.fft.irfft(torch.fft.rfft(x)), (X,))  # no closed form


# ---- programs ----------------------------------------------------------------------------------------------
def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.calls += 1
    return self.layer(x) * self.calls


def remembered(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.last = self.layer(x)
    return self.last


@pytest.mark.parametrize("forward, name", [(counted, "calls"), (remembered, "last")])
def test_python_state_is_named(forward: Any, name: str) -> None:
    model = Layer(forward)
    before = dict(model.__dict__)
    with pytest.raises(UnsupportedOpError, match=f"changes attribute '{name}'") as caught:
        trace(model, (X,))
    assert "registered buffer" in str(caught.value)
    assert dict(model.__dict__) == before
    assert any(name in m for m in case_of(model, X).trace.mutations)


def test_nothing_differentiable_is_named() -> None:
    for forward in (
        lambda self, x: x * 2,
        lambda self, x: self.layer(x).detach(),
        lambda self, x: (self.layer(x) > 0).double(),
    ):
        with pytest.raises(ModelError, match="no parameter reaches the loss") as caught:
            _ = case_of(Layer(forward), X).step
        assert "instead:" in str(caught.value)
    with pytest.raises(ModelError, match="the model returned no tensor"):
        _ = cr.case(Layer(lambda self, x: 3.0), X).trace
    with pytest.raises(ModelError, match="not a scalar"):
        _ = cr.case(Layer(), X, objective=lambda m, b: m(b)).trace
    with pytest.raises(ModelError, match="not a scalar"):
        _ = cr.case(Layer(), X, objective=lambda m, b: (m(b) > 0).sum()).trace


def test_a_parameter_outside_of_the_model_is_an_input() -> None:
    outside = nn.Parameter(torch.full((4,), 0.5, dtype=torch.float64))
    model = Layer(lambda self, x: self.layer(x) * outside)
    case = case_of(model, X)
    assert [t is outside for t in case.trace.values.values()].count(True) == 1
    assert list(case.trace.captured)
    before = case.step(dict(model.named_parameters()), X)[0]
    with torch.no_grad():
        outside.mul_(2.0)
    assert torch.allclose(case.step(dict(model.named_parameters()), X)[0], 4.0 * before)


def test_a_parameter_that_the_loss_does_not_reach_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)}).double()
    case = cr.case(model, X, objective=lambda m, b: m["used"](b).square().mean())
    assert case.trace.unreached == ("idle.weight", "idle.bias")
    _, grads = case.step(dict(model.named_parameters()), X)
    assert grads["idle.weight"] is None and grads["used.weight"] is not None


def test_a_loop_past_the_limit_is_refused_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainrule.frontends.torch.meanings.LONGEST", 200)

    def steps(self: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(300):
            x = torch.tanh(self.layer(x))
        return x

    with pytest.raises(UnsupportedOpError, match=r"test_bad_input\.py:\d+\): .*more than 200 calls") as caught:
        _ = case_of(Layer(steps), X).trace
    assert "instead:" in str(caught.value)


WRITES: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "the input": lambda self, x: self.layer(x.mul_(2.0)),
    "a view of the input": lambda self, x: self.layer(x[:, :2].zero_().new_ones(2, 4)),
    "a parameter": lambda self, x: (self.layer.weight.data.mul_(2.0), self.layer(x))[1],
    "embeddings that are bounded": lambda self, x: F.embedding(x.long().clamp(0, 3), self.layer.weight, max_norm=0.1),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_into_what_belongs_to_the_user(name: str) -> None:
    model, x = Layer(WRITES[name]), X.clone()
    weight, state = model.layer.weight.detach().clone(), torch.get_rng_state()
    with pytest.raises(ChainruleError) as caught:
        _ = case_of(model, x).trace
    assert "test_bad_input.py" in str(caught.value)
    assert torch.equal(x, X) and torch.equal(model.layer.weight, weight)
    assert torch.equal(torch.get_rng_state(), state)


def inside(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.layer(x.detach().requires_grad_())
    return torch.autograd.grad(y.square().sum(), self.layer.weight, create_graph=True)[0]


def switched(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.layer(x)
    y.requires_grad_(False)
    return y


def hooked(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.layer(x)
    y.register_hook(lambda g: 2 * g)
    return y


def assigned(self: Any, x: torch.Tensor) -> torch.Tensor:
    y = self.layer(x)
    y.data = torch.zeros_like(y)
    return y


@pytest.mark.parametrize("forward", [inside, switched, hooked, assigned])
def test_derivatives_that_a_program_plays_with(forward: Any) -> None:
    """Derivatives inside the program, hooks and swapped data are refused by name, or give eager's numbers."""
    model = Layer(forward)
    try:
        case = case_of(model, X)
        step = case.step
    except ChainruleError as error:
        assert "test_bad_input.py" in str(error) or "inside the traced program" in str(error)
        return
    eager = copy.deepcopy(model)
    expected = eager(X).square().mean()
    expected.backward()
    loss, grads = step(dict(model.named_parameters()), X)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(grads["layer.weight"], eager.layer.weight.grad)
