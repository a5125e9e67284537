"""What ``initialize_`` refuses, before it has changed anything."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from chainrule.errors import ModelError
from chainrule.verbs.initialize.held import is_sharded
from chainrule.verbs.initialize.schemes import SCHEMES

_SHOWN = 4


def check_model(model: Any) -> None:
    """A module whose parameters all exist.

    Raises:
        ModelError: it is no module, has no parameter, or has lazy ones.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "there is no model to initialize",
            given=type(model).__name__,
            required="a torch.nn.Module, or a chainrule.case of one",
            instead="chainrule.initialize_(model, batch, loss)",
        )
    every = list(model.named_parameters())
    if not every:
        raise ModelError("the model has no parameters", given=type(model).__name__, required="at least one parameter")
    lazy = [name for name, p in every if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ModelError(
            f"{_named(lazy)} has no shape yet",
            given="a lazy module",
            required="parameters whose shapes are known",
            instead="model(batch) once, then chainrule.initialize_",
        )


def check_scheme(scheme: Any, where: str = "") -> None:
    """A scheme that exists.

    Raises:
        ModelError: it does not; names the nearest.
    """
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        near = difflib.get_close_matches(str(scheme).lower(), SCHEMES, 1)
        raise ModelError(
            f"there is no scheme {scheme!r}{f' (for {where!r})' if where else ''}",
            given=repr(scheme),
            required=f"one of {', '.join(SCHEMES)}",
            instead=f"scheme={(near[0] if near else 'auto')!r}",
        )


def check_values(parameters: Mapping[str, torch.Tensor], chosen: Sequence[str]) -> None:
    """Sizes of at least one and finite values.

    A tensor that nobody has written to yet (``to_empty``, ``torch.empty``) may hold anything if it will be drawn.

    Raises:
        ModelError: names the parameter.
    """
    drawn = set(chosen)
    for name, tensor in parameters.items():
        if 0 in tensor.shape:
            raise ModelError(
                f"{name} is of zero width",
                given=f"shape {tuple(tensor.shape)}",
                required="layers with at least one unit",
                instead="the layer without it, or another size",
            )
    for name, tensor in parameters.items():
        if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if name in drawn and tensor._version == 0:
            continue
        local: Any = tensor
        with torch.no_grad():
            local = local.to_local() if is_sharded(tensor) else local
            if not local.numel() or (not local.is_complex() and all(map(math.isfinite, map(float, local.aminmax())))):
                continue
            bad = int((~torch.isfinite(local)).sum())
        if bad:
            raise ModelError(
                f"{name} is not finite: {bad} of its {local.numel()} numbers are nan or inf",
                given=f"shape {tuple(tensor.shape)}",
                required="a model with finite weights, so that a fault upstream is not painted over",
                instead=f"model.get_parameter({name!r}).data.zero_() first, if it is known why",
            )


def check_batch(batch: Any) -> None:
    """An example with at least one sample and finite numbers; a mask of zeros and -inf is one.

    Raises:
        ModelError: says which tensor of the batch, in order.
    """
    leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
    given = [t for t in leaves if isinstance(t, torch.Tensor)]
    if given and not given[0].numel():
        raise ModelError(
            "the batch is empty",
            given=f"shape {tuple(given[0].shape)}",
            required="at least one sample, from which the size of the inputs is read",
            instead="a batch of the training data, or a scheme that needs none: scheme='he'",
        )
    for k, tensor in enumerate(given):
        if tensor.is_meta or not tensor.is_floating_point() or is_sharded(tensor):
            continue
        with torch.no_grad():
            finite = torch.isfinite(tensor)
            bad = int((~finite).sum())
            if bad and bool((finite | (tensor == -math.inf)).all()) and not bool(tensor[finite].any()):
                continue  # a mask that is added to scores
        if bad:
            raise ModelError(
                f"tensor {k} of the batch is not finite: {bad} of its {tensor.numel()} numbers are nan or inf",
                given=f"shape {tuple(tensor.shape)}",
                required="a batch of finite numbers: the size of the weights is chosen for it",
                instead="torch.nan_to_num(batch), if the missing values are known to mean nothing",
            )


def selected(names: Sequence[str], only: Any, argument: str = "only={!r}") -> set[str]:
    """The parameters that ``only`` names: parameters, modules (with all below), or patterns with ``*``.

    ``argument``: how the caller wrote a pattern, for the message.

    Raises:
        ModelError: a pattern that matches nothing.
    """
    if only is None:
        return set(names)
    patterns = [only] if isinstance(only, str) else list(only) if isinstance(only, Iterable) else [only]
    if not all(isinstance(p, str) for p in patterns):
        raise ModelError(
            "only is neither a name nor several",
            given=repr(only),
            required="names of parameters or modules, or patterns",
            instead=f"only={names[0]!r}",
        )
    found: set[str] = set()
    for pattern in patterns:
        matched = matching(names, pattern)
        if not matched:
            near = difflib.get_close_matches(str(pattern), [*names, *_modules(names)], 1)
            raise ModelError(
                f"{argument.format(pattern)} matches no parameter",
                given=str(pattern),
                required="the name of a parameter or module, or a pattern such as 'encoder.*.weight'",
                instead=argument.format(near[0] if near else names[0]),
            )
        found |= matched
    return found


def matching(names: Sequence[str], pattern: str) -> set[str]:
    """The names that a name, a module's path or a pattern stands for."""
    return {n for n in names if n == pattern or n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)}


def _modules(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[0] for name in names if "." in name})


def needs_example(scheme: str) -> ModelError:
    """The error for a scheme that looks at the network, asked without an example."""
    return ModelError(
        f"scheme {scheme!r} needs an example",
        given="no batch",
        required="a batch, from which the network and the size of its inputs are read",
        instead="chainrule.initialize_(model, batch, loss), or a scheme that needs none: scheme='he'",
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
