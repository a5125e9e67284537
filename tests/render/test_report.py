"""The page: whole, self-contained, and made of escaped names."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import chainrule as cr
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
    assert used <= set(page.ids)


def test_everything_is_there(text: str) -> None:
    page = Page(text)
    shown = " ".join(page.text.split())
    for part in (
        "Nothing wrong found", "MSELoss", "2 Linear(4, 2)", "dloss/df_0 = dloss/dh_1 * [f_0 > 0]",
        "dloss/dweight_0 = (dloss/df_0)' @ x", "Will it flow?", "predicted", "measured", "nine draws of ten",
        "at epoch 1,", "at epoch 12", "SGD, learning rate 0.1", "of <b>ours</b>", f"torch {torch.__version__}",
    ):  # fmt: skip
        assert part in shown, part
    assert page.tags.count("figure") == 3 and page.tags.count("math") >= 10
    assert not re.search(r"\bNone\b|\bnan\b", shown)


def test_without_training_there_is_no_curve(tmp_path: Path) -> None:
    page = Page(case(network()).report(tmp_path / "r.html").read_text(encoding="utf-8"))
    assert page.tags.count("figure") == 2 and "Training" not in page.text


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
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    path.write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chainrule.render.report.os.replace", full)
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


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingExtraError, match=package) as error:
        case(network()).report(tmp_path / "r.html")
    assert 'pip install "chainrule[report]"' in str(error.value)
