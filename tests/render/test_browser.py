"""The page in a real browser: no errors, nothing loaded, hover and keyboard, light and dark, a phone, hostile names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import chainrule as cr

from .chromium import Browser, found

pytestmark = pytest.mark.skipif(found() is None, reason="there is no Chromium here (apt-get install chromium)")

EVIL = "<script>window.pwned = 1</script><img src=x onerror=window.pwned=1>"
SECTIONS = ("diagnosis", "chain", "equations", "start", "memory", "training", "missing")
SHOWN = "[...document.querySelectorAll('.card')].filter(c => getComputedStyle(c).display == 'block').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    return cr.report(cr.examples.figure_7_8(), path=path, fit=100)


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cr.report(cr.examples.fifty_layers(), path=tmp_path_factory.mktemp("rolled") / "fifty.html", seeds=2)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1000, 375])
def test_a_page_opens(browser: Browser, page: Path, rolled: Path, width: int, dark: bool) -> None:
    for path in (page, rolled):
        tab = browser.open(path, width=width, dark=dark)
        assert tab.complaints() == []
        missing = "training" if path is rolled else ""
        for section in SECTIONS:
            height = tab.evaluate(f"document.getElementById('{section}')?.getBoundingClientRect().height ?? 0")
            assert section == missing or height > 20, section
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0  # nothing sticks out sideways: what is wide scrolls by itself
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = (int(c) for c in paper.removeprefix("rgb(").removesuffix(")").split(","))
        assert (red + green + blue < 150) if dark else (red + green + blue > 700)


def test_equations_are_mathematics(browser: Browser, page: Path) -> None:
    tab = browser.open(page)
    spaces = tab.evaluate("[...new Set([...document.querySelectorAll('math')].map(m => m.namespaceURI))]")
    assert spaces == ["http://www.w3.org/1998/Math/MathML"]
    assert tab.evaluate("document.querySelectorAll('.link math mfrac').length") >= 6
    assert tab.evaluate("document.querySelector('.link math').getBoundingClientRect().width") > 30


def test_the_verdict_is_first(browser: Browser, rolled: Path) -> None:
    tab = browser.open(rolled)
    top = "document.querySelector('.verdict').getBoundingClientRect().top"
    assert tab.evaluate(top) < tab.evaluate("document.querySelector('#chain').getBoundingClientRect().top")
    assert "vanishes" in tab.evaluate("document.querySelector('.verdict').innerText")
    assert tab.evaluate(top) < 400
    links = tab.evaluate("[...document.querySelectorAll('.answer a')].map(a => a.getAttribute('href').slice(1))")
    assert len(links) == 5 and all(tab.evaluate(f"!!document.getElementById('{link}')") for link in links)


@pytest.mark.parametrize("width", [1440, 1000])
def test_hovering_shows_what_is_known(browser: Browser, page: Path, width: int) -> None:
    tab = browser.open(page, width=width)
    assert tab.evaluate(SHOWN) == 0
    tab.hover(".link summary", 1)
    assert tab.evaluate(SHOWN) == 1
    said = tab.evaluate("[...document.querySelectorAll('.card')].find(c => c.offsetParent).innerText")
    for part in ("dloss/dh_3 = (dloss/df_4) @ weight_4", "gain, predicted", "mean square", "kept for the backward pass"):
        assert part in said, part
    box = tab.evaluate("(b => [b.left, b.right])([...document.querySelectorAll('.card')]"
                       ".find(c => c.offsetParent).getBoundingClientRect())")  # fmt: skip
    assert 0 <= box[0] < box[1] <= width
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    assert tab.evaluate(SHOWN) == 0


@pytest.mark.parametrize("width", [1440, 375])
def test_the_keyboard_opens_a_row(browser: Browser, page: Path, width: int) -> None:
    tab = browser.open(page, width=width)
    for _ in range(40):
        tab.press("Tab", 9)
        if tab.evaluate("document.activeElement.matches('.link summary')"):
            break
    assert tab.evaluate("document.activeElement.matches('.link summary')")
    tab.press("Enter", 13, "\r")
    assert tab.evaluate("document.activeElement.parentElement.open") and tab.evaluate(SHOWN) == 1
    tab.press("Enter", 13, "\r")
    assert tab.evaluate(SHOWN) == 0


def test_blocks_that_repeat_are_one(browser: Browser, rolled: Path) -> None:
    tab = browser.open(rolled)
    assert tab.evaluate("document.querySelectorAll('.group.repeats').length") == 1
    assert tab.evaluate("document.querySelectorAll('.link').length") < 12
    assert tab.evaluate("document.querySelectorAll('.members tbody tr').length") > 90
    assert "for k = 9" in tab.evaluate("document.querySelector('.group.repeats header').innerText")


def test_hostile_names_are_text(browser: Browser, tmp_path: Path) -> None:
    class Hostile(nn.Sequential):
        pass

    Hostile.__name__ = EVIL
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Hostile()
        for k, layer in enumerate([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)]):
            model.add_module(f"{EVIL.replace('.', '')}{k}", layer)  # a module's name has no dots

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).square().mean()

    loss.__name__ = EVIL
    path = cr.report(model, (torch.ones(5, 3), torch.zeros(5, 2)), loss, path=tmp_path / "r.html", seeds=2,
                     facts=[(EVIL, EVIL)])  # fmt: skip
    tab = browser.open(path)
    assert tab.complaints() == []
    assert tab.evaluate("window.pwned") is None
    assert tab.evaluate("document.querySelectorAll('script, img, iframe, [onerror]').length") == 0
    assert tab.evaluate("document.querySelector('h1').textContent") == EVIL
    assert tab.evaluate("document.body.textContent").count("<script>") > 6
