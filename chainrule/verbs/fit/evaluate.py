"""The loss on data that is not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from chainrule.errors import ModelError
from chainrule.frontends.torch import loss_value
from chainrule.frontends.torch.batch import leaves
from chainrule.verbs.fit.data import Source


def evaluate(model: nn.Module, source: Source, loss: Any, objective: Any) -> float:
    """The mean loss over the samples, the model in evaluation mode; its own modes are put back.

    Raises:
        ModelError: there is no batch.
    """
    total, count = 0.0, 0
    # An objective may take derivatives by the inputs, which needs a tape.
    with evaluating(model), torch.set_grad_enabled(objective is not None):
        for batch in source.batches():
            size = next((len(tensor) for _, tensor in leaves(batch) if tensor.dim()), 1)
            total += float(loss_value(model, batch, loss, objective).detach()) * size
            count += size
    if not count:
        raise ModelError("the validation data gave no batch", required="at least one batch")
    return total / count


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
