"""Which elements of a parameter this process holds, and under which name the parameter is drawn.

A whole tensor holds all of them. A ``DTensor`` holds, along every dimension, the indices that its placements leave
it: the draws are those of these global indices, whatever the mesh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chainrule.errors import ModelError
from chainrule.verbs.initialize.generator import drawn_at, fill

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # compile, FSDP, checkpointing
_PARALLEL = ("DistributedDataParallel", "DataParallel")  # their own name for what they wrap is "module"


@dataclass(frozen=True)
class Held:
    """The part of a logical tensor that is here.

    Attributes:
        shape: of the whole. index: per dimension the indices that are held, None where all are.
        local: the tensor that holds them, which is written to.
    """

    shape: tuple[int, ...]
    index: tuple[torch.Tensor | None, ...]
    local: torch.Tensor

    @property
    def whole(self) -> bool:
        """Whether everything is here."""
        return all(i is None for i in self.index)

    def draw(self, law: str, key: int, scale: float) -> torch.Tensor:
        """The held elements of a stream, float32, of the local shape."""
        device, start = self.local.device, self._start()
        if start is None:
            return drawn_at(self._global(device), law, key, scale)
        out = torch.empty(self.local.numel(), dtype=torch.float32, device=device)
        fill(out, law, key, start, scale)
        return out.reshape(self.local.shape)

    def draw_in_place(self, law: str, key: int, scale: float) -> bool:
        """Draws straight into the local tensor where its memory has the order of a stream; whether it did."""
        start = self._start()
        if start is None or self.local.dtype != torch.float32 or not self.local.is_contiguous():
            return False
        fill(self.local.detach().view(-1), law, key, start, scale)
        return True

    def _start(self) -> int | None:
        """The place in the stream of the first element held, where all follow one another; None elsewhere."""
        if any(i is not None for i in self.index[1:]):
            return None
        rows = self.index[0] if self.index else None
        if rows is None or not rows.numel():
            return 0
        return int(rows[0]) * _product(self.shape[1:]) if int(rows[-1] - rows[0]) == rows.numel() - 1 else None

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The held part of a whole tensor."""
        for axis, index in enumerate(self.index):
            if index is not None:
                whole = whole.index_select(axis, index.to(whole.device))
        return whole

    def _global(self, device: torch.device) -> torch.Tensor:
        total, stride = torch.zeros((), dtype=torch.int64, device=device), 1
        for axis in reversed(range(len(self.shape))):
            own = self.index[axis]
            own = torch.arange(self.shape[axis]) if own is None else own
            shape = [1] * len(self.shape)
            shape[axis] = -1
            total = total + (own.to(device) * stride).reshape(shape)
            stride *= self.shape[axis]
        return total


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is a ``DTensor`` (asked without loading torch.distributed)."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def held(name: str, parameter: torch.Tensor) -> Held:
    """The elements of a parameter that are here.

    Raises:
        ModelError: a placement that neither replicates nor splits.
    """
    shape = tuple(parameter.shape)
    if not is_sharded(parameter):
        return Held(shape, (None,) * len(shape), parameter)
    sharded: Any = parameter
    with torch.no_grad():
        local = sharded.to_local()
    index: list[torch.Tensor | None] = [None] * len(shape)
    coordinate = sharded.device_mesh.get_coordinate()
    for axis_of_mesh, placement in enumerate(sharded.placements):
        if placement.is_replicate() or coordinate is None:
            continue
        dim = getattr(placement, "dim", None)
        if dim is None or placement.is_partial():
            raise ModelError(
                f"{name} is a DTensor with the placement {placement}",
                given=str(tuple(sharded.placements)),
                required="parameters that are replicated or split along their dimensions",
                instead="p.redistribute(placements=[Replicate()]) first",
            )
        before = index[dim] if index[dim] is not None else torch.arange(shape[dim])
        pieces = _chunks(before, int(getattr(placement, "split_factor", 1)))  # FSDP over tensor parallelism
        count, mine = sharded.device_mesh.size(axis_of_mesh), coordinate[axis_of_mesh]
        index[dim] = torch.cat([_chunks(piece, count)[mine] for piece in pieces])
    return Held(shape, tuple(index), local)


def _chunks(index: torch.Tensor, count: int) -> list[torch.Tensor]:
    """As torch splits: equal pieces rounded up, the last ones smaller or empty."""
    size = -(-index.numel() // count)
    return [index[min(k * size, index.numel()) : min((k + 1) * size, index.numel())] for k in range(count)]


def parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, nn.Parameter]]:
    """(name, name to draw under, module, parameter) of every parameter, a tied one once, under its first name.

    The name to draw under is that in the bare model: data parallel, compiling, sharding and checkpointing wrappers
    put words of their own into the names, and must not change the numbers.
    """
    seen: set[int] = set()
    for path, bare, module in _modules(model):
        for own, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield _joined(path, own), _joined(bare, own), module, parameter


def _modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(path, path without wrappers, module) as ``named_modules`` orders them."""
    seen: set[int] = set()
    stack: list[tuple[str, str, nn.Module]] = [("", "", model)]
    while stack:
        path, bare, module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield path, bare, module
        wraps = type(module).__name__ in _PARALLEL
        below = []
        for name, child in module._modules.items():
            if child is not None:
                silent = name in _WRAPPERS or (wraps and name == "module")
                below.append((_joined(path, name), bare if silent else _joined(bare, name), child))
        stack += reversed(below)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
