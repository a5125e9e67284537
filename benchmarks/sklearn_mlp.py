"""MLPClassifier and MLPRegressor against scikit-learn's own, defaults, on its four small data sets.

    python -m benchmarks.sklearn_mlp [seeds]

Time per epoch and of whole fits, taken in turns (best of the seeds), one thread; test scores as mean and standard error
over seeds, a new split per seed. "first" is the first fit of the data set in this process: tracing and compiling, or
loading compiled code from the disk, are in it.
"""

from __future__ import annotations

import sys
import warnings
from time import perf_counter

import numpy as np
import torch
from sklearn import datasets, neural_network
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import chainrule.sklearn as ours
from benchmarks.timing import machine

DATA = {
    "digits": (datasets.load_digits, "MLPClassifier"),
    "breast cancer": (datasets.load_breast_cancer, "MLPClassifier"),
    "wine": (datasets.load_wine, "MLPClassifier"),
    "diabetes": (datasets.load_diabetes, "MLPRegressor"),
}


def timed(estimator, X, y) -> tuple[float, int]:
    """Seconds of a fit, and its epochs."""
    start = perf_counter()
    estimator.fit(X, y)
    return perf_counter() - start, estimator.n_iter_


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(machine())
    head = "us/epoch theirs", "ours", "ratio", "ms/fit theirs", "ours", "ratio", "first", "score theirs", "ours"
    print(f"{'':14}" + "".join(f"{name:>17}" if k in (0, 3, 7, 8) else f"{name:>8}" for k, name in enumerate(head)))
    ratios = []
    for name, (load, kind) in DATA.items():
        X, y = load(return_X_y=True)
        theirs, mine = getattr(neural_network, kind), getattr(ours, kind)
        whole = StandardScaler().fit_transform(X)
        target = y if kind == "MLPClassifier" else (y - y.mean()) / y.std()
        first, _ = timed(mine(random_state=0), whole, target)
        best = {key: np.inf for key in ("epoch theirs", "epoch ours", "fit theirs", "fit ours")}
        scores: dict[str, list[float]] = {"theirs": [], "ours": []}
        for seed in range(seeds):
            Xa, Xb, ya, yb = train_test_split(whole, target, random_state=seed)
            for who, estimator in (("theirs", theirs), ("ours", mine)):
                seconds, epochs = timed(estimator(random_state=seed), whole, target)
                best[f"epoch {who}"] = min(best[f"epoch {who}"], seconds / epochs)
                best[f"fit {who}"] = min(best[f"fit {who}"], seconds)
                scores[who].append(estimator(random_state=seed).fit(Xa, ya).score(Xb, yb))
        ratios.append(best["epoch theirs"] / best["epoch ours"])
        said = [
            f"{np.mean(s):.4f} ± {np.std(s, ddof=1) / np.sqrt(len(s)):.4f}" if len(s) > 1 else f"{s[0]:.4f}"
            for s in scores.values()
        ]
        print(
            f"{name:14}{best['epoch theirs'] * 1e6:17.0f}{best['epoch ours'] * 1e6:8.0f}{ratios[-1]:8.1f}"
            f"{best['fit theirs'] * 1e3:17.1f}{best['fit ours'] * 1e3:8.1f}"
            f"{best['fit theirs'] / best['fit ours']:8.1f}{first * 1e3:8.0f}{said[0]:>17}{said[1]:>17}"
        )
    print(f"per epoch: geometric mean {np.exp(np.mean(np.log(ratios))):.1f}, least {min(ratios):.1f}")


if __name__ == "__main__":
    main()
