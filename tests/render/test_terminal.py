"""Plain text: numbers, tables that fit, and a curve."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from chainrule.render.terminal import (
    can_draw,
    chain_table,
    clipped,
    columns_of,
    count,
    curve,
    gain,
    number,
    size,
    table,
    width,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0"),
        (1.0, "1.00"),
        (0.0672, "0.0672"),
        (0.98765, "0.988"),
        (-12.34, "-12.3"),
        (999.4, "999"),
        (1234.5, "1.23e+03"),
        (1e-9, "1e-09"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_count_and_size() -> None:
    assert [count(v) for v in (0, 16000, 12e9, None)] == ["0", "16,000", "1.2e+10", "-"]
    assert count(SimpleNamespace()) == str(SimpleNamespace())  # a symbolic count is shown as it is
    assert [size(v) for v in (0, 999, 1600, 1e6, 3.2e15, None)] == ["0 B", "999 B", "1.6 kB", "1 MB", "3.2e+03 TB", "-"]


@pytest.mark.parametrize(
    ("predicted", "measured", "error", "shown"),
    [
        (None, None, None, "-"),
        (1.5, None, None, "1.50 / -"),
        (None, 2.0, 0.25, "- / 2.00 ± 0.25"),
        (1.0, 0.98, 0.0, "1.00 / 0.980"),
        (1.0, 0.98, float("nan"), "1.00 / 0.980"),
    ],
)
def test_gain(predicted: float | None, measured: float | None, error: float | None, shown: str) -> None:
    link = SimpleNamespace(gain_predicted=predicted, gain_measured=measured, gain_error=error)
    assert gain(link) == shown  # type: ignore[arg-type]


def test_clipped_is_one_printable_line() -> None:
    assert clipped("a\n  b\tc\x1b[31m", 80) == "a b c\N{REPLACEMENT CHARACTER}[31m"
    assert clipped("日本語日本語", 7) == "日本語…"
    assert columns_of("日本e\u0301") == 5


def test_a_table_fits_and_stays_aligned() -> None:
    rows = [("block.0 Linear(512, 512)", "x" * 90, "512 x 512"), ("日本", "y", "1")]
    lines = table(("layer", "factor", "shape"), rows, most=60)
    assert {columns_of(line) for line in lines[:2]} <= set(range(61))
    assert "…" in lines[1]
    starts = [columns_of(line[: line.rindex(last)]) for line, last in zip(lines, ("shape", "512 x", "1"), strict=True)]
    assert len(set(starts)) == 1


def test_columns_without_content_are_left_out() -> None:
    link = {"layer": "l", "factor": "dl/dx = 1", "shape": (), "gain_predicted": None, "gain_measured": None}
    link |= {"gain_error": None, "bytes": None, "multiplications": 3, "finding": ""}
    chain = SimpleNamespace(links=[SimpleNamespace(**link)])
    assert chain_table(chain)[0].split() == ["layer", "factor", "shape", "mults"]  # type: ignore[arg-type]
    found = SimpleNamespace(links=[SimpleNamespace(**link | {"finding": "vanishing"})])
    assert chain_table(found)[1].endswith("vanishing")  # type: ignore[arg-type]


def test_width(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, used in (("80", 80), ("300", 110), ("0", 110)):
        monkeypatch.setenv("COLUMNS", columns)
        assert width() == used


def test_curve() -> None:
    lines = curve([100.0 * 0.9**k for k in range(100)], columns=40, lines=4)
    assert [line.split()[0] for line in (lines[0], lines[-1])] == ["100", "0.00295"]
    margin = lines[0].index("▇")
    heights = [sum(len(line) > k for line in lines) for k in range(margin, margin + 40)]
    assert heights == sorted(heights, reverse=True) and {heights[0], heights[-1]} == {4, 1}
    assert "#" in curve([3, 2, 1], blocks=False)[-1]


@pytest.mark.parametrize("values", [[], [float("nan")], [0.0, -1.0]])
def test_a_curve_of_nothing(values: list[float]) -> None:
    assert curve(values) == []


def test_a_curve_with_gaps_and_a_flat_one() -> None:
    assert curve([1.0, float("inf"), 1.0], lines=1) == [" 1 ▁ ▁"]
    assert all(len(line) < 80 for line in curve([2.0] * 500))


def test_block_characters_need_an_encoding() -> None:
    assert can_draw("utf-8") and not can_draw("ascii") and not can_draw(None) and not can_draw("no such")
