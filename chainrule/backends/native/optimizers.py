"""torch's optimizers as graphs: gradient and state in, new parameter and new state out, by torch's own formulas.

``torch.optim`` at 2.13: SGD, Adam, AdamW, RMSprop (``capturable`` and the like change nothing here). Scalars that
change from step to step (bias corrections) are float64 state of their own, as torch computes them in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chainrule.errors import UnsupportedOpError
from chainrule.ir import OPS, Node, TensorType, apply, constant, variable
from chainrule.ops.casts import cast


@dataclass(frozen=True, eq=False)
class State:
    """A leaf of optimizer state.

    Attributes:
        key: name in torch's state of the parameter; ``"step"`` powers are derived: ``of_step(t)`` gives the value.
    """

    leaf: Node
    parameter: str
    key: str
    of_step: Callable[[int], float] | None = None


@dataclass(frozen=True, eq=False)
class Rule:
    """How one optimizer updates: ``rates`` are leaves of the learning rate of each group, float64 scalars."""

    rates: tuple[Node, ...]
    states: tuple[State, ...]
    updates: Mapping[Node, Node]


def supported(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the rule is written here."""
    return type(optimizer) in _RULES


def describe(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Everything that the emitted code depends on: class and hyperparameters, without learning rates."""
    groups = tuple(
        tuple((k, _plain(v)) for k, v in sorted(g.items()) if k not in ("params", "lr", "initial_lr", *_IGNORED))
        for g in optimizer.param_groups
    )
    return type(optimizer).__name__, groups


_IGNORED = ("foreach", "fused", "capturable", "differentiable", "max_momentum", "base_momentum", "swa_lr")


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return float(value)
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value


def updates(
    optimizer: torch.optim.Optimizer,
    grads: Mapping[Node, Node],
    groups: Mapping[Node, int],
    names: Mapping[Node, str],
    counted: bool = False,
) -> Rule:
    """The rule of an optimizer for gradients of leaves.

    Args:
        groups: leaf -> number of its parameter group. names: leaf -> name.
        counted: the state is torch's own, with the number of steps as a tensor; else it is packed, and what depends on
            the number of steps is multiplied on from step to step.
    Raises:
        UnsupportedOpError: an optimizer, or an option of it, that is not written here.
    """
    build = _RULES.get(type(optimizer))
    if build is None:
        raise UnsupportedOpError(
            f"optimizer {type(optimizer).__name__} has no native form",
            required=", ".join(k.__name__ for k in _RULES),
            instead='backend="torch"',
        )
    rates = tuple(variable(f"learning_rate_{g}", TensorType((), "float64")) for g in range(len(optimizer.param_groups)))
    new: dict[Node, Node] = {}
    states: list[State] = []
    powers: dict[Any, Node] = {}
    for leaf, g in grads.items():
        number = groups[leaf]
        options = {k: _plain(v) for k, v in optimizer.param_groups[number].items() if k != "params"}
        _check(options)
        held = _Held(leaf, names[leaf], states, new, powers, number, counted)
        if options.get("maximize"):
            g = -g
        new[leaf] = build(leaf, g, rates[number], options, held)
        if counted and counts_steps(optimizer):
            held.count()
    return Rule(rates, tuple(states), new)


def _check(options: Mapping[str, Any]) -> None:
    if options.get("differentiable"):
        raise UnsupportedOpError("differentiable=True of an optimizer in native code", instead='backend="torch"')


@dataclass
class _Held:
    """The state of one parameter while its rule is written."""

    leaf: Node
    name: str
    states: list[State]
    new: dict[Node, Node]
    powers: dict[Any, Node]
    group: int
    counted: bool = False

    def tensor(self, key: str) -> Node:
        """A state tensor of the parameter's shape."""
        leaf = variable(f"{self.name}:{key}", TensorType(self.leaf.shape, self.leaf.type.dtype))
        self.states.append(State(leaf, self.name, key))
        return leaf

    def set(self, leaf: Node, value: Node) -> Node:
        """The new value of a state leaf."""
        self.new[leaf] = value
        return value

    def count(self) -> Node:
        """The number of this step, where torch keeps it."""
        step = variable(f"{self.name}:step", TensorType((), "float32"))
        if step not in self.new:
            self.states.append(State(step, self.name, "step"))
            self.new[step] = step + constant(1.0, "float32")
        return self.new[step]

    def power(self, base: float) -> Node:
        """``base^t`` for the number t of this step, float64; one for all parameters of a group."""
        if self.counted:
            return apply(OPS["pow"], constant(base, "float64"), cast(self.count(), "float64"))
        key = (self.group, base)
        if key not in self.powers:
            leaf = variable(f"power:{self.group}:{base!r}", TensorType((), "float64"))
            self.states.append(State(leaf, self.name, "step", lambda t, b=base: _product(b, t)))
            self.powers[key] = leaf * constant(base, "float64")
            self.new[leaf] = self.powers[key]
        return self.powers[key]


def _product(base: float, count: int) -> float:
    """``base^count``, multiplied one by one as the compiled loop does, so that a run that goes on has its bits."""
    value = 1.0
    while count > 0 and value * base != value:  # a power below one ends in zero, or in a number too small to shrink
        factors = np.full(1 + min(count, _FACTORS), base)
        factors[0] = value
        with np.errstate(under="ignore"):
            value = float(np.multiply.accumulate(factors)[-1])
        count -= len(factors) - 1
    return value


_FACTORS = 4096  # that are multiplied at once


def _number(value: float, like: Node) -> Node:
    return constant(float(value), like.type.dtype)


def _decayed(w: Node, g: Node, options: Mapping[str, Any]) -> Node:
    decay = options.get("weight_decay", 0.0)
    return g + w * _number(decay, w) if decay else g


def _sgd(w: Node, g: Node, rate: Node, options: Mapping[str, Any], held: _Held) -> Node:
    g = _decayed(w, g, options)
    momentum, dampening = options["momentum"], options["dampening"]
    if momentum:
        buffer = held.tensor("momentum_buffer")
        if dampening and held.counted:
            raise UnsupportedOpError("dampening in a single native step", instead="fit, or dampening=0")
        if dampening:
            # The first step takes the gradient whole: ``first`` is 1 until then.
            first = variable(f"{held.name}:first", TensorType((), w.type.dtype))
            held.states.append(State(first, held.name, "first"))
            held.set(first, constant(0.0, w.type.dtype) * first)
            scaled = g * (first + (_number(1.0, w) - first) * _number(1 - dampening, w))
        else:
            scaled = g
        new = held.set(buffer, buffer * _number(momentum, w) + scaled)
        g = g + new * _number(momentum, w) if options["nesterov"] else new
    return w - cast(rate, w.type.dtype) * g


def _adam(w: Node, g: Node, rate: Node, options: Mapping[str, Any], held: _Held, decoupled: bool = False) -> Node:
    decoupled = decoupled or bool(options.get("decoupled_weight_decay"))
    beta1, beta2 = options["betas"]
    dtype = w.type.dtype
    if decoupled:
        decay = options["weight_decay"]
        if decay:
            w = w * cast(constant(1.0, "float64") - rate * constant(float(decay), "float64"), dtype)
    else:
        g = _decayed(w, g, options)
    average, square = held.tensor("exp_avg"), held.tensor("exp_avg_sq")
    average = held.set(average, average + (g - average) * _number(1 - beta1, w))
    square = held.set(square, square * _number(beta2, w) + (g * g) * _number(1 - beta2, w))
    one = constant(1.0, "float64")
    correction1, correction2 = one - held.power(beta1), one - held.power(beta2)
    if options.get("amsgrad"):
        largest = held.tensor("max_exp_avg_sq")
        square = held.set(largest, apply(OPS["maximum"], largest, square))
    root = cast(one / apply(OPS["sqrt"], correction2), dtype)
    size = cast(rate / correction1, dtype)
    return w - size * average / (apply(OPS["sqrt"], square) * root + _number(options["eps"], w))


def _adamw(w: Node, g: Node, rate: Node, options: Mapping[str, Any], held: _Held) -> Node:
    return _adam(w, g, rate, options, held, decoupled=True)


def _rmsprop(w: Node, g: Node, rate: Node, options: Mapping[str, Any], held: _Held) -> Node:
    g = _decayed(w, g, options)
    alpha = options["alpha"]
    square = held.tensor("square_avg")
    square = held.set(square, square * _number(alpha, w) + (g * g) * _number(1 - alpha, w))
    if options["centered"]:
        mean = held.tensor("grad_avg")
        mean = held.set(mean, mean + (g - mean) * _number(1 - alpha, w))
        square = square - mean * mean
    step = g / (apply(OPS["sqrt"], square) + _number(options["eps"], w))
    if options["momentum"]:
        buffer = held.tensor("momentum_buffer")
        step = held.set(buffer, buffer * _number(options["momentum"], w) + step)
    return w - cast(rate, w.type.dtype) * step


_RULES: dict[type, Callable[..., Node]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adamw,
    torch.optim.RMSprop: _rmsprop,
}


# ---- torch's state -----------------------------------------------------------------------------------------
def read_state(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, state: State) -> Any:
    """What a state leaf starts from: torch's tensor, a number, or None for zeros."""
    held = optimizer.state.get(parameter, {})
    if state.key == "first":
        return 1.0 if held.get("momentum_buffer") is None else 0.0
    if state.of_step is not None:
        return state.of_step(steps_taken(optimizer, parameter))
    return held.get(state.key)


def steps_taken(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> int:
    """How many steps torch has counted for a parameter."""
    step = optimizer.state.get(parameter, {}).get("step", 0)
    return int(step.item() if isinstance(step, torch.Tensor) else step)


def write_state(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, key: str, value: torch.Tensor) -> None:
    """Puts a tensor into torch's state, into the tensor that is there if there is one."""
    held = optimizer.state[parameter]
    before = held.get(key)
    if isinstance(before, torch.Tensor) and before.shape == value.shape:
        before.copy_(value)
    else:
        held[key] = value.clone()


def counts_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch's state of this optimizer has a step counter."""
    return not isinstance(optimizer, torch.optim.SGD)
