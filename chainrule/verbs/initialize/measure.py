"""What one forward and one backward pass show: the mean square of every module's output and of its cotangent.

The model is called with tensors in place of its parameters, so that a start can be looked at before it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chainrule.frontends.torch import run_case, untouched
from chainrule.frontends.torch.batch import describe, leaves
from chainrule.frontends.torch.modules import kind_of
from chainrule.frontends.torch.trace import run_program
from chainrule.verbs.case import Case


@dataclass(frozen=True)
class Scale:
    """Mean squares of one module's output and of the cotangent that reaches it, None where there is none.

    Attributes:
        name, module: its path and its class. second, grad_second: mean square of output and cotangent.
        elements: of the output: times ``grad_second`` they are the energy of a gradient, which pooling and layers of
            other widths keep where the mean square of one element changes.
    """

    name: str
    module: str
    second: float | None
    grad_second: float | None
    elements: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(self.__dict__)


class _Bound(nn.Module):
    """A case as a module, whose forward is one loss: what ``functional_call`` needs."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model, self.case = case.model, case

    def forward(self) -> Any:
        return run_case(self.model, self.case.batch, self.case.loss, self.case.objective)


def scales(case: Case, values: Mapping[str, torch.Tensor]) -> tuple[Scale, ...]:
    """One row per module that is called, in the order in which they end; the last call of each counts.

    Args:
        values: parameter -> tensor in its place, for some or all.
    """
    model = case.model
    found: dict[str, list[Any]] = {}
    handles = []

    def hook(path: str, module: nn.Module) -> Any:
        def seen(_: Any, __: Any, output: Any) -> None:
            tensor = next((t for _, t in leaves(output) if t.is_floating_point()), None)
            if tensor is None:
                return
            row = [
                path,
                kind_of(module),
                float(tensor.detach().to(torch.float64).square().mean()),
                None,
                tensor.numel(),
            ]
            found.pop(path, None)
            found[path] = row
            if tensor.requires_grad:
                tensor.register_hook(lambda g, row=row: _store(row, g))

        return seen

    with untouched([model]):
        for path, module in model.named_modules():
            handles.append(module.register_forward_hook(hook(path, module)))
        try:
            swapped = {f"model.{name}": tensor for name, tensor in values.items()}
            with torch.enable_grad():
                for parameter in model.parameters():
                    if parameter.is_floating_point():
                        parameter.requires_grad_(True)
                swapped = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in swapped.items()}
                loss, _ = _called(case, swapped)
                if loss is not None and loss.requires_grad:
                    torch.autograd.grad(loss, [t for t in (*swapped.values(), *model.parameters()) if t.requires_grad],
                                        allow_unused=True)  # fmt: skip
        finally:
            for handle in handles:
                handle.remove()
    return tuple(Scale(*row) for row in found.values())


def _called(case: Case, swapped: Mapping[str, torch.Tensor]) -> Any:
    """The case with other parameters; what the user's code raises becomes a ModelError that names its line."""
    return run_program(
        lambda: torch.func.functional_call(_Bound(case), dict(swapped), (), tie_weights=True),
        None,
        describe(case.batch),
    )


def _store(row: list[Any], gradient: torch.Tensor) -> None:
    row[3] = float(gradient.detach().to(torch.float64).square().mean())


def sweep(case: Case, values: dict[str, torch.Tensor], wanted: Mapping[str, tuple[str, float]]) -> dict[str, float]:
    """One forward pass in which every weight is corrected where it is met: name -> factor.

    Args:
        values: the start of every parameter; corrected in place. wanted: module -> (its weight, mean square).
    """
    model, factors, handles = case.model, {}, []

    def hook(path: str) -> Any:
        name, target = wanted[path]

        def seen(module: nn.Module, _: Any, output: Any) -> Any:
            if name in factors or not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return None
            bias = values.get(f"{path}.bias" if path else "bias")
            shown = output.detach()
            if bias is not None and bias.any():
                shape = [1] * shown.dim()
                shape[1 if isinstance(module, nn.modules.conv._ConvNd) and shown.dim() > 2 else -1] = -1
                bias = bias.to(shown.dtype).reshape(shape)
                shown = shown - bias
            else:
                bias = None
            made = float(shown.to(torch.float64).square().mean())
            if not made > 0:
                return None
            factors[name] = (target / made) ** 0.5
            values[name].mul_(factors[name])
            shown = shown * factors[name]
            return shown if bias is None else shown + bias

        return seen

    with untouched([model]), torch.no_grad():
        for path, module in model.named_modules():
            if path in wanted:
                handles.append(module.register_forward_hook(hook(path)))
        try:
            swapped = {f"model.{name}": tensor for name, tensor in values.items()}
            _called(case, swapped)
        finally:
            for handle in handles:
                handle.remove()
    return factors
