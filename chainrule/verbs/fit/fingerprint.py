"""What tells the data of a saved run from others: sizes and types, and the bytes of the first samples and the last.

Nothing is drawn and no dataset is asked for a sample: what it gives may be random, or slow. So of a dataset of one's
own only the number of samples is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from chainrule.errors import ModelError
from chainrule.frontends.torch.batch import leaves
from chainrule.verbs.fit.data import Arrays, Source

_BYTES = 1 << 20  # of a tensor that are looked at


def fingerprint(source: Source, shared: bool = False) -> dict[str, Any]:
    """Names and values, as data.

    Args:
        shared: among processes: how many batches one of them has is left out.
    """
    if isinstance(source, Arrays):
        found: dict[str, Any] = {"samples": source.samples, "batch size": source.batch_size}
        tensors = [t if source.rows is None else t[source.rows[: source.batch_size]] for t in source.tensors]
        last = -1 if source.rows is None else int(source.rows[-1])
        return found | _looks(tensors, source.batch_size) | {"last sample": _digest(t[last] for t in source.tensors)}
    data = source.iterable
    dataset = getattr(data, "dataset", None)
    found = {}
    if not shared and source.steps is not None:
        found["batches"] = source.steps
    if dataset is not None and hasattr(dataset, "__len__"):
        found["samples"] = len(dataset)
    if isinstance(data, DataLoader):
        if isinstance(dataset, TensorDataset):
            found |= _looks(dataset.tensors, len(dataset))
    elif isinstance(data, list | tuple) and data:
        tensors = [t for _, t in leaves(data[0])]
        found |= _looks(tensors, max([len(t) for t in tensors if t.dim()], default=1))
        found["last batch"] = _digest(t for _, t in leaves(data[-1]))
    return found


def check_same_data(held: dict[str, Any] | None, own: dict[str, Any]) -> None:
    """Raises ModelError if a saved run was of other data than these."""
    if held is None:
        return
    for name in dict.fromkeys((*held, *own)):
        if held.get(name) != own.get(name):
            words = [f"{name}: {value.get(name, 'not known')}" for value in (own, held)]
            raise ModelError(
                f"the saved run is of other data: the {name} differ{'s' if not name.endswith('s') else ''}",
                given=words[0],
                required=words[1],
                instead="the data that the run was started with, or another save_dir",
            )


def _looks(tensors: Iterable[torch.Tensor], rows: int) -> dict[str, Any]:
    tensors = list(tensors)
    shapes = ", ".join(f"(samples, {', '.join(map(str, t.shape[1:]))})" for t in tensors)
    return {
        "shapes": shapes,
        "dtypes": ", ".join(str(t.dtype) for t in tensors),
        "first samples": _digest(t[:rows] if t.dim() else t for t in tensors),
    }


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    made = hashlib.sha256()
    for tensor in tensors:
        if tensor.layout is not torch.strided or not tensor.numel():
            continue
        tensor = tensor.detach()
        if tensor.dim():
            tensor = tensor[: max(1, _BYTES // (tensor[0].numel() * tensor.element_size() or 1))]
        made.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]
