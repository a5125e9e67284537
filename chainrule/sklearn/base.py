"""What MLPClassifier and MLPRegressor share: scikit-learn's training loop around the compiled step."""

from __future__ import annotations

import copy
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from chainrule.sklearn.losses import Loss
from chainrule.sklearn.network import activation_module, forward, own_activation
from chainrule.sklearn.solvers import Plan, Training, drawn_weights, lbfgs

STOCHASTIC = ("sgd", "adam", "adamw")
_NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be preprocessed."
)


class Perceptron(BaseEstimator):
    """Base of the two estimators; not for use by itself."""

    # parameters, which the estimators' own __init__ sets, as scikit-learn wants it
    hidden_layer_sizes: Any
    activation: Any
    loss: Any
    batch_size: Any
    verbose: Any
    random_state: Any
    n_iter_no_change: Any
    solver: str
    learning_rate: str
    precision: str
    backend: str
    alpha: float
    learning_rate_init: float
    power_t: float
    tol: float
    momentum: float
    validation_fraction: float
    beta_1: float
    beta_2: float
    epsilon: float
    dropout: float
    max_iter: int
    max_fun: int
    shuffle: bool
    warm_start: bool
    nesterovs_momentum: bool
    early_stopping: bool
    # what training keeps
    best_loss_: Any
    best_validation_score_: Any
    validation_scores_: Any

    # ---- what the two differ in --------------------------------------------------------------------------
    def _validated(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        """X, and the targets as (samples, outputs)."""
        raise NotImplementedError

    def _loss(self) -> tuple[Loss, Any, str]:
        """(output, target) -> losses, what stands for it in a key (None: nothing does), and the output activation."""
        raise NotImplementedError

    def _score(self, X: Any, y: Any, weights: Any, coefs: Any, intercepts: Any) -> float:
        """Score on validation data."""
        raise NotImplementedError

    def _target(self, y: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(y)).to(dtype)

    def _class_weights(self, y: Any) -> np.ndarray | None:
        return None

    # ---- fitting -----------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fits the network.

        Args:
            X: (samples, features), dense or sparse. y: (samples,) or (samples, outputs). sample_weight: (samples,).
        """
        return self._fit(X, y, sample_weight, incremental=False)

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> Any:
        self._check_parameters()
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        raw = y
        X, y = self._validated(X, y, incremental, first)
        X, y, weights = self._weighted(X, y, raw, sample_weight)
        hidden = np.atleast_1d(np.asarray(self.hidden_layer_sizes, dtype=int)).tolist()
        self.n_outputs_ = y.shape[1]
        sizes = [X.shape[1], *hidden, self.n_outputs_]
        self._random_state = check_random_state(self.random_state)
        if first:
            self._start(sizes, X.dtype)
        plan = self._plan(sizes)
        if self.solver == "lbfgs":
            self._fit_lbfgs(plan, X, y, weights)
        else:
            self._fit_stochastic(plan, X, y, weights, incremental)
        return self

    def _start(self, sizes: list[int], dtype: Any) -> None:
        self.n_iter_, self.t_, self.n_layers_ = 0, 0, len(sizes)
        self.out_activation_ = self._loss()[2]
        self._activation = own_activation(self.activation)
        self.coefs_, self.intercepts_ = drawn_weights(sizes, self.activation, self._random_state, dtype)
        self._optimizer_state = None
        if self.solver in STOCHASTIC:
            self.loss_curve_: list[float] = []
            self._without_improvement = 0
            self.validation_scores_ = [] if self.early_stopping else None
            self.best_validation_score_ = -np.inf if self.early_stopping else None
            self.best_loss_ = None if self.early_stopping else np.inf

    def _between(self) -> Any:
        """The activation: the estimator's own module where it is one, which is trained."""
        return self.activation if self._activation is None else self._activation

    def _weighted(self, X: Any, y: np.ndarray, raw: Any, given: Any) -> tuple[np.ndarray, np.ndarray, Any]:
        """Dense data, and weights; None if all are 1. Samples of weight zero stay: they count in splits and batches."""
        weights = None if given is None else _check_sample_weight(given, X, ensure_non_negative=True)
        by_class = self._class_weights(raw)
        if by_class is not None:
            weights = by_class if weights is None else weights * by_class
        X = np.asarray(X.todense()) if hasattr(X, "todense") else X
        if weights is None:
            return X, y, None
        if not (weights > 0).any():
            raise ValueError("the sample weights are all zero: at least one sample needs a weight above zero")
        return X, y, None if (weights == 1).all() else weights.astype(np.float64, copy=False)

    def _plan(self, sizes: list[int]) -> Plan:
        loss, loss_key, _ = self._loss()
        options: dict[str, Any] = {}
        if self.solver == "sgd":
            options = {"momentum": self.momentum, "nesterov": bool(self.nesterovs_momentum and self.momentum > 0)}
        elif self.solver in ("adam", "adamw"):
            options = {"betas": (self.beta_1, self.beta_2), "eps": self.epsilon}
        own = (tuple(sizes), self.activation, self.dropout, loss_key, self.alpha, self.solver, self.backend)
        told = isinstance(self.activation, str) and loss_key is not None
        return Plan(
            tuple(sizes),
            self._between(),
            self.dropout,
            loss,
            self.alpha,
            self.solver,
            tuple(options.items()),
            self.backend,
            (*own, tuple(options.items())) if told else None,
        )

    def _tensors(self, X: np.ndarray, y: np.ndarray, weights: Any, whole: bool) -> tuple[torch.Tensor, ...]:
        """As torch's tensors, in the dtype that the training runs in."""
        single = X.dtype == np.float32 or self.precision == "single" or (self.precision == "auto" and not whole)
        dtype = torch.float32 if single and self.precision != "double" else torch.float64
        x = torch.from_numpy(np.ascontiguousarray(X)).to(dtype)
        target = self._target(y, dtype)
        return (x, target) if weights is None else (x, target, torch.from_numpy(weights).to(dtype))

    def _fit_lbfgs(self, plan: Plan, X: np.ndarray, y: np.ndarray, weights: Any) -> None:
        tensors = self._tensors(X, y, weights, whole=True)
        coefs, intercepts, self.loss_, self.n_iter_ = lbfgs(
            plan, tensors, self.coefs_, self.intercepts_, self.max_iter, self.max_fun, self.tol
        )
        self._set(coefs, intercepts, X.dtype)

    def _set(self, coefs: Any, intercepts: Any, dtype: Any) -> None:
        if not all(np.isfinite(w).all() for w in (*coefs, *intercepts)):
            raise ValueError(_NOT_FINITE)
        self.coefs_ = [c.astype(dtype, copy=False) for c in coefs]
        self.intercepts_ = [i.astype(dtype, copy=False) for i in intercepts]

    def _fit_stochastic(self, plan: Plan, X: np.ndarray, y: np.ndarray, weights: Any, incremental: bool) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        held: Any = None
        if self.early_stopping:
            X, y, weights, held = self._split(X, y, weights)
        samples = len(X)
        size = min(200, samples) if self.batch_size == "auto" else int(np.clip(self.batch_size, 1, samples))
        if self.batch_size != "auto" and self.batch_size > samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=4
            )
        if not incremental or self._optimizer_state is None:
            self._optimizer_state, self._rate = None, self.learning_rate_init
        seed = int(self._random_state.randint(2**31 - 1)) if self.dropout else 0
        tensors = self._tensors(X, y, weights, whole=size == samples)
        training = Training(
            plan,
            tensors,
            size,
            self.coefs_,
            self.intercepts_,
            self._optimizer_state,
            seed,
            self.max_iter,
            incremental,
        )
        self.backend_, self.backend_reason_ = training.compiled.engine.name, training.compiled.engine.reason
        try:
            self._epochs(training, held, incremental, X.dtype)
            if incremental:
                self._optimizer_state = training.state()
        finally:
            training.close()

    def _split(self, X: np.ndarray, y: np.ndarray, weights: Any) -> tuple[Any, Any, Any, Any]:
        stratify = y if is_classifier(self) and self.n_outputs_ == 1 else None
        parts = [X, y] if weights is None else [X, y, weights]
        split = train_test_split(
            *parts, random_state=self._random_state, test_size=self.validation_fraction, stratify=stratify
        )
        if len(split[1]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        train, held = split[0::2], split[1::2]
        return train[0], train[1], train[2] if weights is not None else None, tuple(held)

    def _epochs(self, training: Training, held: Any, incremental: bool, dtype: Any) -> None:
        samples = training.samples
        order = np.arange(samples)
        best: Any = None
        self.n_iter_ = 0
        try:
            for _ in range(self.max_iter):
                if self.shuffle:
                    drawn = np.arange(samples)
                    self._random_state.shuffle(drawn)
                    order = order[drawn]
                self.loss_ = training.epoch(order if self.shuffle else None, self._rate)
                self.n_iter_ += 1
                self.t_ += samples
                self.loss_curve_.append(self.loss_)
                if np.isnan(self.loss_):  # the weights are not numbers, or will not be after the next step
                    raise ValueError(_NOT_FINITE)
                if self.verbose:
                    print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
                if held is not None:
                    weights = training.compiled.weights(dtype)
                    best = self._see_score(held, weights, best)
                else:
                    self._see_loss()
                if self.learning_rate == "invscaling" and self.solver == "sgd":
                    self._rate = self.learning_rate_init / (self.t_ + 1) ** self.power_t
                if self._without_improvement > self.n_iter_no_change:
                    if self._ends(held is not None):
                        break
                    self._without_improvement = 0
                if incremental:
                    break
                if self.n_iter_ == self.max_iter:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                        "hasn't converged yet.",
                        ConvergenceWarning,
                        stacklevel=5,
                    )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=5)
        coefs, intercepts = training.compiled.weights(dtype)
        if best is not None:
            coefs, intercepts, self._activation = best
        self._set(coefs, intercepts, dtype)

    def _see_score(self, held: Any, weights: Any, best: Any) -> Any:
        X, y, *w = held
        score = self._score(X, y, w[0] if w else None, *weights)
        assert self.validation_scores_ is not None
        self.validation_scores_.append(score)
        if self.verbose:
            print(f"Validation score: {score:f}")
        self._without_improvement = (
            self._without_improvement + 1 if score < self.best_validation_score_ + self.tol else 0
        )
        if score > self.best_validation_score_ or best is None:
            self.best_validation_score_ = max(score, self.best_validation_score_)
            return *weights, copy.deepcopy(self._activation)
        return best

    def _see_loss(self) -> None:
        self._without_improvement = self._without_improvement + 1 if self.loss_ > self.best_loss_ - self.tol else 0
        self.best_loss_ = min(self.best_loss_, self.loss_)

    def _ends(self, scored: bool) -> bool:
        """No improvement for long enough: the end, or a lower learning rate."""
        if self.solver == "sgd" and self.learning_rate == "adaptive" and self._rate > 1e-6:
            self._rate /= 5.0
            if self.verbose:
                print(f"Setting learning rate to {self._rate:f}")
            return False
        if self.verbose:
            what = "Validation score" if scored else "Training loss"
            print(f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs.")
        return True

    # ---- predicting --------------------------------------------------------------------------------------
    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=(np.float64, np.float32), reset=False)
        X = np.asarray(X.todense()) if hasattr(X, "todense") else X
        return forward(X, self.coefs_, self.intercepts_, self._between(), self.out_activation_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ---- parameters --------------------------------------------------------------------------------------
    def _check_parameters(self) -> None:
        hidden = np.asarray(self.hidden_layer_sizes)
        if hidden.ndim > 1 or (hidden.size and (hidden.dtype.kind not in "iu" or (hidden <= 0).any())):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {self.hidden_layer_sizes!r}.")
        _one_of("solver", self.solver, ("lbfgs", *STOCHASTIC))
        _one_of("learning_rate", self.learning_rate, ("constant", "invscaling", "adaptive"))
        _one_of("precision", self.precision, ("auto", "single", "double"))
        _one_of("backend", self.backend, ("auto", "native", "torch"))
        activation_module(self.activation)
        if self.batch_size != "auto":
            _number("batch_size", self.batch_size, 1, None, Integral)
        for name, low, high in (("alpha", 0, None), ("power_t", 0, None), ("tol", 0, None), ("momentum", 0, 1)):
            _number(name, getattr(self, name), low, high)
        for name in ("beta_1", "beta_2", "validation_fraction", "dropout"):
            _number(name, getattr(self, name), 0, 1, below=True)
        for name in ("learning_rate_init", "epsilon"):
            _number(name, getattr(self, name), 0, None, above=True)
        for name in ("max_iter", "max_fun", "n_iter_no_change"):
            if getattr(self, name) != np.inf or name != "n_iter_no_change":
                _number(name, getattr(self, name), 1, None, Integral)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"The {name!r} parameter must be one of {', '.join(allowed)}. Got {value!r} instead.")


def _number(
    name: str, value: Any, low: float, high: float | None, kind: Any = Real, above: bool = False, below: bool = False
) -> None:
    right = isinstance(value, kind) and not isinstance(value, bool) and np.isfinite(value)
    right = right and (value > low if above else value >= low)
    right = right and (high is None or (value < high if below else value <= high))
    if not right:
        what = "a whole number" if kind is Integral else "a number"
        span = f"{'above' if above else 'at least'} {low}" + (
            "" if high is None else f" and {'below' if below else 'at most'} {high}"
        )
        raise ValueError(f"The {name!r} parameter must be {what} {span}. Got {value!r} instead.")
