"""Tables of claims: every row by itself, broken ones with their line, totals and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from chainrule.cli import cli
from chainrule.errors import FormulaError
from chainrule.verbs.grade import grade

TABLE = """\
student,formula,wrt,shapes,claim
Ada,y = x^2,x,,2*x
Bo,y = x^2,x,,x
Cy,sum((A @ x - b)^2),x,"A=m,n; x=n; b=m",2 * A' @ (A @ x - b)

Di,sum((A @ x - b)^2),x,"A=m,n; x=n; b=m",\\mathbf{A}^T(\\mathbf{A}\\mathbf{x} - \\mathbf{b})
Ed,y = x^2,x,,2*
Flo,y = x^2,x
Gus,y = x^2,x,,2*x,too,many
Hal,"f1 = exp(x)
y = f1^2",x,,2*f1*exp(x)
Ida,y = x^2,q,,1
"""


def test_every_row_has_a_verdict():
    graded = grade(TABLE)
    assert [(r.line, r.name, r.verdict) for r in graded.rows] == [
        (2, "Ada", "right"),
        (3, "Bo", "wrong"),
        (4, "Cy", "right"),
        (6, "Di", "wrong"),
        (7, "Ed", "broken"),
        (8, "Flo", "broken"),
        (9, "", "broken"),
        (10, "Hal", "right"),
        (12, "Ida", "broken"),
    ]
    assert graded.total == "9 answers: 3 right, 2 wrong, 4 broken"
    assert "missing factor 2" in graded.rows[1].comment and "missing factor 2" in graded.rows[3].comment
    assert "'claim' is empty" in graded.rows[5].comment and "7 cells where the header has 5" in graded.rows[6].comment


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_options_and_marks(delimiter: str):
    rows = [["formula", "wrt", "claim", "layout", "order"], ["y = x^3", "x", "6*x", "", "2"]]
    graded = grade("\ufeff" + "\r\n".join(delimiter.join(r) for r in rows))
    assert [r.verdict for r in graded.rows] == ["right"]
    assert grade("formula,wrt,claim,order\ny = x,x,1,two").rows[0].verdict == "broken"


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2", "formula,wrt\ny = x,x", "formula,wrt,claim,points\n", "wrt,wrt,formula,claim"]
)
def test_a_table_without_its_columns_is_refused(text: str):
    with pytest.raises(FormulaError, match="the table of answers has"):
        grade(text)


@pytest.mark.parametrize(
    "rows, code",
    [("y = x^2,x,2*x", 0), ("y = x^2,x,2*x\ny = x^2,x,x", 1), ("y = x^2,x,x\ny = x^2,x,(", 2), ("", 0)],
)
def test_exit_codes(tmp_path: Path, rows: str, code: int):
    path = tmp_path / "answers.csv"
    path.write_text(f"formula,wrt,claim\n{rows}\n", encoding="utf-8")
    result = CliRunner().invoke(cli, ["check", "--answers", str(path)])
    assert result.exit_code == code, result.output
    assert result.output.splitlines()[-1].startswith(f"{rows.count('x^2')} answers")


def test_json_and_stdin():
    result = CliRunner().invoke(cli, ["check", "--answers", "-", "--json"], input=TABLE)
    data = json.loads(result.stdout)
    assert result.exit_code == 2
    assert (data["schema"], data["answers"], data["right"], data["wrong"], data["broken"]) == (
        "chainrule.grades/1",
        9,
        3,
        2,
        4,
    )
    assert data["rows"][1]["check"]["slip_kind"] == "missing factor" and data["rows"][4]["check"] is None


def test_answers_go_with_nothing_else():
    for extra in (["y = x"], ["--wrt", "x"], ["--claim", "1"], ["--shape", "x=n"]):
        result = CliRunner().invoke(cli, ["check", "--answers", "-", *extra], input=TABLE)
        assert result.exit_code == 2 and "--answers" in result.output
    result = CliRunner().invoke(cli, ["check", "--answers", "no-such-file.csv"])
    assert result.exit_code == 2
