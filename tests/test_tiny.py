"""The whole tool on a network of two layers: the first file to read. Every verb, in the order of the chapter.

What is the gradient? What will it do? Is anything wrong? Does it train? Nothing here takes longer than a moment, and no
verb that only looks changes the model, the optimizer or the random numbers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import chainrule as cr


# ---- formulas need no torch --------------------------------------------------------------------------------
def test_derive_a_formula():
    d = cr.derive("f1 = w*x; h = tanh(f1); l = (h - y)^2", wrt="w")
    assert [step.symbol for step in d.steps] == ["dl/dh", "dl/df1", "dl/dw"]
    assert str(d.steps[0]) == "dl/dh = 2 * (h - y)"
    assert d["w"].evaluate(w=0.5, x=2.0, y=1.0) == pytest.approx(2 * (1 - 0.7615941559**2) * 2 * (0.7615941559 - 1))


def test_derive_a_matrix_formula():
    d = cr.derive("f = x' @ A @ x", shapes={"x": "n", "A": "n,n"}, wrt="x")
    assert d["x"].text == "(A + A') @ x" and d["x"].latex == r"\left(A + A^{\top}\right) x"


def test_check_a_claim():
    c = cr.check("l = (f3 - y)^2", wrt="f3", claim="2*f3")
    assert not c.holds and c.correct.text == "2 * (f3 - y)" and c.difference.text == "2 * y"


def test_moments_of_a_formula():
    m = cr.moments("b = relu(a)", given={"a": "symmetric(0, sigma^2)"})
    assert m["b"].second.text == "sigma^2 / 2"


def test_chain_of_a_formula():
    chain = cr.chain("h = tanh(w*x); l = (h - y)^2")
    assert len(chain.links) >= 2 and str(chain)


def test_errors_teach():
    with pytest.raises(cr.errors.FormulaError, match=r"\^"):
        cr.derive("y = (x + 1", wrt="x")


# ---- a network ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def parts():
    """Two layers, one batch, a loss, and an optimizer that has already taken a step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        batch = (torch.randn(8, 3), torch.randn(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
    optimizer.step()
    return model, batch, nn.MSELoss(), optimizer


@pytest.fixture(scope="module")
def case(parts):
    return cr.case(*parts)


@pytest.fixture(autouse=True)
def nothing_is_touched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Model, gradients, optimizer and random numbers are the same bytes after every verb that looks."""
    if "parts" not in request.fixturenames and "case" not in request.fixturenames:
        yield
        return
    parts = request.getfixturevalue("parts")
    before = fingerprint(*parts)
    yield
    assert fingerprint(*parts) == before


def fingerprint(model: nn.Module, batch, loss, optimizer: torch.optim.Optimizer) -> list[bytes | str]:
    """Everything that a verb could have changed."""
    tensors = [*model.state_dict().values(), *batch, *(p.grad for p in model.parameters()), torch.get_rng_state()]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    flags = [(m.training, sorted(m._forward_hooks)) for m in model.modules()]
    return [t.detach().numpy().tobytes() for t in tensors] + [repr(flags), repr(optimizer.param_groups[0]["lr"])]


def test_the_trace_is_the_model(case):
    assert case.trace.bit_equal
    assert {"linear", "relu", "mse"} <= set(case.trace.graph.op_counts())


def test_gradients_are_torchs(case, parts):
    model, batch, loss, _ = parts
    value, grads = case.step(dict(model.named_parameters()), batch)
    expected = torch.autograd.grad(loss(model(batch[0]), batch[1]), list(model.parameters()))
    assert value == pytest.approx(loss(model(batch[0]), batch[1]).item(), rel=1e-6)
    for (name, _), theirs in zip(model.named_parameters(), expected, strict=True):
        assert torch.allclose(grads[name], theirs, rtol=1e-5, atol=1e-7), name
    assert "def step" in case.step.source


def test_derive_a_model(parts):
    d = cr.derive(*parts[:3])
    assert {"weight_0", "bias_0", "weight_2", "bias_2"} <= set(d.wrt)
    assert "[f_0 > 0]" in str(d)
    json.dumps(d.to_dict())


def test_derive_a_function():
    d = cr.derive(lambda x: x.tanh().sum(), (torch.ones(3),))
    assert "tanh" in d[d.wrt[0]].text


def test_moments_of_a_model(case):
    t = cr.moments(case)
    assert [row.name for row in t.rows] == ["0", "1", "2", ""]
    assert t["1"].second == pytest.approx(t["0"].second / 2, rel=0.5)


def test_chain_of_a_model(case):
    chain = cr.chain(case)
    assert chain.product and len(chain.links) == 4
    assert all(link.gain_predicted is not None for link in chain.links)
    json.dumps(chain.to_dict())


def test_diagnose(case):
    assert cr.diagnose(case).ok


def test_diagnose_zeros(parts):
    model, batch, loss, _ = parts
    zeros = copy.deepcopy(model)
    for parameter in zeros.parameters():
        nn.init.zeros_(parameter)
    result = cr.diagnose(zeros, batch, loss)
    assert not result.ok and "symmetric" in {f.kind for f in result.findings}


def test_a_case_knows_it_all(case):
    assert case.equations.steps and case.moments.rows and case.chain.links and case.findings == ()


def test_report(case, tmp_path: Path):
    page = cr.report(case, path=tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>") and "relu" in page.lower()


# ---- training changes what it should -----------------------------------------------------------------------
def test_fit_trains_as_torch_does(parts):
    _, batch, loss, _ = parts

    def trained(use_ours: bool) -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if use_ours:
            history = cr.fit(model, [batch], loss, optimizer, epochs=20)
            assert (
                len(history.loss) == 20
                and history.loss[-1] < history.loss[0]
                and history.backend in ("native", "torch")
            )
        else:
            for _ in range(20):
                optimizer.zero_grad()
                loss(model(batch[0]), batch[1]).backward()
                optimizer.step()
        return [p.detach() for p in model.parameters()]

    for ours, theirs in zip(trained(True), trained(False), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_compile_step(parts):
    model, batch, loss, _ = parts
    model = copy.deepcopy(model)  # the step writes .grad, as backward would
    value = cr.compile_step(model, loss)(*batch)
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = loss(model(batch[0]), batch[1])
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(torch.allclose(a, p.grad, rtol=1e-5, atol=1e-7) for a, p in zip(ours, model.parameters(), strict=True))
