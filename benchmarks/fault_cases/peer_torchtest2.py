"""torchtest2 on rows of the table, run by ``benchmarks.faults --peer PYTHON`` in an environment of its own.

Prints one JSON object: row -> names of the checks that failed or warned, overfit_batch among them.
"""

import json
import os
import sys
import warnings

sys.path.insert(0, os.getcwd())
warnings.simplefilter("ignore")

import torch  # noqa: E402
import torchtest2  # noqa: E402

from benchmarks.fault_cases.sound import TABLE  # noqa: E402
from benchmarks.fault_cases.table import Size  # noqa: E402


def checked(setup):
    """The checks that found something."""
    inputs, targets = setup.batch
    try:
        report = torchtest2.check_model(setup.model, inputs, targets, loss_fn=setup.loss, optimizer=setup.optimizer)
    except Exception as error:
        return [f"raised {type(error).__name__}"]
    return [r.name for r in report.results if r.status.name in ("FAIL", "WARN")]


def main():
    """All rows that are named."""
    torch.set_num_threads(1)
    rows = {}
    for name in sys.argv[1:]:
        row = TABLE.faults.get(name) or TABLE.sound[name]
        rows[name] = checked(row.build(Size(0)))
    print(json.dumps(rows))


main()
