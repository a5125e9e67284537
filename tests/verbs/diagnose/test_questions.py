"""Programs of people who asked why their network does not train: the cause that the answers name is named."""

from __future__ import annotations

import pytest

from benchmarks.fault_cases.questions import TABLE, named
from benchmarks.fault_cases.table import Size
from benchmarks.faults import examined

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")


@pytest.mark.parametrize("name", TABLE.faults)
def test_question(name: str) -> None:
    row = TABLE.faults[name]
    assert row.manifests(row.build(Size(1)))
    result = examined(row.build(Size(1)))
    assert named(row, result) == (True, True), str(result)
