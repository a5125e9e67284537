"""The command line: what is printed, on which stream, with which exit code, for good and for bad input.

Most calls run in this process, through ``main`` itself; what depends on a process of its own (stdin, signals, pipes,
what is imported) runs in one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chainrule.cli import cli

ROOT = Path(__file__).resolve().parent.parent
SIX = "f1 = exp(x); f2 = f1^2; f3 = f1 + f2; f4 = exp(f3); f5 = sin(f3); y = f4 + f5"

MODELS = """
import torch
from torch import nn

import chainrule as cr

print("the file's own output")


def parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x, y = torch.randn(20, 3), torch.randn(20, 2)
    return {"model": model, "batch": (x, y), "loss": nn.MSELoss(),
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

def build():
    return parts()

def as_case():
    return cr.case(**parts())

def with_data():
    given = parts()
    return given | {"data": given["batch"], "epochs": 4}

def zeros():
    given = parts()
    with torch.no_grad():
        for parameter in given["model"].parameters():
            parameter.zero_()
    return given

def nan_batch():
    given = parts()
    given["batch"][0][3, 1] = float("nan")
    return given

def other_width():
    return parts() | {"batch": (torch.ones(5, 7), torch.ones(5, 2))}

def no_loss():
    given = parts()
    return {"model": given["model"], "batch": given["batch"][0]}

def returns_nothing():
    parts()

def returns_model():
    return parts()["model"]

def needs(width):
    return parts()

def wrong_key():
    given = parts()
    given["los"] = given.pop("loss")
    return given

def no_keys():
    return {}

async def later():
    return parts()

not_a_function = 3
"""

FILES = {
    "model.py": MODELS,
    "raises.py": "def build():\n    return helper()\n\ndef helper():\n    return {}['weights']\n",
    "raises_early.py": "x = 1\ny = 1 / 0\n",
    "syntax.py": "def build(:\n    pass\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "imports.py": "import no_such_package\n",
    "package/__init__.py": "",
    "package/zoo.py": "from model import build\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls the command line in ``folder``; what it does to sys.path and sys.modules is undone."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)

    def call(*arguments: str, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(cli, arguments, input=stdin, prog_name="chainrule")
        for name in {Path(f).stem for f in FILES} - known:
            sys.modules.pop(name, None)
        return result

    return call


def process(
    *arguments: str, cwd: Path, stdin: str | bytes = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chainrule", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        input=stdin if isinstance(stdin, str) else stdin.decode("utf-8", "surrogateescape"),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
    )


def squeeze(text: str) -> str:
    return "".join(text.split())


# ---- formulas ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("formula", [SIX, SIX.replace("; ", "\n"), SIX.replace("exp(x)", "exp[x]")])
def test_derive(run, formula: str) -> None:
    result = run("derive", formula, "--wrt", "x")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("dy/df3 = dy/df5 * df5/df3 + dy/df4 * df4/df3 = ") for line in lines)
    assert [line.split(" ")[0] for line in lines if line.startswith("dy/d")] == [
        "dy/df5", "dy/df4", "dy/df3", "dy/df2", "dy/df1", "dy/dx",
    ]  # fmt: skip
    assert not result.stderr


def test_derive_forward(run) -> None:
    result = run("derive", SIX, "--wrt", "x", "--mode", "forward")
    found = [line.split(" ")[0] for line in result.stdout.splitlines() if line.startswith("d")]
    assert found == ["df1/dx", "df2/dx", "df3/dx", "df4/dx", "df5/dx", "dy/dx"]


def test_derive_options_reach_the_verb(run) -> None:
    shapes = ("--shape", "x=n", "--shape", "A=n,n")
    assert "A + A'" in run("derive", "f = x' @ A @ x", *shapes, "--wrt", "x", "--order", "2").stdout
    product = ("derive", "f = b + W @ h", "--shape", "b=m", "--shape", "W=m,n", "--shape", "h=n")
    assert "g @ h'" in run(*product, "--wrt", "W", "--cotangent", "g").stdout
    assert "= W'" in run(*product, "--wrt", "h").stdout
    assert "= W\n" in run(*product, "--wrt", "h", "--layout", "numerator").stdout


def test_derive_json(run) -> None:
    result = run("derive", SIX, "--wrt", "x", "--json")
    data = json.loads(result.stdout)
    assert data["schema"] == "chainrule.derive/1"
    (step,) = [s for s in data["steps"] if s["wrt"] == "f3"]
    assert len(step["terms"]) == 2
    assert step["terms"][0][1] == {"symbol": "df5/df3", "expression": "cos(f3)", "shape": []}


def test_derive_code_is_a_file_that_checks_itself(run) -> None:
    shapes = ("--shape", "X=m,n", "--shape", "w=n", "--shape", "y=m")
    printed = run("derive", "norm(X @ w - y)^2", *shapes, "--wrt", "w", "--code", "numpy").stdout
    done = subprocess.run([sys.executable, "-I", "-c", printed], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("ok: gradient by w") and done.returncode == 0
    assert run("derive", "x^2", "--wrt", "x", "--code", "fortran").exit_code == 2
    assert run("derive", "x^2", "--wrt", "x", "--code", "numpy", "--json").exit_code == 2


def test_derive_latex(run) -> None:
    printed = run("derive", SIX, "--wrt", "x", "--latex").stdout
    assert printed.startswith(r"\begin{aligned}")
    assert r"\frac{\partial y}{\partial f_{3}}" in printed


@pytest.mark.parametrize("text", ["y = x^2\n", "\ufeffy = x^2\r\n", "a = x\ny = a^2"])
def test_formula_from_stdin_and_file(run, folder: Path, text: str) -> None:
    (folder / "formula.txt").write_text(text, encoding="utf-8", newline="")
    for result in (
        run("derive", "-", "--wrt", "x", "--mode", "direct", stdin=text.encode()),
        run("derive", "--file", "formula.txt", "--wrt", "x", "--mode", "direct"),
    ):
        assert result.exit_code == 0, result.stderr
        assert "dy/dx=2*x" in squeeze(result.stdout)


def test_check(run) -> None:
    formula = ("check", "l = (f3 - y)^2", "--wrt", "f3", "--claim")
    right = run(*formula, "2*f3 - 2*y")
    assert (right.exit_code, right.stdout[:6]) == (0, "right:")
    wrong = run(*formula, "2*f3")
    assert wrong.exit_code == 1
    assert "2 * (f3 - y)" in wrong.stdout
    assert "difference:  2 * y" in wrong.stdout
    assert "instead of" in wrong.stdout


def test_check_json(run) -> None:
    result = run("check", "l = (f3 - y)^2", "--wrt", "f3", "--claim", "2*f3", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (data["schema"], data["holds"], data["correct"]) == ("chainrule.check/1", False, "2 * (f3 - y)")
    assert set(data["counterexample"]["at"]) == {"f3", "y"}


def test_check_of_a_backward(run, folder: Path) -> None:
    (folder / "kernels.py").write_text(
        "import torch\nprint('loud')\n\nclass Square(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        ctx.save_for_backward(x)\n        return x * x\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return -2 * g * ctx.saved_tensors[0]\n\n"
        "def fused(x):\n    return Square.apply(x)\n\ndef plain(x):\n    return x * x\n\n"
        "def inputs():\n    return torch.linspace(-2, 3, 12)\n"
    )
    result = run("check", "kernels.py:fused", "--reference", "kernels.py:plain", "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 1 and data["slip"] == "sign: the gradient has the wrong sign"
    assert run("check", "kernels.py:plain", "--reference", "kernels.py:plain", "--dtype", "bfloat16").exit_code == 0
    assert run("check", "kernels.py:fused", "--reference", "kernels.py:plain", "--wrt", "x").exit_code == 2


def test_activation(run, folder: Path) -> None:
    result = run("activation", "tanh")
    assert result.exit_code == 0 and "1 - h^2" in result.stdout
    (folder / "acts.py").write_text("import torch\nprint('loud')\n\ndef half(x):\n    return torch.relu(x) / 2\n")
    result = run("activation", "acts.py:half", "--json")
    data = json.loads(result.stdout)
    assert (data["schema"], data["sup_derivative"], data["derivative"]) == (
        "chainrule.activation/1",
        0.5,
        "[z > 0] / 2",
    )
    assert run("activation", "softmax").exit_code == 2


def test_moments(run) -> None:
    arguments = ("moments", "b = relu(a)", "--given", "a=symmetric(0, sigma^2)")
    result = run(*arguments)
    assert result.exit_code == 0
    assert "sigma^2 / 2" in result.stdout
    data = json.loads(run(*arguments, "--json").stdout)
    assert data["schema"] == "chainrule.moments/1"
    assert data["values"]["b"]["second"] == "sigma^2 / 2"


def test_chain_of_a_formula(run) -> None:
    result = run("chain", "f = w*x; h = sin(f); l = (h - y)^2", "--wrt", "x")
    assert result.exit_code == 0, result.stderr
    assert "dl/df = dl/dh * cos(f)" in result.stdout
    assert json.loads(run("chain", "y = sin(x)", "--json").stdout)["schema"] == "chainrule.chain/1"
    assert "B'" in run("chain", "z = B@x; l = sum(z^2)", "--shape", "B=m,n", "--shape", "x=n", "--wrt", "x").stdout


# ---- bad formulas ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["derive", "y = x +* 2"], "(line 1, column 8)\n    y = x +* 2\n           ^", id="caret"),
        pytest.param(["derive", "y = (x + 1"], "unbalanced '('", id="bracket"),
        pytest.param(["derive", ""], "an empty formula", id="empty"),
        pytest.param(["derive", " ; \n"], "an empty formula", id="blank"),
        pytest.param(["derive", "y = sigmod(x)"], "did you mean 'sigmoid'?", id="nearest"),
        pytest.param(["derive", "y = x / 0"], "division by zero (line 1, column 7)", id="zero"),
        pytest.param(["moments", "b = a / 0", "--given", "a=normal(0, 1)"], "division by zero", id="zero moments"),
        pytest.param(["check", "y = x / 0", "--wrt", "x", "--claim", "1"], "division by zero", id="zero check"),
        pytest.param(["derive", "y = 3"], "nothing to derive by", id="no variable"),
        pytest.param(["derive", "y = x", "--wrt", "z"], "one of x", id="unknown variable"),
        pytest.param(
            ["derive", "y = A @ B", "--shape", "A=m,n", "--shape", "B=k,l"], "A (m x n) and B (k x l)", id="shapes"
        ),
        pytest.param(["derive", "y = x^2", "--file", "f.txt"], "give a formula, -", id="two formulas"),
        pytest.param(["derive"], "give a formula, -", id="no formula"),
        pytest.param(["derive", "--file", "absent.txt"], "No such file", id="no file"),
        pytest.param(["derive", "--file", "."], "Is a directory", id="folder"),
        pytest.param(["derive", "y = x", "--shape", "x"], "--shape A=m,n", id="shape form"),
        pytest.param(["derive", "y = x", "--shape", "x=2", "--shape", "x=3"], "gives 'x' twice", id="shape twice"),
        pytest.param(["derive", "y = x", "--order", "4"], "1<=x<=3", id="order"),
        pytest.param(["derive", "y = x", "--mode", "up"], "'reverse'", id="mode"),
        pytest.param(["derive", "y = x", "--json", "--latex"], "not both", id="two forms"),
        pytest.param(["derive", "-x^2"], '"y = -x^2"', id="leading minus"),
        pytest.param(["check", "y = x", "--wrt", "x", "--claim", "2*/x"], "(line 1, column 3)", id="claim"),
        pytest.param(["check", "y = x", "--wrt", "x"], "Missing option '--claim'", id="no claim"),
        pytest.param(["moments", "b = relu(a)", "--given", "a=odd(1)"], "symmetric(0, sigma^2)", id="law"),
        pytest.param(["moments", "b = relu(a)", "--given", "c=normal(0, 1)"], "one of a", id="law of nothing"),
        pytest.param(["explain", "symetric"], "did you mean 'symmetric'?", id="explain"),
        pytest.param(["initialise", "model.py:build"], "No such command 'initialise'", id="no verb"),
        pytest.param(["--nope"], "No such option '--nope'", id="option"),
    ],
)
def test_bad_formulas(run, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr and "internal error" not in result.stderr


def test_stdin_that_is_no_text(run) -> None:
    result = run("derive", "-", stdin=b"y = x\xff^2")
    assert result.exit_code == 2
    assert "byte 5 is not UTF-8" in result.stderr


def test_ten_thousand_nested_parentheses(folder: Path) -> None:
    result = process("derive", "-", "--wrt", "x", cwd=folder, stdin="(" * 10_000 + "x" + ")" * 10_000)
    assert (result.returncode, result.stderr) == (0, "")
    assert "dy/dx = 1" in result.stdout
    result = process("derive", "-", "--wrt", "x", cwd=folder, stdin="(" * 10_000 + "x")
    assert result.returncode == 2
    assert len(result.stderr) < 1000 and "Traceback" not in result.stderr


# ---- models ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", ["model.py:build", "model.py:as_case", "package.zoo:build"])
def test_diagnose_nothing(run, target: str) -> None:
    result = run("diagnose", target)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("nothing wrong found")
    assert "the file's own output" in result.stderr  # and not among the results


def test_diagnose_a_fault(run) -> None:
    result = run("diagnose", "model.py:zeros")
    assert result.exit_code == 1
    assert "symmetric" in result.stdout
    data = json.loads(run("diagnose", "model.py:zeros", "--json", "--fail-on", "error").stdout)
    assert (data["schema"], data["ok"]) == ("chainrule.diagnose/1", False)
    assert data["findings"][0]["kind"] == "symmetric"


def test_nan_in_the_batch(run) -> None:
    result = run("diagnose", "model.py:nan_batch")
    assert result.exit_code == 1
    assert "nonfinite at batch x[3, 1]" in result.stdout
    for verb in ("moments", "chain", "derive"):
        result = run(verb, "model.py:nan_batch", "--json")
        assert result.exit_code == 0, result.stderr
        json.loads(result.stdout, parse_constant=pytest.fail)  # NaN is no JSON


def test_moments_of_a_model(run) -> None:
    result = run("moments", "model.py:build")
    assert result.exit_code == 0, result.stderr
    assert "Linear(3, 4)" in result.stdout
    assert len(json.loads(run("moments", "model.py:build", "--json").stdout)["rows"]) == 4


def test_initialize_shows_and_saves(run, folder: Path) -> None:
    result = run("initialize", "model.py:build", "--plot", "scale.png", "--save", "start.pt")
    assert result.exit_code == 0, result.output
    assert "0.weight" in result.stdout and "E[x^2] before" in result.stdout
    assert (folder / "scale.png").stat().st_size > 1000
    import torch

    saved = torch.load(folder / "start.pt", weights_only=True)
    assert not saved["0.bias"].any() and saved["0.weight"].any()
    shown = json.loads(run("initialize", "model.py:build", "--scheme", "he", "--json", "--only", "2").stdout)
    assert [p["rule"] for p in shown["parameters"]] == ["kept", "kept", "normal", "constant 0"] and not shown["applied"]
    wrong = run("initialize", "model.py:build", "--scheme", "hee")
    assert wrong.exit_code == 2 and "there is no scheme 'hee'" in wrong.stderr


def test_trainability(run) -> None:
    result = run("trainability", "relu", "--seeds", "1", "--steps", "2", "--deepest", "2")
    assert result.exit_code == 0 and "25 networks of relu" in result.stdout
    assert "no function of torch" in run("trainability", "z * z").stderr


def test_chain_of_a_model(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = run("chain", "model.py:build", "--seeds", "3")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split("  ")[0] == "layer" and "gain predicted / measured" in lines[0]
    assert any("dloss/df_0 = dloss/dh_1 * [f_0 > 0]" in line and " ± " in line for line in lines)
    assert max(map(len, lines)) <= 110
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run("chain", "model.py:build", "--seeds", "3").stdout.splitlines())) <= 80


def test_derive_of_a_model(run) -> None:
    result = run("derive", "model.py:build")
    assert result.exit_code == 0, result.stderr
    assert "dloss/dx = (dloss/df_0) @ weight_0" in result.stdout


def test_fit(run, folder: Path) -> None:
    result = run("fit", "model.py:with_data")
    assert result.exit_code == 0, result.stderr
    assert "at epoch 4" in result.stdout and "█" in result.stdout
    names = ["loss.png", "loss.svg", "model.pt"]
    assert sorted(p.name for p in (folder / "chainrule-fit").iterdir()) == names
    assert all(str(Path("chainrule-fit", name)) in result.stderr for name in names)
    assert "<svg" in (folder / "chainrule-fit/loss.svg").read_text(encoding="utf-8")
    assert (folder / "chainrule-fit/loss.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads(run("fit", "model.py:with_data", "--epochs", "2", "--json").stdout)
    assert len(data["loss"]) == 2 and data["schema"] == "chainrule.fit/1"
    for epochs in ("2", "4"):  # goes on after two of four epochs
        resumed = run("fit", "model.py:with_data", "--epochs", epochs, "--save-dir", "run", "--resume", "--json")
        assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["resumed"] == 2
    refused = run("fit", "model.py:with_data", "--save-dir", "run")
    assert refused.exit_code == 2 and "resume" in refused.stderr
    blocked = run("fit", "model.py:with_data", "--path", "model.py")
    assert blocked.exit_code == 2 and "cannot be written" in blocked.stderr


def test_report(run, folder: Path) -> None:
    result = run("report", "model.py:build", "--path", "page.html")
    assert (result.exit_code, result.stdout) == (0, "page.html\n"), result.stderr
    assert (folder / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("verb", "target", "said"),
    [
        ("diagnose", "absent.py:build", "there is no file absent.py"),
        ("diagnose", "modle.py:build", "model.py"),
        ("diagnose", "model.py", "model.py:build"),
        ("derive", "model.py", "before its first optimizer step"),
        ("diagnose", "model.py:biuld", "instead:  model.py:build"),
        ("diagnose", "model.py:not_a_function", "given:    int"),
        ("diagnose", "model.py:needs", "given:    needs(width)"),
        ("diagnose", "model.py:returns_nothing", "None (is there a return?)"),
        ("diagnose", "model.py:returns_model", "given:    a Sequential"),
        ("diagnose", "model.py:later", "a coroutine"),
        ("diagnose", "model.py:wrong_key", "the key 'loss'"),
        ("diagnose", "model.py:no_keys", "without 'model' and 'batch'"),
        ("diagnose", "model.py:no_loss", "needs a loss"),
        ("diagnose", "model.py:other_width", "(5x7 and 3x4)"),
        ("report", "model.py:no_loss", "without a loss"),
        ("report", "model.py:build --path absent/page.html", "cannot write the page absent/page.html"),
        ("fit", "model.py:build", "data, epochs missing"),
        ("diagnose", "raises.py:build", "raised KeyError: 'weights'\n  given:    line 5"),
        ("diagnose", "raises_early.py:build", "ZeroDivisionError: division by zero\n  given:    line 2"),
        ("diagnose", "syntax.py:build", "SyntaxError"),
        ("diagnose", "exits.py:build", '__name__ == "__main__"'),
        ("diagnose", "imports.py:build", "the package no_such_package"),
        ("diagnose", "no_such_package.zoo:build", "there is no module 'no_such_package'"),
        ("moments", "model.py:build --given a=normal(0,1)", "--given and --shape are for formulas"),
    ],
)
def test_bad_targets(run, verb: str, target: str, said: str) -> None:
    result = run(verb, *target.split(" "))
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr and "internal error" not in result.stderr


def test_debug_shows_the_users_traceback(run) -> None:
    result = run("diagnose", "raises.py:build", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr and "raises.py" in result.stderr and "in helper" in result.stderr


# ---- ends --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ZeroDivisionError("of ours"), 2, "internal error: ZeroDivisionError: of ours (run with --debug)"),
        (MemoryError(), 2, "out of memory"),
        (RecursionError("deep"), 2, "nested too deeply"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_nobody_expected(run, monkeypatch, error: BaseException, code: int, said: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("chainrule.verbs.derive.derive", fail)
    result = run("derive", "y = x")
    assert result.exit_code == code
    assert said in result.stderr and "Traceback" not in result.stderr
    assert "Traceback" in run("--debug", "derive", "y = x").stderr or code == 130


def test_alone_it_shows_examples_that_run(run) -> None:
    import shlex

    result = run()
    assert result.exit_code == 0
    examples = [line.strip() for line in result.stdout.splitlines() if line.startswith("  chainrule")]
    assert len(examples) == 3
    for example in examples[:2]:
        assert run(*shlex.split(example)[1:]).exit_code in (0, 1)
    assert examples[2] == "chainrule demo"


def test_help_and_version(run) -> None:
    import chainrule

    for command in (
        "derive",
        "check",
        "activation",
        "moments",
        "chain",
        "diagnose",
        "explain",
        "fit",
        "report",
        "demo",
    ):
        assert command in run("--help").stdout
        assert run(command, "--help").exit_code == 0
    assert run("--version").stdout == f"chainrule {chainrule.__version__}\n"


def test_explain(run) -> None:
    kinds = run("explain").stdout.split()
    assert "symmetric" in kinds
    for kind in kinds:
        assert run("explain", kind).stdout.startswith(f"{kind}\n")


def test_a_pipe_that_closes_early(folder: Path) -> None:
    command = f"{sys.executable} -m chainrule derive '{SIX}' --wrt x | head -1"
    shell = ["bash", "-o", "pipefail", "-c", command]
    result = subprocess.run(
        shell, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", r"2 * \u03b2"), ("utf-8", "2 * β")])
def test_a_terminal_without_greek_letters(folder: Path, encoding: str, shown: str) -> None:
    result = process("derive", "y = β^2", "--wrt", "β", cwd=folder, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, "")
    assert shown in result.stdout
    result = process("derive", "y = β^2", "--wrt", "β", "--json", cwd=folder, PYTHONIOENCODING=encoding)
    assert json.loads(result.stdout)["wrt"] == ["β"]


def test_nothing_is_coloured_without_a_terminal(folder: Path) -> None:
    result = process("diagnose", "model.py:zeros", cwd=folder, FORCE_COLOR="")
    assert "\x1b" not in result.stdout + result.stderr


# ---- the demonstration -------------------------------------------------------------------------------------
def test_demo(folder: Path) -> None:
    result = process("demo", "--path", "fifty.html", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 120
    assert "gradient by 0.40" in result.stdout and "vanishing" in result.stdout
    before, after = next(line.split()[1:] for line in lines if line.startswith("   0 ") and "Linear" not in line)
    assert float(before) < 1e-30 < 1e-6 < float(after)
    planned = next(line for line in lines if "every tenth" in line), next(line for line in lines if "optimal" in line)
    by_hand, optimal = (float(line.split()[-2]) for line in planned)
    assert 0 < optimal <= by_hand
    last = next(line.split() for line in lines if line.startswith("     100 "))
    assert float(last[2]) > 0.9 and float(last[4]) < 1e-4
    assert lines[-1].endswith("fifty.html") and (folder / "fifty.json").is_file()


def test_demo_of_figure_7_8(folder: Path) -> None:
    result = process("demo", "--figure-7-8", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 120
    rows = [line for line in lines if " ± " in line and "dloss/d" in line]
    assert len(rows) == 6  # loss, three linear layers, two ReLUs
    assert sum("dloss/dweight" in line or "dloss/dbias" in line for line in lines) == 6
    assert "nothing wrong found" in result.stdout and "symmetric" in result.stdout
    assert "at epoch 1," in result.stdout and "at epoch 10," in result.stdout and "at epoch 100 " in result.stdout
    assert lines[-1].endswith("chainrule-report.html")
    assert (folder / "chainrule-report.html").is_file()
