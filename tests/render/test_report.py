"""The page: whole, self-contained, and made of escaped names."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import chainrule as cr
from benchmarks.fault_cases.faulty import TABLE as FAULTS
from benchmarks.fault_cases.table import Size
from chainrule.errors import ChainruleError, MissingExtraError, ModelError

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "link", "img", "br", "hr", "input", "mspace"}


class Page(HTMLParser):
    """Collects what a browser would run or load, and fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def case(model: nn.Module, inputs: int = 3, outputs: int = 2) -> cr.verbs.case.Case:  # type: ignore[name-defined]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, inputs, generator=generator), torch.randn(8, outputs, generator=generator)
    return cr.case(model, (x, y), nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), data=(x, y), epochs=12)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    subject = case(network())
    result = cr.fit(case(network()))
    assert cr.report(subject, path=path, fit=result, facts=[("a fact", "of <b>ours</b>")]) == path
    return path.read_text(encoding="utf-8")


def test_nothing_is_loaded_or_run(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert value.startswith("#"), (name, value)
    assert "://" not in text and "@import" not in text
    assert set(re.findall(r"url\(\s*['\"]?(.)", text)) <= {"#"}
    policy = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_references_lead_somewhere_and_ids_are_unique(text: str) -> None:
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    used = {v[1:] for n, v in page.attributes if n == "href"} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used - {"training"} <= set(page.ids)  # training is there with --fit


def test_everything_is_there(text: str) -> None:
    page = Page(text)
    shown = " ".join(page.text.split())
    for part in (
        "Nothing wrong found", "MSELoss", "Linear(4, 2)", "dloss/df_0 = dloss/dh_1 * [f_0 > 0]",
        "dloss/dweight_0 = (dloss/df_0)' @ x", "What is the gradient?", "Will it flow?", "Where should it start?",
        "Can I afford the backward pass?", "Does it train?", "predicted", "measured", "nine draws of ten",
        "12 steps with the native back end", "SGD, learning rate 0.1", "of <b>ours</b>", f"torch {torch.__version__}",
    ):  # fmt: skip
        assert part in shown, part
    # moments both ways, the start both ways, memory and its price, training
    assert page.tags.count("figure") >= 6 and page.tags.count("math") >= 10
    assert {"diagnosis", "chain", "equations", "start", "memory", "training", "missing"} <= set(page.ids)
    assert page.text.index("Nothing wrong found") < page.text.index("The chain")  # the verdict first
    assert not re.search(r"\bNone\b|\bnan\b", shown)


def test_without_training_there_is_no_curve(tmp_path: Path) -> None:
    page = Page(case(network()).report(tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "training" not in page.ids and "Not tried" in page.text


def test_names_are_escaped(tmp_path: Path) -> None:
    model = network()
    evil = nn.Module.__new__(type(EVIL, (nn.Sequential,), {}))
    nn.Sequential.__init__(evil)  # type: ignore[arg-type]
    for name, layer in zip([EVIL, '$x_1$ & "q"', "日本"], model, strict=True):
        evil.add_module(name, layer)
    page = Page(cr.report(case(evil), path=tmp_path / "r.html").read_text(encoding="utf-8"))  # type: ignore[arg-type]
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 3  # title, chain, moments
    assert '$x_1$ & "q"' in page.text and "日本" in page.text


def test_a_faulty_network(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    page = Page(case(model).report(tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "symmetric" in page.text and "Nothing wrong found" not in page.text
    assert "fix" in page.text


def test_a_cut_is_drawn_in_the_chain_where_it_is(tmp_path: Path) -> None:
    setup = FAULTS.faults["F26"].build(Size(0))
    page = cr.report(setup.model, setup.batch, setup.loss, setup.optimizer, path=tmp_path / "cut.html").read_text()
    drawn = re.findall(r'<p class="cut"[^>]*>([^<]*)</p>\s*<div class="link[^>]*>.*?<b>([^<]*)</b>', page, re.S)
    assert len(drawn) == 1 and "detach (faulty.py:" in drawn[0][0] and drawn[0][1] == "inward.4", drawn


def test_nan_in_the_batch(tmp_path: Path) -> None:
    broken = case(network())
    broken.batch[0][1, 2] = float("nan")
    page = Page(broken.report(tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "nonfinite at batch x[1, 2]" in " ".join(page.text.split())


def test_the_same_case_gives_the_same_page(tmp_path: Path) -> None:
    first, second = (case(network()).report(tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_model_batch_loss_in_place_of_a_case(tmp_path: Path) -> None:
    subject = case(network())
    path = cr.report(subject.model, subject.batch, subject.loss, path=str(tmp_path / "r.html"))
    assert path.is_file()


# ---- writing -----------------------------------------------------------------------------------------------
def test_a_page_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o640)
    case(network()).report(path)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(tmp_path.iterdir()) == [path, path.with_suffix(".json")]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chainrule.render.report.writing.os.replace", full)
    with pytest.raises(ChainruleError, match="No space left on device"):
        case(network()).report(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["absent/r.html", "."])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    with pytest.raises(ChainruleError, match="cannot write the page"):
        case(network()).report(tmp_path / place)
    assert not list(tmp_path.iterdir())


def test_a_report_needs_a_loss(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="without a loss"):
        cr.report(network(), torch.ones(4, 3), path=tmp_path / "r.html")


@pytest.mark.parametrize("package", ["jinja2"])
def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingExtraError, match=package) as error:
        case(network()).report(tmp_path / "r.html")
    assert 'pip install "chainrule[report]"' in str(error.value)


# ---- parts -------------------------------------------------------------------------------------------------
def test_the_data_are_beside_the_page(tmp_path: Path) -> None:
    path = cr.report(case(network()), path=tmp_path / "r.html", fit=5)
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert found["schema"] == "chainrule.report/1" and found["not_made"] == {}
    page = Page(path.read_text(encoding="utf-8"))
    for link in found["chain"]["links"]:
        assert link["factor"] in page.text
    assert len(found["fit"]["step_loss"]) == 5 and found["diagnose"]["ok"]
    assert found["plan"]["baseline_bytes"] > 0 and len(found["initialize"]["parameters"]) == 4
    assert [s["name"] for s in found["derive"]["forward"]][-1] == "loss"


def test_data_of_somebody_else_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"layers": 3}', encoding="utf-8")
    with pytest.raises(ChainruleError, match="no report wrote it"):
        cr.report(case(network()), path=tmp_path / "model.html")
    assert [p.name for p in tmp_path.iterdir()] == ["model.json"]


def test_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chainrule.frontends.torch  # noqa: F401

    module = sys.modules["chainrule.frontends.torch.trace"]
    traced, original = [], module._traced
    monkeypatch.setattr(module, "_traced", lambda *a: traced.append(1) or original(*a))
    cr.report(case(network()), path=tmp_path / "r.html")
    assert len(traced) <= 2  # of the case; and of the model without its loss, which is what is planned


def test_nothing_changes(tmp_path: Path) -> None:
    subject = case(network())
    before = {n: t.clone() for n, t in subject.model.state_dict().items()}
    state = torch.get_rng_state()
    cr.report(subject, path=tmp_path / "r.html", fit=7)
    assert all(torch.equal(t, before[n]) for n, t in subject.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and not subject.optimizer.state
    assert all(p.grad is None for p in subject.model.parameters())


def test_a_line_per_part(tmp_path: Path) -> None:
    lines: list[str] = []
    cr.report(case(network()), path=tmp_path / "r.html", fit=3, progress=lines.append)
    assert [line.split()[0] for line in lines] == [
        "trace", "derive", "moments", "diagnose", "chain", "initialize", "plan", "fit"
    ]  # fmt: skip


def test_what_cannot_be_made_is_listed(tmp_path: Path) -> None:
    class Sorted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Sorted.apply(self.fc(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
    path = cr.report(model, (torch.ones(4, 3), torch.zeros(4, 2)), nn.MSELoss(), path=tmp_path / "r.html", fit=3)
    page = Page(path.read_text(encoding="utf-8"))
    missing = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["not_made"]
    assert "fit" in missing and "optimizer" in missing["fit"]
    for part, reason in missing.items():
        assert part in page.text and reason in page.text, part


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


def test_equal_blocks_are_rolled_up(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {}
        for depth in (6, 24):
            model = nn.Sequential(*(Residual() for _ in range(depth)), nn.Linear(8, 4))
            batch = torch.randn(2, 5, 8), torch.randn(2, 5, 4)
            path = cr.report(model, batch, nn.MSELoss(), path=tmp_path / f"{depth}.html", seeds=0)
            sizes[depth] = path.read_text(encoding="utf-8")
    page = Page(sizes[24])
    assert "blocks alike" in page.text and "for k = " in page.text
    assert len(sizes[24]) < 2 * len(sizes[6])  # the charts and the list of all factors grow


@pytest.mark.parametrize("cause", ["objective", "dict", "two inputs", "frozen", "double", "lambda"])
def test_other_ways_to_say_it(tmp_path: Path, cause: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return self.a(x) * torch.sigmoid(self.b(z))

    x, y = torch.ones(4, 3), torch.zeros(4, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = Two() if cause in ("dict", "two inputs") else network()
    given: dict[str, object] = {"loss": nn.MSELoss(), "batch": (x, y)}
    if cause == "objective":
        given = {"batch": x, "objective": lambda model, batch: model(batch).square().mean()}
    elif cause == "dict":
        given["batch"] = ({"x": x, "z": x}, y)
    elif cause == "two inputs":
        given["batch"] = ((x, x), y)
    elif cause == "frozen":
        model.requires_grad_(False)
    elif cause == "double":
        model.double()
        given["batch"] = (x.double(), y.double())
    elif cause == "lambda":
        given["loss"] = lambda output, target: (output - target).abs().mean()
    path = cr.report(model, path=tmp_path / "r.html", seeds=2, **given)
    Page(path.read_text(encoding="utf-8"))
    reasons = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["not_made"]
    assert not [r for r in reasons.values() if "internal error" in r]
    assert cause == "frozen" or not reasons
