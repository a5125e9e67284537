"""Backward passes of models as equations: they give autograd's numbers, parse back, and repeat nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import chainrule as cr
from chainrule.errors import FormulaError
from chainrule.frontends.formula import parse_program
from chainrule.interpreters.evaluate import evaluate_all
from chainrule.verbs.blocks import Block, grouped

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Attention(nn.Module):
    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.o = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (u.view(b, t, self.heads, d // self.heads).transpose(1, 2) for u in self.qkv(x).chunk(3, -1))
        p = torch.softmax(q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5, -1)
        return self.o((p @ v).transpose(1, 2).reshape(b, t, d))


class TransformerBlock(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width)
        self.fc, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.out(F.gelu(self.fc(self.ln2(x))))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.fc(x))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.LSTMCell(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = c = torch.zeros(x.shape[1], 4)
        for t in range(x.shape[0]):
            h, c = self.cell(x[t], (h, c))
        return self.fc(h)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def _classes(n: int, k: int):
    return torch.randint(0, k, (n,))


def _norm(train: bool):
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    return net.train(train), (torch.randn(7, 4), _classes(7, 3)), nn.CrossEntropyLoss()


def _deep(count: int = 4):
    hidden = [m for _ in range(count) for m in (nn.Linear(5, 5), nn.ReLU())]
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), *hidden, nn.Linear(5, 3))
    return net, (torch.randn(7, 4), torch.randn(7, 3)), F.mse_loss


def _frozen():
    net, batch, loss = _deep(1)
    net[0].weight.requires_grad_(False)
    return net, batch, loss


CASES = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
        (torch.randn(7, 4), _classes(7, 3)),
        nn.CrossEntropyLoss(),
    ),
    "deep": _deep,
    "frozen": _frozen,
    "tied": lambda: (Tied(), (torch.randn(3, 4), torch.randn(3, 4)), F.mse_loss),
    "residual": lambda: (
        nn.Sequential(*[Residual(3) for _ in range(5)]),
        (torch.randn(6, 3), torch.randn(6, 3)),
        F.mse_loss,
    ),
    "convolution": lambda: (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)),
        (torch.randn(3, 1, 6, 6), _classes(3, 2)),
        nn.CrossEntropyLoss(),
    ),
    "transformer": lambda: (TransformerBlock(), (torch.randn(2, 3, 4), torch.randn(2, 3, 4)), F.mse_loss),
    "transformers": lambda: (
        nn.Sequential(*[TransformerBlock() for _ in range(4)]),
        (torch.randn(2, 3, 4), torch.randn(2, 3, 4)),
        F.mse_loss,
    ),
    "batch norm": lambda: _norm(True),
    "batch norm in eval mode": lambda: _norm(False),
    "lstm": lambda: (Cell(), (torch.randn(3, 2, 3), torch.randn(2, 2)), F.mse_loss),
}


def _numbers(case) -> dict[str, np.ndarray]:
    return {leaf.params["name"]: tensor.detach().numpy() for leaf, tensor in case.trace.values.items()}


def _gradients(case) -> dict[str, np.ndarray]:
    case.model.zero_grad()
    inputs, target = case.batch
    case.loss(case.model(inputs), target).backward()
    named = dict(case.model.named_parameters(remove_duplicate=False))
    leaves = case.trace.parameters
    return {leaves[n].params["name"]: p.grad.numpy() for n, p in named.items() if p.grad is not None}


@pytest.mark.parametrize("name", CASES)
def test_printed_equations_give_the_gradients_of_autograd(name: str) -> None:
    case = cr.case(*CASES[name]())
    d = cr.derive(case)
    expected, given = _gradients(case), _numbers(case)
    program = parse_program(d.text(blocks=False), given=d.program.variables)  # every line, in order
    found = {s.name: s.node for s in program.statements}
    leaves = {d.program.variables[n]: a for n, a in given.items() if n in d.program.variables}
    numbers = evaluate_all(list(found.values()), leaves)
    assert set(expected) <= set(d.wrt)
    frozen = {case.trace.parameters[n].params["name"] for n in case.trace.frozen}
    assert not frozen & set(d.wrt)
    for parameter, gradient in expected.items():
        # float64: sums in another order
        np.testing.assert_allclose(numbers[found[f"dloss/d{parameter}"]], gradient, rtol=1e-9, atol=1e-11)


def test_gpt2_with_tied_embeddings() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11,
        n_positions=8,
        n_embd=8,
        n_layer=4,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).double()
    tokens = torch.randint(0, 11, (2, 5))
    case = cr.case(model, {"input_ids": tokens, "labels": tokens}, "model")
    d = cr.derive(case)
    values = d.values(**_numbers(case))
    model(input_ids=tokens, labels=tokens).loss.backward()
    for path, parameter in model.named_parameters():
        leaf = case.trace.parameters[path].params["name"]
        np.testing.assert_allclose(
            values[f"dloss/d{leaf}"], parameter.grad.numpy(), rtol=1e-5, atol=1e-6
        )  # its loss is computed in float32
    # Four blocks are written once, forward and backward.
    assert [len(b["indices"]) for b in d.to_dict()["blocks"]] == [4, 4]
    assert len(d.text().splitlines()) < 0.45 * len(d.text(blocks=False).splitlines())


@pytest.mark.parametrize("name", ["deep", "residual", "transformers"])
def test_blocks_are_the_equations(name: str) -> None:
    d = cr.derive(*CASES[name]())
    lines = d.text(blocks=False).splitlines()
    parts = grouped(lines)
    assert sum(isinstance(p, Block) for p in parts) >= 2
    written = []
    for p in parts:
        written += [p] if isinstance(p, str) else [line for k in p.indices for line in p.written(k)]
    assert written == lines
    assert len(d.text().splitlines()) < len(lines)


def test_blocks_of_other_sizes_are_no_repetition() -> None:
    sizes = [4, 5, 6, 7, 8, 3]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    d = cr.derive(nn.Sequential(*layers), torch.randn(2, 4))
    assert d.to_dict()["blocks"] == []


def test_readable() -> None:
    case = cr.case(*CASES["transformer"]())
    lines = dict(line.split(" = ", 1) for line in cr.derive(case).text(blocks=False).splitlines() if " = " in line)
    assert lines["p_attn"].startswith("softmax(u_attn")
    assert lines["dloss/dln1_weight"].split("   #")[0] == "sum(sum(dloss/df_ln1 * u_ln1, 1), 0)"
    d = cr.derive(*CASES["mlp"]())
    assert d["weight_0"].text == "(dloss/df_0)' @ x"


def test_by_dotted_path() -> None:
    model, batch, loss = CASES["mlp"]()
    d = cr.derive(model, batch, loss, wrt="0.weight, 2.bias")
    assert d.wrt == ("weight_0", "bias_2")
    with pytest.raises(FormulaError, match="1.weight"):
        cr.derive(model, batch, loss, wrt="1.weight")


def test_dropout_names_its_noise() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.3), nn.Linear(5, 3))
    d = cr.derive(net, (torch.randn(7, 4), torch.randn(7, 3)), F.mse_loss)
    assert "draw_0" in dict((s.wrt, s.closed_form.text) for s in d.steps)["f_0"]
    assert "draw_0" not in d.wrt


def test_function_of_several_inputs_by_one() -> None:
    x, w = torch.randn(3), torch.randn(3)
    d = cr.derive(lambda x, w: (x * w).tanh().sum(), (x, w), wrt="w")
    (expected,) = torch.autograd.grad((x * w.requires_grad_()).tanh().sum(), w)
    np.testing.assert_allclose(d["w"].evaluate(x=x.numpy(), w=w.detach().numpy()), expected.numpy(), rtol=1e-12)
