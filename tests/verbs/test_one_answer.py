"""The same problem as one formula, as assignments and as a torch function: one derivative, in every mode."""

from __future__ import annotations

import pytest

import chainrule as cr

torch = pytest.importorskip("torch")

torch.manual_seed(0)
A, X, S = torch.randn(3, 4), torch.randn(5, 4), torch.randn(4, 4)
b, w, x, y = torch.randn(3), torch.randn(4), torch.randn(4), torch.randn(5)
SIZES = {"A": (3, 4), "X": (5, 4), "S": (4, 4), "b": 3, "w": 4, "x": 4, "y": 5}

# formula; the same in assignments; the same in torch; its arguments; by what
PROBLEMS = [
    ("x' @ S @ x", "z = S @ x; f = x' @ z", lambda x, S: x @ (S @ x), (x, S), "x"),
    ("x' @ S @ x", "z = S @ x; f = x' @ z", lambda x, S: x @ (S @ x), (x, S), "S"),
    ("sum((A @ x - b)^2)", "r = A @ x - b; f = sum(r^2)", lambda A, x, b: ((A @ x - b) ** 2).sum(), (A, x, b), "x"),
    ("sum((A @ x - b)^2)", "r = A @ x - b; f = sum(r^2)", lambda A, x, b: ((A @ x - b) ** 2).sum(), (A, x, b), "A"),
    ("mean((X @ w - y)^2)", "p = X @ w; f = mean((p - y)^2)", lambda X, w, y: ((X @ w - y) ** 2).mean(), (X, w, y), "w"),
    ("sum(tanh(A @ x))", "z = A @ x; f = sum(tanh(z))", lambda A, x: torch.tanh(A @ x).sum(), (A, x), "x"),
    ("sum(sigmoid(A @ x))", "z = A @ x; f = sum(sigmoid(z))", lambda A, x: torch.sigmoid(A @ x).sum(), (A, x), "A"),
    ("sum(relu(A @ x))", "z = A @ x; f = sum(relu(z))", lambda A, x: torch.relu(A @ x).sum(), (A, x), "x"),
    ("sum(exp(x))", "e = exp(x); f = sum(e)", lambda x: x.exp().sum(), (x,), "x"),
    ("logsumexp(x)", "e = exp(x); f = log(sum(e))", lambda x: torch.logsumexp(x, 0), (x,), "x"),
    ("b' @ A @ x", "z = A @ x; f = b' @ z", lambda b, A, x: b @ (A @ x), (b, A, x), "A"),
    ("w' @ x", "p = w * x; f = sum(p)", lambda w, x: w @ x, (w, x), "w"),
    ("sum(X @ w * y)", "p = X @ w; f = sum(p * y)", lambda X, w, y: (X @ w * y).sum(), (X, w, y), "X"),
    ("sum(x * sin(x))", "s = sin(x); f = sum(x * s)", lambda x: (x * x.sin()).sum(), (x,), "x"),
    ("tr(S @ S)", "P = S @ S; f = tr(P)", lambda S: torch.trace(S @ S), (S,), "S"),
    ("sum(S^2)", "q = S * S; f = sum(q)", lambda S: (S * S).sum(), (S,), "S"),
    ("sum(softplus(X @ w) - y * (X @ w))", "z = X @ w; f = sum(softplus(z) - y * z)",
     lambda X, w, y: (torch.nn.functional.softplus(X @ w) - y * (X @ w)).sum(), (X, w, y), "w"),
    ("w' @ softmax(x)", "p = softmax(x); f = w' @ p", lambda w, x: w @ torch.softmax(x, 0), (w, x), "x"),
    ("-(w' @ log_softmax(x))", "p = log_softmax(x); f = -(w' @ p)", lambda w, x: -(w @ torch.log_softmax(x, 0)), (w, x), "x"),
    ("w' @ layer_norm(x)", "n = layer_norm(x); f = w' @ n",
     lambda w, x: w @ torch.nn.functional.layer_norm(x, (4,)), (w, x), "x"),
    ("sum(x^3) / sum(x^2)", "p = sum(x^3); q = sum(x^2); f = p / q", lambda x: (x**3).sum() / (x**2).sum(), (x,), "x"),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "assignments", "function", "arguments", "wrt"), PROBLEMS)
def test_one_answer(formula, assignments, function, arguments, wrt) -> None:
    arguments = tuple(a.double() for a in arguments)
    names = function.__code__.co_varnames[: len(arguments)]
    shapes = {n: SIZES[n] for n in names}
    (truth,) = torch.autograd.grad(
        function(*(leaves := [a.clone().requires_grad_() for a in arguments])), leaves[names.index(wrt)]
    )
    answers = []
    for mode in ("direct", "forward", "reverse", "best"):
        answers += [cr.derive(text, shapes=shapes, wrt=wrt, mode=mode)[wrt] for text in (formula, assignments)]
        answers.append(cr.derive(function, arguments, wrt=wrt, mode=mode)[wrt])
    for answer in answers:
        value = answer.evaluate(**{n: a.numpy() for n, a in zip(names, arguments, strict=True)})
        # float64: the same sums in another order
        torch.testing.assert_close(torch.as_tensor(value), truth, rtol=1e-9, atol=1e-9)
        assert answer.equals(answers[0], exact=True), f"{answer} and {answers[0]}"


MODULES = {
    "regression": (
        torch.nn.Linear(4, 3),
        torch.nn.functional.mse_loss,
        "mean((x @ weight' + bias - y)^2)",
        "f = x @ weight' + bias; l = mean((f - y)^2)",
        "weight",
    ),
    "network": (
        torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)),
        torch.nn.functional.mse_loss,
        "mean((tanh(x @ weight_0' + bias_0) @ weight_2' + bias_2 - y)^2)",
        "z = x @ weight_0' + bias_0; h = tanh(z); f = h @ weight_2' + bias_2; l = mean((f - y)^2)",
        "weight_0",
    ),
    "classes": (
        torch.nn.Linear(4, 3, bias=False),
        torch.nn.functional.cross_entropy,
        "-sum(y * log_softmax(x @ weight')) / 2",
        "f = x @ weight'; l = -sum(y * log_softmax(f)) / 2",
        "weight",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_its_formula(name: str) -> None:
    model, loss, formula, assignments, wrt = MODULES[name]
    model, batch = model.double(), (torch.randn(2, 4).double(), torch.rand(2, 3).double())
    shapes = {n.replace(".", "_") if "." in n else n: tuple(p.shape) for n, p in model.named_parameters()}
    shapes = {"_".join(reversed(n.split("_"))): s for n, s in shapes.items()} | {"x": (2, 4), "y": (2, 3)}
    truth = cr.derive(formula, shapes=shapes, wrt=wrt, mode="direct")[wrt]
    for mode in ("direct", "forward", "reverse", "best"):
        for text in (formula, assignments):
            assert cr.derive(text, shapes=shapes, wrt=wrt, mode=mode)[wrt].equals(truth, exact=True)
        assert cr.derive(model, batch, loss, wrt=wrt, mode=mode)[wrt].equals(truth, exact=True), mode
