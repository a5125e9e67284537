"""How the perceptrons are trained: scikit-learn's stochastic loop on a compiled step, and SciPy's L-BFGS-B.

Both follow scikit-learn draw for draw: the same random state gives the same initial weights, the same validation
split and the same order of samples.
"""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.optimize
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from chainrule.sklearn.batches import Batches
from chainrule.sklearn.compiled import Compiled, compile_training, give_back, take
from chainrule.sklearn.losses import Loss, Objective
from chainrule.sklearn.network import NAMES, get_weights, linear_layers, perceptron, set_weights
from chainrule.verbs.fit.step import CompiledStep

_BY_AUTOGRAD = 100  # evaluations of L-BFGS, before a step without autograd is worth its trace
_AT_ONCE = 512  # steps whose learning rates are computed together


@dataclass(frozen=True, eq=False)
class Plan:
    """What is compiled: an architecture, a loss and an optimizer.

    Attributes:
        key: equal for plans whose compiled steps can be exchanged; None if it cannot be told (functions).
    """

    sizes: tuple[int, ...]
    activation: Any
    dropout: float
    loss: Loss
    alpha: float
    solver: str
    options: tuple[tuple[str, Any], ...]
    backend: str
    key: Hashable | None

    @property
    def elementwise(self) -> bool:
        """Whether no sample of a batch can see another, and each has a loss of its own."""
        return self.key is not None and self.activation in NAMES

    def module(self, dtype: torch.dtype) -> nn.Sequential:
        """The network, its weights not set."""
        return perceptron(self.sizes, self.activation, self.dropout, dtype)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """torch's optimizer of the solver; learning rates are given to every step."""
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}.get(self.solver, torch.optim.Adam)
        groups: list[dict[str, Any]] = [{"params": list(module.parameters())}]
        if self.solver == "adamw":
            layers = linear_layers(module)
            weights = [layer.weight for layer in layers]
            decays = {id(weight) for weight in weights}
            groups = [
                {"params": weights, "weight_decay": self.alpha},
                {"params": [p for p in module.parameters() if id(p) not in decays], "weight_decay": 0.0},
            ]
        return _optimizer(kind, groups, dict(self.options))


def _optimizer(kind: Any, groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    """An optimizer made as it is unpickled: its ``__init__`` would import torch's compiler, which takes a second."""
    names = [n for n in inspect.signature(kind).parameters if n != "params"]
    defaults = {n: inspect.signature(kind).parameters[n].default for n in names} | {"lr": 1.0} | options
    defaults |= {"decoupled_weight_decay": True} if kind is torch.optim.AdamW else {}
    made = kind.__new__(kind)
    made.__setstate__(
        {"defaults": defaults, "state": defaultdict(dict), "param_groups": [defaults | group for group in groups]}
    )
    return made


class Training:
    """A stochastic training run: one epoch after the other on the compiled step.

    Args:
        tensors: ``(X, y)`` or ``(X, y, weights)``. coefs, intercepts, state: where it starts. seed: of dropout.
        epochs: how many there will be at most. pieces: whether data of other sizes will follow.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: tuple[torch.Tensor, ...],
        batch_size: int,
        coefs: Sequence[np.ndarray],
        intercepts: Sequence[np.ndarray],
        state: Any,
        seed: int,
        epochs: int,
        pieces: bool,
    ) -> None:
        work = 3.0 * epochs * sum(a * b for a, b in pairwise(plan.sizes))
        self._batches = Batches(tensors, batch_size, work, plan.elementwise, pieces)
        tensors, batch_size = self._batches.tensors, self._batches.size
        self._rule = rule_of(plan)
        self._taken, self._rate = (0, None) if state is None else (state["taken"], state["rate"])
        self.tensors, self.batch_size, self._plan, self._seed = tensors, batch_size, plan, seed
        self._key = (plan.key, batch_size, tuple((str(t.dtype), *t.shape[1:]) for t in tensors))
        compiled = take(self._key) if plan.key is not None else None
        if compiled is None:
            module = plan.module(tensors[0].dtype)
            set_weights(module, coefs, intercepts)
            objective = Objective(plan.loss, 0.0 if plan.solver == "adamw" else plan.alpha)
            optimizer = plan.optimizer(module)
            compiled = compile_training(module, optimizer, objective, self._batches.example(), plan.backend)
        self.compiled: Compiled = compiled
        if plan.dropout and hasattr(compiled.engine, "seed"):
            compiled.engine.seed = seed  # type: ignore[attr-defined]
        compiled.load(coefs, intercepts, state and state["optimizer"], self._rule.count)
        self._sizes = self._batches.counts
        self.samples = int(self._sizes.sum())
        self._factors, self._factors_from = np.empty(0), 0
        self._rates = np.empty((len(self._sizes), len(compiled.optimizer.param_groups)))

    def epoch(self, order: np.ndarray | None, rate: float) -> float:
        """Mean loss of the epoch over its samples; not a number as soon as a step's is not finite."""
        order = self._batches.order(order)
        self._rates[:] = rate * self._next_factors(len(self._sizes))[:, None]
        if self._plan.solver == "sgd" and self._rate not in (None, rate):
            self._keep_velocity(self._rate / rate)
        self._taken, self._rate = self._taken + len(self._sizes), rate
        if self._plan.dropout and self.compiled.engine.name == "torch":
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)
                losses = self.compiled.engine.run(self.tensors, order, self.batch_size, self._rates)
            self._seed += 1
        else:
            losses = self.compiled.engine.run(self.tensors, order, self.batch_size, self._rates)
        if len(losses) < len(self._sizes):
            return float("nan")
        return float(losses @ self._sizes / self.samples)

    def _next_factors(self, count: int) -> np.ndarray:
        """The rule's factors of the next steps, which are computed for many at once."""
        at = self._taken - self._factors_from
        if at + count > len(self._factors):
            self._factors_from, at = self._taken, 0
            self._factors = self._rule.factors(self._taken + 1 + np.arange(max(count, _AT_ONCE)))
        return self._factors[at : at + count]

    def _keep_velocity(self, factor: float) -> None:
        """The learning rate is inside of scikit-learn's velocity and outside of torch's buffer."""
        engine, optimizer = self.compiled.engine, self.compiled.optimizer
        engine.store()
        for held in optimizer.state.values():
            if held.get("momentum_buffer") is not None:
                held["momentum_buffer"].mul_(factor)
        engine.load()

    def close(self) -> None:
        """Leaves the compiled step to the next fit."""
        if self._plan.key is not None:
            give_back(self._key, self.compiled)

    def state(self) -> Any:
        """The optimizer's state as data, to go on from."""
        self.compiled.engine.store()
        return {"optimizer": self.compiled.state(), "taken": self._taken, "rate": self._rate}


@dataclass(frozen=True)
class Rule:
    """scikit-learn's update out of torch's.

    Adam: scikit-learn adds epsilon to the root of the second moment before its bias is corrected, torch after it. A
    torch optimizer that has counted so many steps that it corrects nothing has scikit-learn's update at the learning
    rates ``rate * sqrt(1 - beta_2^t) / (1 - beta_1^t)``.

    Attributes:
        count: the steps that torch's optimizer is told to have taken at the start.
    """

    count: int = 0
    betas: tuple[float, float] = (0.0, 0.0)

    def factors(self, steps: np.ndarray) -> np.ndarray:
        """What the learning rate is multiplied by in steps 1, 2, ... of the estimator."""
        if not self.count:
            return np.ones(len(steps))
        (first, second), counted = self.betas, steps + self.count
        scale = np.sqrt(1 - second**steps) / (1 - first**steps)
        return scale * (1 - first**counted) / np.sqrt(1 - second**counted)  # torch's own corrections taken out


_FORGOTTEN = 25.0  # exp(-25): epsilon to 1e-11 of itself
_MOST_STEPS = 2**23  # torch counts steps in float32, to 2^24: betas nearer to 1 than 3e-6 are corrected a little


def rule_of(plan: Plan) -> Rule:
    """That of scikit-learn's solvers; "adamw", which it has not, is torch's."""
    if plan.solver != "adam":
        return Rule()
    betas = dict(plan.options)["betas"]
    slowest = max(betas)
    count = int(np.ceil(_FORGOTTEN / -np.log(slowest))) if slowest > 0 else 1
    return Rule(min(max(count, 1), _MOST_STEPS), betas)


def lbfgs(
    plan: Plan,
    tensors: tuple[torch.Tensor, ...],
    coefs: Sequence[np.ndarray],
    intercepts: Sequence[np.ndarray],
    max_iter: int,
    max_fun: int,
    tol: float,
) -> tuple[list[np.ndarray], list[np.ndarray], float, int]:
    """SciPy's L-BFGS-B on the whole data, as scikit-learn runs it: (coefs, intercepts, loss, iterations)."""
    module = plan.module(tensors[0].dtype)
    set_weights(module, coefs, intercepts)
    objective = Objective(plan.loss, plan.alpha)
    step, evaluated = CompiledStep(module, objective=objective), 0
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    flat = np.concatenate([p.numpy().ravel() for p in parameters.values()]).astype(np.float64)

    def place(point: np.ndarray) -> None:
        at = 0
        for parameter in parameters.values():
            size = parameter.numel()
            parameter.copy_(torch.from_numpy(point[at : at + size]).view_as(parameter))
            at += size

    def evaluate() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        nonlocal evaluated
        evaluated += 1
        if evaluated > _BY_AUTOGRAD or plan.dropout:
            return step(parameters, tensors)
        loss = objective(module, tensors)
        return loss.detach(), dict(zip(parameters, torch.autograd.grad(loss, list(module.parameters())), strict=True))

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        place(point)
        loss, grads = evaluate()
        return float(loss), np.concatenate([grads[n].numpy().ravel() for n in parameters]).astype(np.float64)

    found = scipy.optimize.minimize(
        value_and_gradient,
        flat,
        method="L-BFGS-B",
        jac=True,
        options={"maxfun": max_fun, "maxiter": max_iter, "gtol": tol},
    )
    if found.status != 0:
        warnings.warn(
            f"lbfgs failed to converge after {found.nit} iteration(s) (status={found.status}): {found.message}. "
            "You might also want to scale the data or increase max_iter.",
            ConvergenceWarning,
            stacklevel=4,
        )
    place(found.x)
    return *get_weights(module, np.float64), float(found.fun), min(int(found.nit), max_iter)


def drawn_weights(
    sizes: Sequence[int], activation: Any, random: np.random.RandomState, dtype: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Initial weights, draw for draw as scikit-learn's (Glorot and Bengio 2010, uniform)."""
    factor = 2.0 if activation == "logistic" else 6.0
    coefs, intercepts = [], []
    for fan_in, fan_out in pairwise(sizes):
        bound = np.sqrt(factor / (fan_in + fan_out))
        coefs.append(random.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype, copy=False))
        intercepts.append(random.uniform(-bound, bound, fan_out).astype(dtype, copy=False))
    return coefs, intercepts
