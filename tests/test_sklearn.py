"""The estimators against scikit-learn's own, and what only they can do."""

from __future__ import annotations

import pickle
import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_iris,
    load_wine,
    make_classification,
    make_multilabel_classification,
    make_regression,
)
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

import chainrule.sklearn as ours
from chainrule.errors import ModelError
from chainrule.sklearn import solvers

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def scaled(load) -> tuple[np.ndarray, np.ndarray]:
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


IRIS, WINE, CANCER = scaled(load_iris), scaled(load_wine), scaled(load_breast_cancer)
DIABETES = scaled(load_diabetes)[0], (load_diabetes().target - 150) / 77


@pytest.mark.slow
@pytest.mark.parametrize("name", ours.__all__)
def test_every_check_of_scikit_learn(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(getattr(ours, name)(), on_fail=None)
    assert not [(r["check_name"], r["exception"]) for r in results if r["status"] not in ("passed", "skipped")]
    assert sum(r["status"] == "passed" for r in results) > 50


# ---- the same as scikit-learn's own ----------------------------------------------------------------------
SAME = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.02},
    "sgd, no nesterov": {"solver": "sgd", "nesterovs_momentum": False, "momentum": 0.5},
    "sgd, no momentum": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.05},
    "lbfgs": {"solver": "lbfgs", "max_iter": 30},
    "batches": {"batch_size": 32},
    "not shuffled": {"batch_size": 32, "shuffle": False},
    "penalty": {"alpha": 3.0, "batch_size": 50},
    "two layers of tanh": {"hidden_layer_sizes": (12, 7), "activation": "tanh"},
    "logistic": {"activation": "logistic", "hidden_layer_sizes": 9},
    "identity": {"activation": "identity", "hidden_layer_sizes": ()},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3, "tol": 0.01, "max_iter": 60},
    "tol": {"tol": 0.02, "max_iter": 200},
    "large epsilon": {"epsilon": 0.01, "batch_size": 32},
    "other betas": {"beta_1": 0.0, "beta_2": 0.9, "epsilon": 1e-3},
    "inverse scaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1, "batch_size": 32},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 2, "tol": 0.2, "batch_size": 32},
}
PROBLEMS = {
    "three classes": ("MLPClassifier", *IRIS),
    "two classes": ("MLPClassifier", CANCER[0][:150], CANCER[1][:150]),
    "regression": ("MLPRegressor", DIABETES[0][:150], DIABETES[1][:150]),
    "poisson": ("MLPRegressor", DIABETES[0][:150], np.exp(DIABETES[1][:150])),
    "three outputs": ("MLPRegressor", DIABETES[0][:150], np.stack([DIABETES[1][k : 150 + k] for k in (0, 5, 9)], 1)),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("options", SAME)
def test_same_as_scikit_learn(options: str, problem: str) -> None:
    name, X, y = PROBLEMS[problem]
    given = {"max_iter": 12, "random_state": 3} | SAME[options]
    if problem == "poisson":
        given["loss"] = "poisson"
    a = getattr(theirs, name)(**given).fit(X, y)
    b = getattr(ours, name)(**given, precision="double").fit(X, y)
    assert b.n_iter_ == a.n_iter_ or given.get("solver") == "lbfgs"
    rtol = 2e-2 if given.get("solver") == "lbfgs" else 1e-9
    np.testing.assert_allclose(b.loss_, a.loss_, rtol=rtol)
    if given.get("solver") == "lbfgs":  # chaotic in the last digits; what counts is the loss
        assert b.score(X, y) == pytest.approx(a.score(X, y), abs=0.02)
        return
    np.testing.assert_allclose(b.loss_curve_, a.loss_curve_, rtol=rtol)
    for p, q in zip(b.coefs_ + b.intercepts_, a.coefs_ + a.intercepts_, strict=True):
        assert p.dtype == q.dtype and p.shape == q.shape
        np.testing.assert_allclose(p, q, atol=1e-8)
    np.testing.assert_allclose(b.predict(X), a.predict(X), atol=1e-8)
    for attribute in ("t_", "n_layers_", "n_outputs_", "out_activation_", "best_loss_", "validation_scores_"):
        mine, yours = getattr(b, attribute), getattr(a, attribute)
        assert mine == (pytest.approx(yours, rel=1e-8) if isinstance(yours, float | list) else yours)
    if name == "MLPClassifier":
        np.testing.assert_allclose(b.predict_proba(X), a.predict_proba(X), atol=1e-8)
        np.testing.assert_array_equal(b.classes_, a.classes_)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate_init": 0.01},
        {"early_stopping": True, "n_iter_no_change": 3},
        {"solver": "sgd", "learning_rate_init": 0.05, "learning_rate": "invscaling"},
    ],
    ids=str,
)
def test_samples_without_weight_count_in_splits_and_batches(options: dict, backend: str) -> None:
    X, y = IRIS
    weights = np.random.RandomState(0).randint(0, 3, len(y))
    given = {"batch_size": 32, "max_iter": 12, "random_state": 1} | options
    a = theirs.MLPClassifier(**given).fit(X, y, weights)
    b = ours.MLPClassifier(**given, precision="double", backend=backend).fit(X, y, weights)
    np.testing.assert_allclose(b.loss_curve_, a.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(b.predict_proba(X), a.predict_proba(X), atol=1e-9)


def test_a_batch_of_no_weight_is_no_end() -> None:
    X, y = IRIS
    weights = np.repeat([0.0, 1.0], 75)
    given = {"batch_size": 25, "shuffle": False, "max_iter": 5, "random_state": 0}
    with pytest.raises(ZeroDivisionError):
        theirs.MLPClassifier(**given).fit(X, y, weights)
    assert np.isfinite(ours.MLPClassifier(**given).fit(X, y, weights).loss_curve_).all()


@pytest.mark.parametrize("options", [{}, {"solver": "sgd", "learning_rate": "invscaling"}], ids=str)
def test_partial_fit_is_that_of_scikit_learn(options: dict) -> None:
    X, y = DIABETES[0], DIABETES[1]
    a, b = (kind.MLPRegressor(random_state=0, epsilon=1e-3, batch_size=70, **options) for kind in (theirs, ours))
    b.set_params(precision="double")
    for _ in range(5):
        a.partial_fit(X, y)
        b.partial_fit(X, y)
    np.testing.assert_allclose(b.loss_curve_, a.loss_curve_, rtol=1e-9)
    np.testing.assert_allclose(b.predict(X), a.predict(X), atol=1e-8)


@pytest.mark.parametrize("activation", [nn.PReLU(), nn.PReLU], ids=["module", "class"])
@pytest.mark.parametrize(
    "options",
    [{}, {"solver": "lbfgs"}, {"solver": "adamw", "alpha": 0.01}, {"backend": "torch"}, {"precision": "single"}],
    ids=str,
)
def test_activations_that_are_trained(activation, options: dict) -> None:
    X, y = IRIS
    before = pickle.dumps(activation)
    model = ours.MLPClassifier((8, 8), activation, max_iter=80, random_state=0, learning_rate_init=0.02, **options)
    model.fit(X, y)
    assert pickle.dumps(activation) == before  # what the constructor was given is not trained
    found = model.predict_proba(X)
    # the last epoch's loss is that before its step, and has a small penalty: predictions use the trained slope
    assert -np.log(found[np.arange(150), y]).mean() == pytest.approx(model.loss_, rel=0.05)
    np.testing.assert_array_equal(clone(model).fit(X, y).predict_proba(X), found)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), found)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_partial_fit_and_warm_start_go_on(solver: str) -> None:
    X, y = IRIS
    for kind in (theirs, ours):
        whole = kind.MLPClassifier(solver=solver, max_iter=6, random_state=0, shuffle=False, tol=0, batch_size=40)
        whole.fit(X, y)
        parts = clone(whole)
        for k in range(6):
            parts.partial_fit(X, y, classes=np.unique(y) if k == 0 else None)
        for p, q in zip(parts.coefs_, whole.coefs_, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-6)  # float32 weights between the parts
        assert len(parts.loss_curve_) == 6
        warm = clone(whole).set_params(max_iter=3, warm_start=True)
        warm.fit(X, y)
        before = warm.loss_
        assert warm.fit(X, y).loss_ < before
        with pytest.raises(ValueError, match="same"):
            warm.fit(X[:100], y[:100])
    with pytest.raises(AttributeError):
        _ = ours.MLPClassifier(solver="lbfgs").partial_fit


def test_multilabel_several_outputs_and_sparse() -> None:
    X, Y = make_multilabel_classification(80, random_state=0)
    a = theirs.MLPClassifier(max_iter=30, random_state=0).fit(X, Y)
    b = ours.MLPClassifier(max_iter=30, random_state=0).fit(X, Y)
    np.testing.assert_allclose(b.predict_proba(X), a.predict_proba(X), atol=1e-3)
    assert (a.predict(X) == b.predict(X)).mean() > 0.99
    two = np.stack([DIABETES[1], -DIABETES[1]], 1)
    p = ours.MLPRegressor(max_iter=20, random_state=0, precision="double").fit(
        scipy.sparse.csr_matrix(DIABETES[0]), two
    )
    q = theirs.MLPRegressor(max_iter=20, random_state=0).fit(DIABETES[0], two)
    np.testing.assert_allclose(p.predict(DIABETES[0]), q.predict(DIABETES[0]), atol=1e-3)


# ---- what is refused there -------------------------------------------------------------------------------
def test_losses_find_what_they_should() -> None:
    """A constant model's best value: mean, median, a quantile."""
    random = np.random.RandomState(0)
    y = random.exponential(size=401)
    X = np.zeros((401, 1))
    options = {"hidden_layer_sizes": (), "alpha": 0.0, "solver": "adam", "learning_rate_init": 0.02, "tol": 0.0}
    options |= {"max_iter": 600, "n_iter_no_change": 600, "random_state": 0, "batch_size": 401}

    def constant(**more) -> float:
        return float(ours.MLPRegressor(**options, **more).fit(X, y).predict(X[:1])[0])

    assert constant(loss="squared_error") == pytest.approx(y.mean(), abs=0.01)
    assert constant(loss="absolute_error") == pytest.approx(np.median(y), abs=0.02)
    assert constant(loss="quantile", quantile=0.9) == pytest.approx(np.quantile(y, 0.9), abs=0.05)
    assert constant(loss="huber", huber_delta=100.0) == pytest.approx(y.mean(), abs=0.01)
    assert constant(loss="poisson") == pytest.approx(y.mean(), abs=0.01)
    assert constant(loss=lambda z, t: (z - t - 1).square()) == pytest.approx(y.mean() + 1, abs=0.01)
    mean = constant(loss=lambda z, t: (z - t - 1).square().mean())
    assert mean == pytest.approx(y.mean() + 1, abs=0.01)


@pytest.mark.parametrize("name", ["MLPClassifier", "NetClassifier"])
def test_weights_are_repetitions(name: str) -> None:
    X, y = IRIS
    X, y = X[::3], y[::3]
    counts = np.random.RandomState(1).randint(0, 4, len(y))
    options = {"max_iter": 60, "random_state": 0}
    a = getattr(ours, name)(**options).fit(X, y, sample_weight=counts)
    b = getattr(ours, name)(**options).fit(np.repeat(X, counts, 0), np.repeat(y, counts))
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=1e-6, atol=1e-9)
    balanced = getattr(ours, name)(**options, class_weight={0: 1, 1: 3, 2: 1}).fit(X, y)
    weighted = getattr(ours, name)(**options).fit(X, y, sample_weight=np.where(y == 1, 3.0, 1.0))
    np.testing.assert_allclose(balanced.predict_proba(X), weighted.predict_proba(X), rtol=1e-9)
    with pytest.raises(ValueError, match="all zero|non-zero"):
        getattr(ours, name)().fit(X, y, sample_weight=np.zeros(len(y)))


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "gelu"},
        {"activation": "logsigmoid", "learning_rate_init": 0.01},
        {"activation": torch.sin},
        {"activation": nn.Softplus(beta=2.0)},
        {"activation": nn.ELU},
        {"dropout": 0.2, "max_iter": 400},
        {"solver": "adamw", "alpha": 0.01},
        {"loss": "brier"},
        {"backend": "torch"},
        {"loss": lambda z, t: nn.functional.multi_margin_loss(z, t, reduction="none")},
    ],
    ids=lambda options: ", ".join(options),
)
def test_more_than_scikit_learn(options: dict) -> None:
    X, y = IRIS
    given = {"max_iter": 200, "random_state": 0, "learning_rate_init": 0.005} | options
    state = torch.get_rng_state()
    model = ours.MLPClassifier(**given).fit(X, y)
    again = clone(model).fit(X, y)
    assert model.score(X, y) > 0.94
    assert torch.equal(torch.get_rng_state(), state)  # nobody's generator was touched
    np.testing.assert_array_equal(model.predict_proba(X), again.predict_proba(X))
    if options.get("backend") == "torch":
        assert model.backend_ == "torch"


def test_whole_life_of_an_estimator() -> None:
    X, y = IRIS
    names = np.array(["a", "b", "c"])[y]
    pipe = make_pipeline(StandardScaler(), ours.MLPClassifier(max_iter=80, random_state=0, learning_rate_init=0.01))
    assert cross_val_score(pipe, X, names, cv=3).mean() > 0.9
    search = GridSearchCV(pipe, {"mlpclassifier__alpha": [1e-4, 1e-1]}, cv=2).fit(X, names)
    copied = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(copied.predict(X), search.predict(X))
    with pytest.raises(NotFittedError):
        ours.MLPClassifier().predict(X)
    with pytest.warns(ConvergenceWarning):
        ours.MLPRegressor(max_iter=2).fit(*DIABETES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden_layer_sizes": (5, 0)}, "must be > 0"),
        ({"hidden_layer_sizes": 2.5}, "must be > 0"),
        ({"solver": "rprop"}, "'solver' parameter"),
        ({"activation": "rule"}, "is not known"),
        ({"alpha": -1}, "'alpha' parameter"),
        ({"dropout": 1.0}, "'dropout' parameter"),
        ({"max_iter": 0}, "'max_iter' parameter"),
        ({"loss": "hinge"}, "'loss' parameter"),
        ({"precision": "half"}, "'precision' parameter"),
        ({"batch_size": 0}, "'batch_size' parameter"),
    ],
    ids=str,
)
def test_refusals(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ours.MLPClassifier(**options).fit(*IRIS)


def test_a_loss_that_explodes_is_said() -> None:
    with pytest.raises(ValueError, match="non-finite"), np.errstate(all="ignore"):
        ours.MLPRegressor(solver="sgd", learning_rate_init=1e6).fit(*DIABETES)


# ---- any module ------------------------------------------------------------------------------------------
class Residual(nn.Module):
    """A module with a parameter of its own kind."""

    def __init__(self, inputs: int, outputs: int, width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(h + torch.tanh(h))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"module": Residual, "module_params": {"width": 8}},
        {"module": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), "batch_size": 30},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"optimizer": torch.optim.SGD, "lr": 0.1, "optimizer_params": {"momentum": 0.9}},
        {"early_stopping": True, "n_iter_no_change": 40},
        {"backend": "torch"},
    ],
    ids=str,
)
def test_net_classifier(options: dict) -> None:
    X, y = IRIS
    before = pickle.dumps(options.get("module"))
    model = ours.NetClassifier(**({"lr": 0.01, "max_iter": 150, "random_state": 0} | options)).fit(X, y)
    assert model.score(X, y) > 0.93 and model.predict_proba(X).shape == (150, 3)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)
    assert pickle.dumps(options.get("module")) == before  # a module that is given is copied
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.predict(X), model.predict(X))
    np.testing.assert_array_equal(clone(model).fit(X, y).predict_proba(X), model.predict_proba(X))


def test_keywords_of_a_module_and_an_optimizer_in_a_search() -> None:
    X, y = IRIS
    net = ours.NetClassifier(Residual, module_params={"width": 4}, optimizer="SGD", lr=0.1, max_iter=20, random_state=0)
    grid = {"module__width": [2, 9], "optimizer__momentum": [0.9], "lr": [0.05]}
    found = GridSearchCV(net, grid, cv=2).fit(X, y).best_estimator_
    assert found.module_.first.out_features == found.module_params["width"] in (2, 9)
    assert found.optimizer_params == {"momentum": 0.9} and found.lr == 0.05
    assert net.module_params == {"width": 4} and net.optimizer_params is None
    piped = make_pipeline(StandardScaler(), net).set_params(netclassifier__module__width=3).fit(X, y)
    assert piped[-1].module_.first.out_features == 3
    with pytest.raises(ValueError, match="Invalid parameter"):
        net.set_params(modules__width=3)


def test_modules_that_cannot_be_made_say_what_is_expected() -> None:
    class Fixed(nn.Module):
        """Takes nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    X, y = IRIS
    for given, said in (
        ({"module": Fixed}, "cannot be made: Fixed\\(4, 3\\)"),
        ({"module": Residual, "module_params": {"depth": 3}}, "depth"),
        ({"module": Fixed(), "module_params": {"width": 3}}, "takes no parameters"),
        ({"module": 7}, "module is not one"),
    ):
        with pytest.raises(ModelError, match=said) as error:
            ours.NetClassifier(**given).fit(X, y)
        assert error.value.given and error.value.required and error.value.instead
    assert ours.NetClassifier(lambda inputs, outputs: Fixed(), max_iter=3).fit(X, y).n_iter_ == 3


def test_net_regressor() -> None:
    X, y = DIABETES
    base = {"lr": 0.01, "max_iter": 100, "random_state": 0, "optimizer": "AdamW"}
    model = ours.NetRegressor(Residual, loss=nn.HuberLoss, **base).fit(X, y)
    assert model.score(X, y) > 0.45 and model.predict(X).shape == y.shape
    two = ours.NetRegressor(loss=nn.functional.l1_loss, **base)
    with pytest.raises(Exception, match="not a scalar|one number per sample"):
        two.set_params(loss=lambda out, target: (out - target).mean()).fit(X, y, sample_weight=np.arange(len(y)))
    both = ours.NetRegressor(**base).fit(X, np.stack([y, -y], 1))
    assert both.predict(X).shape == (len(y), 2)
    warm = ours.NetRegressor(warm_start=True, **(base | {"max_iter": 5})).fit(X, y)
    first = warm.loss_curve_[-1]
    assert warm.fit(X, y).loss_curve_[-1] < first


@pytest.mark.parametrize("samples", [67, 178, 200, 205, 390])
def test_batches_filled_up_are_the_batches_of_scikit_learn(samples: int) -> None:
    """A short last batch is filled with samples of weight zero: in float64 nothing is left of them."""
    X, y = make_regression(samples, 6, random_state=0)
    options: dict[str, Any] = {"max_iter": 4, "random_state": 0, "hidden_layer_sizes": (9,)}
    expected = theirs.MLPRegressor(**options).fit(X, y / y.std())
    mine = ours.MLPRegressor(**options, precision="double").fit(X, y / y.std())
    np.testing.assert_allclose(mine.loss_curve_, expected.loss_curve_, rtol=1e-8)
    for a, b in zip(mine.coefs_, expected.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_pieces_of_many_sizes_share_code() -> None:
    X, y = make_classification(400, 7, random_state=1)
    model = ours.MLPClassifier(hidden_layer_sizes=(11,), random_state=0)
    sizes = [131, 140, 157, 129]
    with mock.patch.object(solvers, "compile_training", wraps=solvers.compile_training) as compiling:
        for size in sizes:
            model.partial_fit(X[:size], y[:size], classes=[0, 1])
    assert compiling.call_count == 1


def test_partial_fit_goes_on_from_a_pickle() -> None:
    X, y = make_classification(120, 5, random_state=2)
    for solver in ("adam", "sgd", "adamw"):
        one = ours.MLPClassifier(hidden_layer_sizes=(8,), solver=solver, random_state=0).partial_fit(
            X, y, classes=[0, 1]
        )
        other = pickle.loads(pickle.dumps(one))
        one.partial_fit(X, y), other.partial_fit(X, y)
        assert all(np.array_equal(a, b) for a, b in zip(one.coefs_, other.coefs_, strict=True))


@pytest.mark.parametrize("options", [{}, {"batch_size": 40}, {"backend": "torch"}], ids=str)
def test_a_training_that_diverges_is_an_error_as_in_scikit_learn(options: dict[str, Any]) -> None:
    X, y = make_regression(150, 8, random_state=1)
    model = ours.MLPRegressor(solver="sgd", learning_rate_init=10.0, max_iter=12, random_state=0, **options)
    with pytest.raises(ValueError, match="non-finite parameter weights"):
        model.fit(1e3 * X, y / y.std())


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_an_infinite_loss_goes_on_as_in_scikit_learn() -> None:
    X, y = make_regression(60, 4, random_state=1)
    y[7] = 1e200
    options: dict[str, Any] = {"max_iter": 5, "random_state": 0}
    one, other = theirs.MLPRegressor(**options).fit(X, y), ours.MLPRegressor(**options).fit(X, y)
    assert one.n_iter_ == other.n_iter_ == 5 and other.loss_ == one.loss_ == np.inf
    for a, b in zip(one.coefs_, other.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_a_module_with_another_number_of_outputs_than_classes(outputs: int) -> None:
    with pytest.raises(ModelError, match=r"must give \(150, 3\)"):
        ours.NetClassifier(nn.Linear(4, outputs), random_state=0).fit(*IRIS)
