"""``NetClassifier`` and ``NetRegressor``: any torch module as a scikit-learn estimator, trained by ``fit``."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
from torch import nn

from chainrule.errors import ModelError
from chainrule.sklearn.base import _number, _one_of
from chainrule.sklearn.losses import Objective, per_sample
from chainrule.verbs.fit import fit


def default_module(inputs: int, outputs: int) -> nn.Module:
    """One hidden layer of 100 rectified units."""
    return nn.Sequential(nn.Linear(inputs, 100), nn.ReLU(), nn.Linear(100, outputs))


def _nested(name: str) -> str | None:
    """What a name like ``module__width`` is a keyword of."""
    of, _, key = name.partition("__")
    return of if key and of in ("module", "optimizer") else None


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _check_call(make: Any, inputs: int, outputs: int, options: dict[str, Any]) -> None:
    """Raises ModelError for what cannot be called with the numbers of inputs and outputs, and these keywords."""
    required = "a class or function (inputs, outputs, keywords...) -> nn.Module, or a module"
    if not callable(make):
        raise ModelError("module is not one", given=repr(make), required=required, instead="module=None, the default")
    try:
        signature = inspect.signature(make)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(inputs, outputs, **options)
    except TypeError as error:
        name = getattr(make, "__name__", type(make).__name__)
        called = f"{name}({inputs}, {outputs}{', ' + _words(options) if options else ''})"
        raise ModelError(
            f"the module cannot be made: {called}: {error}",
            given=f"{name}{signature}",
            required=required,
            instead=f"module=lambda inputs, outputs: {name}(...)",
        ) from None


class Net(BaseEstimator):
    """Base of the two estimators; not for use by itself."""

    # parameters, which the estimators' own __init__ sets, as scikit-learn wants it
    module: Any
    module_params: Any
    loss: Any
    optimizer: Any
    optimizer_params: Any
    batch_size: Any
    random_state: Any
    verbose: Any
    precision: str
    backend: str
    lr: float
    tol: float
    validation_fraction: float
    max_iter: int
    n_iter_no_change: int
    shuffle: bool
    early_stopping: bool
    warm_start: bool
    module_: Any
    classes_: Any

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fits a module.

        Args:
            X: (samples, features). y: (samples,), or (samples, outputs) in regression. sample_weight: (samples,).
        """
        self._check_parameters()
        again = self.warm_start and hasattr(self, "module_")
        X, y = self._validated(X, y, reset=not again)
        weights = self._weights(X, y, sample_weight)
        if weights is not None:
            kept = weights > 0
            X, y, weights = X[kept], y[kept], weights[kept]
        random = check_random_state(self.random_state)
        held = None
        if self.early_stopping:
            X, y, weights, held = self._split(X, y, weights, random)
        size = min(200, len(X)) if self.batch_size == "auto" else min(int(self.batch_size), len(X))
        dtype = self._dtype(X, size)
        seed = int(random.randint(2**31 - 1))
        with torch.random.fork_rng():  # the caller's generator is not touched
            torch.manual_seed(seed)
            self.module_ = (self.module_ if again else self._module(X.shape[1])).to(dtype)
            self.module_.train()
            optimizer = self._optimizer(self.module_)
            tensors = self._tensors(X, y, weights, dtype)
            self.history_ = fit(
                self.module_,
                tensors,
                objective=Objective(self._losses()),
                optimizer=optimizer,
                epochs=self.max_iter,
                batch_size=None if size == len(X) else size,
                shuffle=self.shuffle,
                validation=None if held is None else self._tensors(held[0], held[1], held[2], dtype),
                patience=self.n_iter_no_change,
                min_delta=self.tol,
                best_weights=held is not None,
                backend=self.backend,
                progress=bool(self.verbose),
            )
        self.module_.eval()
        self.n_iter_, self.loss_curve_ = len(self.history_.loss), list(self.history_.loss)
        self.backend_, self.backend_reason_ = self.history_.backend, self.history_.reason
        if not self.history_.stopped:
            warnings.warn(
                f"Maximum iterations ({self.max_iter}) reached and the optimization hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    # ---- what the two differ in --------------------------------------------------------------------------
    def _validated(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _outputs(self) -> int:
        raise NotImplementedError

    def _default_loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _target(self, y: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        raise NotImplementedError

    def set_params(self, **params: Any) -> Any:
        """As in scikit-learn; ``module__width=8`` and ``optimizer__momentum=0.9`` set one keyword of
        ``module_params`` and ``optimizer_params``, for a search over them.
        """
        own = {name: value for name, value in params.items() if _nested(name) is None}
        super().set_params(**own)
        for name in params.keys() - own.keys():
            of, _, key = name.partition("__")
            setattr(self, f"{of}_params", {**(getattr(self, f"{of}_params") or {}), key: params[name]})
        return self

    # ---- parts -------------------------------------------------------------------------------------------
    def _module(self, inputs: int) -> nn.Module:
        given = default_module if self.module is None else self.module
        options = dict(self.module_params or {})
        if isinstance(given, nn.Module):
            if options:
                raise ModelError(
                    "a module that is made already takes no parameters",
                    given=f"a {type(given).__name__}, and {_words(options)}",
                    required="a class or function (inputs, outputs, ...) -> nn.Module, which is called with them",
                    instead=f"module={type(given).__name__}, or the module alone",
                )
            return copy.deepcopy(given)
        _check_call(given, inputs, self._outputs(), options)
        made = given(inputs, self._outputs(), **options)
        if not isinstance(made, nn.Module):
            raise ValueError(
                f"module must give an nn.Module: an nn.Module, or a class or function of (inputs, outputs). Got "
                f"{type(made).__name__} from {given!r}"
            )
        return made

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        given = getattr(torch.optim, self.optimizer, None) if isinstance(self.optimizer, str) else self.optimizer
        if not callable(given):
            raise ValueError(
                f"optimizer={self.optimizer!r} is not a class of torch.optim, its name, or a function of parameters"
            )
        options = dict(self.optimizer_params or {})
        if "lr" not in options and "lr" in inspect.signature(given).parameters:
            options["lr"] = self.lr
        make: Any = given
        return make(module.parameters(), **options)

    def _losses(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The loss with one number per sample."""
        given = self.loss
        if given is None:
            return self._default_loss
        if isinstance(given, type) and issubclass(given, nn.Module):
            given = given()
        if isinstance(given, nn.Module) and hasattr(given, "reduction"):
            given = copy.deepcopy(given)
            given.__dict__["reduction"] = "none"
        if not callable(given):
            raise ValueError(f"loss={self.loss!r} is not a function of (output, target)")
        function: Any = given

        def losses(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            if output.dim() == 2 and output.shape[1] == 1 and target.dim() == 1:
                output = output[:, 0]
            value = function(output, target)
            each = per_sample(value, output.shape[0])
            return value if each is None else each / (value.numel() // output.shape[0])

        return losses

    def _weights(self, X: np.ndarray, y: np.ndarray, given: Any) -> np.ndarray | None:
        weights = None if given is None else _check_sample_weight(given, X, ensure_non_negative=True)
        by_class = getattr(self, "class_weight", None)
        if by_class is not None:
            each = compute_sample_weight(by_class, self.classes_[y])
            weights = each if weights is None else weights * each
        if weights is not None and not (weights > 0).any():
            raise ValueError("the sample weights are all zero: at least one sample needs a weight above zero")
        return weights

    def _split(self, X: Any, y: Any, weights: Any, random: Any) -> tuple[Any, Any, Any, Any]:
        parts = [X, y] if weights is None else [X, y, weights]
        stratify = y if hasattr(self, "classes_") else None
        split = train_test_split(*parts, random_state=random, test_size=self.validation_fraction, stratify=stratify)
        train, held = split[0::2], split[1::2]
        return train[0], train[1], (train[2] if len(train) > 2 else None), (*held, *([None] if len(held) < 3 else []))

    def _dtype(self, X: np.ndarray, size: int) -> torch.dtype:
        if self.precision == "auto":
            return torch.float32 if X.dtype == np.float32 or size < len(X) else torch.float64
        return torch.float32 if self.precision == "single" else torch.float64

    def _tensors(self, X: np.ndarray, y: np.ndarray, weights: Any, dtype: torch.dtype) -> Any:
        x = torch.from_numpy(np.ascontiguousarray(X)).to(dtype)
        target = self._target(y, dtype)
        return (x, target) if weights is None else (x, target, torch.from_numpy(weights).to(dtype))

    def _predicted(self, X: Any) -> torch.Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        parameter = next(self.module_.parameters(), None)
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(X)).to(
                parameter.dtype if parameter is not None else torch.float64
            )
            return self.module_(x).double()

    def _check_parameters(self) -> None:
        _one_of("precision", self.precision, ("auto", "single", "double"))
        _one_of("backend", self.backend, ("auto", "native", "torch"))
        if self.batch_size != "auto":
            _number("batch_size", self.batch_size, 1, None, int)
        for name in ("max_iter", "n_iter_no_change"):
            _number(name, getattr(self, name), 1, None, int)
        _number("lr", self.lr, 0, None)
        _number("tol", self.tol, 0, None)
        _number("validation_fraction", self.validation_fraction, 0, 1, above=True, below=True)


class NetClassifier(ClassifierMixin, Net):
    """Any torch module as a classifier.

    Args:
        module: a class or function ``(inputs, outputs) -> nn.Module``, or a module, which is copied; it returns
            logits, (samples, classes), also for two classes. None is one hidden layer of 100 rectified units.
        module_params: keywords for it; ``set_params(module__width=8)`` sets one of them.
        loss: torch's own or any ``(logits, class numbers) -> losses``; None is cross-entropy.
        optimizer: a class of torch.optim or its name, or a function of parameters. lr, optimizer_params: for it.
        max_iter, batch_size, shuffle, random_state, tol, n_iter_no_change, early_stopping, validation_fraction,
            warm_start, class_weight, precision, backend: as in :class:`MLPClassifier`; verbose shows a progress bar.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> bool(NetClassifier(lr=0.01, random_state=0, max_iter=1000).fit(X, y).score(X, y) > 0.95)
    True
    """

    def __init__(
        self,
        module: Any = None,
        *,
        module_params: Any = None,
        loss: Any = None,
        optimizer: Any = "Adam",
        lr: float = 0.001,
        optimizer_params: Any = None,
        max_iter: int = 200,
        batch_size: Any = "auto",
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        class_weight: Any = None,
        precision: str = "auto",
        backend: str = "auto",
        verbose: Any = False,
    ) -> None:
        self.module = module
        self.module_params = module_params
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.optimizer_params = optimizer_params
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.class_weight = class_weight
        self.precision = precision
        self.backend = backend
        self.verbose = verbose

    def predict(self, X: Any) -> np.ndarray:
        """The class of each sample."""
        found = self._predicted(X).argmax(1).numpy()
        return self.classes_[found]

    def predict_proba(self, X: Any) -> np.ndarray:
        """(samples, classes): softmax of the module's output."""
        return self._predicted(X).softmax(1).numpy()

    def _validated(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), reset=reset)
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        if reset:
            self._encoder = LabelEncoder().fit(y)
            self.classes_ = self._encoder.classes_
        return X, self._encoder.transform(y)

    def _outputs(self) -> int:
        return len(self.classes_)

    def _default_loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if output.dim() != 2 or output.shape[1] != len(self.classes_):
            raise ValueError(
                f"the module gives {tuple(output.shape)} for {len(target)} samples of {len(self.classes_)} classes; "
                f"it must give ({len(target)}, {len(self.classes_)}): one number per class, before the softmax"
            )
        return F.cross_entropy(output, target, reduction="none")

    def _target(self, y: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(y.astype(np.int64))


class NetRegressor(RegressorMixin, Net):
    """Any torch module as a regressor.

    Args: as for :class:`NetClassifier`, without ``class_weight``; the module returns (samples, outputs), the loss is
    ``(output, target) -> losses``; None is the squared error.

    >>> X = np.linspace(-1, 1, 80)[:, None]
    >>> net = NetRegressor(lr=0.01, max_iter=500, tol=1e-6, random_state=0).fit(X, X[:, 0] ** 2)
    >>> bool(net.score(X, X[:, 0] ** 2) > 0.95)
    True
    """

    def __init__(
        self,
        module: Any = None,
        *,
        module_params: Any = None,
        loss: Any = None,
        optimizer: Any = "Adam",
        lr: float = 0.001,
        optimizer_params: Any = None,
        max_iter: int = 200,
        batch_size: Any = "auto",
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        precision: str = "auto",
        backend: str = "auto",
        verbose: Any = False,
    ) -> None:
        self.module = module
        self.module_params = module_params
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.optimizer_params = optimizer_params
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.precision = precision
        self.backend = backend
        self.verbose = verbose

    def predict(self, X: Any) -> np.ndarray:
        """(samples,) or (samples, outputs)."""
        found = self._predicted(X).numpy()
        found = found.reshape(len(found), -1)
        return found[:, 0] if self._flat else found

    def _validated(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True, reset=reset)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._flat = y.ndim == 1
        self.n_outputs_ = 1 if self._flat else y.shape[1]
        return X, y.reshape(len(y), -1)

    def _outputs(self) -> int:
        return self.n_outputs_

    def _default_loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output - target).square().mean(1)

    def _target(self, y: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(y)).to(dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
