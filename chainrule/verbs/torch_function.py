"""An elementwise torch callable as a function of one variable: traced where its ops are declared.

The callable is tried on copies and never changed: a module is deep-copied in float64. What is random, keeps state or
mixes elements is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from chainrule.errors import ChainruleError, ModelError, UnsupportedOpError
from chainrule.frontends.torch import generator_states, restore_generators, trace
from chainrule.ir import Node, constant, substitute_nodes, toposort, variable

_TRIED = torch.linspace(-2.7, 2.9, 15, dtype=torch.float64)
_Values = Callable[[np.ndarray], np.ndarray]


def torch_function(function: Callable[..., Any]) -> tuple[str, Node | None, Node | None, _Values, _Values, str]:
    """(name, node, its variable, values, slopes, note); node and variable are None where an op is not declared.

    Raises:
        ModelError: it is not elementwise, is random or keeps state, or does not run on a tensor.
    """
    name = _name(function)
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function).to(torch.float64)
    _refuse_what_is_not_elementwise(function, name)
    values, slopes = _values(function, name), _slopes(function, name)
    try:
        # On a clone, since it may work in place.
        traced = trace(lambda z: function(z.clone()), (torch.tensor(0.3, dtype=torch.float64),))
        (node,) = traced.graph.outputs
        (leaf,) = traced.batch_inputs.values()
        node = _without_parameters(node, {n: t for n, t in traced.values.items() if n is not leaf})
        if node.shape != () or any(n is not leaf and "name" in n.params for n in toposort([node]) if n.is_leaf):
            raise UnsupportedOpError("a graph with more than one variable")
    except (ChainruleError, ValueError) as error:
        said = str(error).splitlines()[0]
        note = f"derivative by torch's autograd, no formula ({said}){_surrogate(values, slopes)}"
        return name, None, None, values, slopes, note
    scalar = variable("z")
    node = substitute_nodes([_in_float64(node)], {leaf: scalar})[0]
    return name, node, scalar, values, slopes, ""


def _without_parameters(node: Node, known: dict[Node, torch.Tensor]) -> Node:
    """Parameters of one element are numbers here."""
    image = {n: constant(t.item(), n.type.dtype) for n, t in known.items() if t.numel() == 1 and n.shape == ()}
    return substitute_nodes([node], image)[0]


def _in_float64(node: Node) -> Node:
    if node.type.dtype != "float64":
        raise UnsupportedOpError(f"a result in {node.type.dtype}")
    return node


# ---- is it elementwise? ------------------------------------------------------------------------------------
def _refuse_what_is_not_elementwise(function: Callable[..., Any], name: str) -> None:
    def values(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            try:
                y = function(x.clone())
            except Exception as error:
                raise ModelError(
                    f"{name} does not run on a tensor: {str(error).splitlines()[0] if str(error) else type(error)}",
                    given=f"a float64 tensor of shape {tuple(x.shape)}",
                    required="a callable of one tensor",
                    instead="lambda x: torch.nn.functional.leaky_relu(x, 0.1)",
                ) from error
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            given = f"shape {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
            raise _refusal(name, f"of a tensor of shape {tuple(x.shape)} it makes {given}")
        return y.to(torch.float64)

    states = generator_states()
    try:
        whole = values(_TRIED)
        again = [values(_TRIED) for _ in range(2)]
        if not all(torch.equal(whole.nan_to_num(), a.nan_to_num()) for a in again):
            raise ModelError(
                f"{name} gives other values at every call: it is random or keeps state",
                given="the same tensor three times",
                required="a function of its input alone",
                instead="module.eval(), if it is dropout or rrelu",
            )
        order = torch.randperm(len(_TRIED), generator=torch.Generator().manual_seed(0))
        grid = _TRIED.reshape(1, 3, 5)
        alone = torch.cat([values(_TRIED[k : k + 1]) for k in range(len(_TRIED))])
        for other in (alone, values(_TRIED[order])[order.argsort()], values(grid).reshape(-1)):
            if not torch.allclose(whole, other, rtol=1e-9, atol=1e-12, equal_nan=True):
                raise _refusal(name, "the value of an element depends on the other elements or on its place")
    finally:
        restore_generators(states)


def _refusal(name: str, given: str) -> ModelError:
    return ModelError(
        f"{name} is not elementwise",
        given=given,
        required="a callable that maps every element by the same function of one number",
        instead="cr.derive(function, (x,)) for functions of whole tensors",
    )


# ---- numbers -----------------------------------------------------------------------------------------------
def _values(function: Callable[..., Any], name: str) -> _Values:
    def values(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return function(torch.tensor(x, dtype=torch.float64)).to(torch.float64).numpy()

    return values


def _slopes(function: Callable[..., Any], name: str) -> _Values:
    def slopes(x: np.ndarray) -> np.ndarray:
        with torch.enable_grad():
            leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            y = function(leaf.clone())  # a clone, since it may work in place
            if not y.requires_grad:
                return np.zeros(np.shape(x))
            (g,) = torch.autograd.grad(y.sum(), leaf, allow_unused=True)
        return np.zeros(np.shape(x)) if g is None else g.numpy()

    return slopes


def _surrogate(values: _Values, slopes: _Values) -> str:
    """Whether the backward is another function than the derivative of the forward (straight-through)."""
    x = _TRIED.numpy() + 0.0137
    h = 1e-6
    numeric = (values(x + h) - values(x - h)) / (2 * h)
    wrong = np.abs(numeric - slopes(x)) > 1e-4 * (1 + np.abs(numeric))
    if wrong.sum() < 2 or not math.isfinite(float(np.nansum(numeric))):
        return ""
    zero = ", whose derivative is zero almost everywhere" if not np.any(numeric) else ""
    return f"; its backward is a surrogate: not the derivative of its forward{zero}"


def _name(function: Any) -> str:
    if isinstance(function, nn.Module):
        lines = repr(function).splitlines()
        inside = ", ".join(type(m).__name__ for m in function.children())
        return lines[0] if len(lines) == 1 else f"{type(function).__name__}({inside})"
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type):
        return f"{owner.__name__}.{function.__name__}"
    found = getattr(function, "__name__", type(function).__name__)
    return "the function" if found == "<lambda>" else found
