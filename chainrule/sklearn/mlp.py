"""``MLPClassifier`` and ``MLPRegressor``: scikit-learn's, on compiled steps, and with what is refused there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import column_or_1d, validate_data

from chainrule.sklearn.base import STOCHASTIC, Perceptron, _number, _one_of
from chainrule.sklearn.losses import REGRESSION, Loss, classification, per_sample
from chainrule.sklearn.network import forward


def _is_stochastic(estimator: Any) -> bool:
    if estimator.solver not in STOCHASTIC:
        raise AttributeError(
            f"partial_fit is only available for stochastic optimizers. {estimator.solver} is not stochastic."
        )
    return True


def _own(loss: Any) -> Loss:
    """A loss of one's own: ``(output, target)`` to a tensor with the samples first, or to their mean."""

    def losses(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        value = loss(output, target)
        each = per_sample(value, output.shape[0])
        return value if each is None else each

    return losses


class MLPClassifier(ClassifierMixin, Perceptron):
    """Multi-layer perceptron classifier: scikit-learn's parameters and attributes, native steps.

    Parameters are those of ``sklearn.neural_network.MLPClassifier``, and the same random state gives the same initial
    weights and order of samples. More than there:

    Args:
        activation: also any function of torch.nn.functional by name, an nn.Module or a class of them, or a function of
            a tensor. A module is copied by ``fit``; one for all layers, and trained with them if it has parameters.
        solver: also "adamw", where ``alpha`` is the decoupled weight decay.
        loss: "log_loss", "brier", or ``(logits, target)`` -> one loss per sample (or their mean); the target is class
            numbers for three classes and more, else zeros and ones as floats.
        dropout: share of hidden units that is dropped in training.
        class_weight: dict, "balanced" or None.
        precision: "single", "double", or "auto": float32 where an epoch has several batches (their noise is far above
            rounding) or X is float32, else float64.
        backend: "native", "torch" or "auto"; ``backend_`` and ``backend_reason_`` say what ran.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> bool(MLPClassifier(max_iter=500, random_state=0).fit(X, y).score(X, y) > 0.95)
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: Any = 10,
        max_fun: int = 15000,
        loss: Any = "log_loss",
        dropout: float = 0.0,
        class_weight: Any = None,
        precision: str = "auto",
        backend: str = "auto",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.loss = loss
        self.dropout = dropout
        self.class_weight = class_weight
        self.precision = precision
        self.backend = backend

    @available_if(_is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """One epoch on these data; ``classes`` at the first call, if y does not have all of them."""
        if not hasattr(self, "classes_"):
            self._label_binarizer = LabelBinarizer()
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            self._label_binarizer.fit(classes)
            self.classes_ = self._label_binarizer.classes_
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
            )
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> np.ndarray:
        """The class of each sample."""
        found = self._outputs(X)
        return np.asarray(self._label_binarizer.inverse_transform(found.ravel() if self.n_outputs_ == 1 else found))

    def predict_proba(self, X: Any) -> np.ndarray:
        """(samples, classes): probability of each class, in the order of ``classes_``."""
        found = self._outputs(X)
        return np.hstack([1 - found, found]) if self.n_outputs_ == 1 else found

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithm of ``predict_proba``."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _validated(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=(np.float64, np.float32),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = LabelBinarizer()
            self._label_binarizer.fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            classes = unique_labels(y)
            if self.warm_start and not incremental and set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                    f"Previously got {self.classes_}, `y` has {classes}"
                )
            if len(np.setdiff1d(classes, self.classes_)):
                raise ValueError(
                    f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
                )
        return X, self._label_binarizer.transform(y).astype(bool)

    def _class_weights(self, y: Any) -> np.ndarray | None:
        if self.class_weight is None:
            return None
        return compute_sample_weight(self.class_weight, column_or_1d(y) if np.ndim(y) == 1 else y)

    def _loss(self) -> tuple[Loss, Any, str]:
        out = "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"
        if callable(self.loss):
            return _own(self.loss), None, out
        _one_of("loss", self.loss, ("log_loss", "brier"))
        rule = classification(self.loss, out)
        return lambda output, target: rule(output, target, 0.0), (self.loss, out), out

    def _target(self, y: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        if self._label_binarizer.y_type_ == "multiclass":
            return torch.from_numpy(y.argmax(1))
        return super()._target(y, dtype)

    def _score(self, X: Any, y: Any, weights: Any, coefs: Any, intercepts: Any) -> float:
        found = forward(X, coefs, intercepts, self._between(), self.out_activation_)
        if not np.isfinite(found).all():
            return np.nan
        given = [found.ravel() if self.n_outputs_ == 1 else found, y.ravel() if self.n_outputs_ == 1 else y]
        predicted, true = map(self._label_binarizer.inverse_transform, given)
        return float(accuracy_score(true, predicted, sample_weight=weights))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, Perceptron):
    """Multi-layer perceptron regressor: scikit-learn's parameters and attributes, native steps.

    Parameters are those of ``sklearn.neural_network.MLPRegressor``, and the same random state gives the same initial
    weights and order of samples. More than there (and ``activation``, ``solver``, ``dropout``, ``precision``,
    ``backend`` as in :class:`MLPClassifier`):

    Args:
        loss: "squared_error", "poisson", "absolute_error", "huber", "quantile", or ``(output, target)`` -> one loss
            per sample (or their mean). Several outputs add up; as in scikit-learn the value of the squared error is
            their mean, and its gradient that of their sum.
        quantile: of the quantile loss. huber_delta: where the Huber loss becomes linear.

    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 80)[:, None]
    >>> bool(MLPRegressor(solver="lbfgs", random_state=0).fit(X, X[:, 0] ** 2).score(X, X[:, 0] ** 2) > 0.95)
    True
    """

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: Any = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        quantile: float = 0.5,
        huber_delta: float = 1.0,
        precision: str = "auto",
        backend: str = "auto",
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.quantile = quantile
        self.huber_delta = huber_delta
        self.precision = precision
        self.backend = backend

    @available_if(_is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """One epoch on these data."""
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> np.ndarray:
        """(samples,) or (samples, outputs)."""
        found = self._outputs(X)
        return found.ravel() if found.shape[1] == 1 else found

    def _validated(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            dtype=(np.float64, np.float32),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y = y.reshape(len(y), -1)
        if self.loss == "poisson" and ((y < 0).any() or y.sum() <= 0):
            raise ValueError("loss='poisson' needs targets that are not negative, and not all zero")
        return X, y

    def _loss(self) -> tuple[Loss, Any, str]:
        if callable(self.loss):
            return _own(self.loss), None, "identity"
        _one_of("loss", self.loss, tuple(REGRESSION))
        out, rule = REGRESSION[self.loss]
        value = {"quantile": self.quantile, "huber": self.huber_delta}.get(self.loss, 0.0)
        return lambda output, target: rule(output, target, value), (self.loss, value), out

    def _score(self, X: Any, y: Any, weights: Any, coefs: Any, intercepts: Any) -> float:
        found = forward(X, coefs, intercepts, self._between(), self.out_activation_)
        return float(r2_score(y, found, sample_weight=weights)) if np.isfinite(found).all() else np.nan

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _number("quantile", self.quantile, 0, 1, above=True, below=True)
        _number("huber_delta", self.huber_delta, 0, None, above=True)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
