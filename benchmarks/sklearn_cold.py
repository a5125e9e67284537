"""The first fit of a process, nothing compiled before: ``chainrule.sklearn`` against scikit-learn's own estimators.

    python -m benchmarks.sklearn_cold [rounds] [case ...]

Every fit has a process of its own and an empty cache of compiled code; one thread; the two take turns, the best of the
rounds counts. Milliseconds of ``fit``, of the process's processor time (compiling beside the run included) and by the
clock, and of the first ``predict``. Importing is not in them, and is said in the last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

import numpy as np


def _loaded(name: str) -> tuple[str, np.ndarray, np.ndarray]:
    from sklearn import datasets
    from sklearn.preprocessing import StandardScaler

    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    return ("MLPRegressor", X, (y - y.mean()) / y.std()) if name == "diabetes" else ("MLPClassifier", X, y)


def _toy(kind: str, **sizes: int) -> tuple[str, np.ndarray, np.ndarray]:
    from sklearn import datasets

    X, y = getattr(datasets, f"make_{kind}")(random_state=0, **sizes)[:2]
    return ("MLPRegressor", X, y / y.std()) if kind == "regression" else ("MLPClassifier", X, y)


CASES: dict[str, tuple[Callable[[], tuple[str, np.ndarray, np.ndarray]], dict[str, Any]]] = {
    "wine": (lambda: _loaded("wine"), {}),
    "breast cancer": (lambda: _loaded("breast_cancer"), {}),
    "diabetes": (lambda: _loaded("diabetes"), {}),
    "digits": (lambda: _loaded("digits"), {}),
    "iris": (lambda: _loaded("iris"), {}),
    "regression 200x5": (lambda: _toy("regression", n_samples=200, n_features=5), {}),
    "100 samples": (lambda: _toy("classification", n_samples=100), {}),
    "two layers": (lambda: _loaded("breast_cancer"), {"hidden_layer_sizes": (64, 32)}),
    "early stopping": (lambda: _loaded("breast_cancer"), {"early_stopping": True}),
    "batches of 32": (lambda: _loaded("wine"), {"batch_size": 32}),
    "sgd": (lambda: _loaded("breast_cancer"), {"solver": "sgd", "learning_rate": "adaptive"}),
    "lbfgs": (lambda: _loaded("wine"), {"solver": "lbfgs"}),
    "20 epochs": (lambda: _loaded("breast_cancer"), {"max_iter": 20}),
    "partial_fit": (lambda: _loaded("breast_cancer"), {"partial": 20}),
}


def child(who: str, name: str) -> None:
    """One fit and one prediction, as numbers."""
    warnings.simplefilter("ignore")
    begin = perf_counter()
    if who == "ours":
        import torch

        import chainrule.sklearn as module

        torch.set_num_threads(1)
    else:
        import sklearn.neural_network as module
    imported = perf_counter() - begin
    load, options = CASES[name]
    kind, X, y = load()
    partial = options.get("partial", 0)
    estimator = getattr(module, kind)(random_state=0, **{k: v for k, v in options.items() if k != "partial"})
    begin, busy = perf_counter(), process_time()
    if partial:
        for _ in range(partial):
            estimator.partial_fit(X, y, **({} if kind == "MLPRegressor" else {"classes": np.unique(y)}))
    else:
        estimator.fit(X, y)
    fitted, used = perf_counter(), process_time()
    estimator.predict(X)
    print(json.dumps([used - busy, fitted - begin, perf_counter() - fitted, imported, estimator.n_iter_]))


def measured(who: str, name: str) -> list[float]:
    """What a fresh process says."""
    threads = {f"{kind}_NUM_THREADS": "1" for kind in ("OMP", "MKL", "OPENBLAS")}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **threads, "CHAINRULE_CACHE": folder}
        command = [sys.executable, "-m", "benchmarks.sklearn_cold", "child", who, name]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Prints the table."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["child"]:
        child(*arguments[1:])
        return
    rounds = int(arguments.pop(0)) if arguments and arguments[0].isdigit() else 5
    from benchmarks.timing import machine

    print(machine())
    print(f"{'':18}{'processor':>18}{'ratio':>7}{'by the clock':>18}{'ratio':>7}{'predict':>15}   epochs")
    imported: dict[str, float] = {}
    for name in arguments or CASES:
        best: dict[str, np.ndarray] = {}
        for _ in range(rounds):
            for who in ("theirs", "ours"):
                found = np.array(measured(who, name))
                best[who] = np.minimum(best.get(who, found), found)
        t, o = best["theirs"] * 1e3, best["ours"] * 1e3
        imported = {who: min(imported.get(who, np.inf), b[3]) for who, b in best.items()}
        print(
            f"{name:18}{t[0]:9.0f}{o[0]:9.0f}{t[0] / o[0]:7.2f}{t[1]:9.0f}{o[1]:9.0f}{t[1] / o[1]:7.2f}"
            f"{t[2]:7.1f}{o[2]:8.1f}   {best['theirs'][4]:.0f} {best['ours'][4]:.0f}",
            flush=True,
        )
    print("theirs, ours, in milliseconds; imported in " + ", ".join(f"{s:.1f} s" for s in imported.values()))


if __name__ == "__main__":
    main()
