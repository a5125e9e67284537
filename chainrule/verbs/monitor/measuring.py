"""One measured step: hooks that take sizes as values and gradients pass, summed over processes in one reduction.

Numbers stay on the device until the step is over: one stack, one all-reduce where there are several processes, and one
copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import _foreach_norm, _foreach_sub, nn  # type: ignore[attr-defined]

from chainrule.verbs.diagnose.sharding import own_part
from chainrule.verbs.diagnose.values import tensors_in

_DYING = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Threshold)


class Measurement:
    """Hooks for one step. They are installed here and gone after ``remove``.

    Args:
        model: what is called. modules: those that are measured, by name. parameters: what the optimizer moves.
    """

    def __init__(
        self, model: nn.Module, modules: Sequence[tuple[str, nn.Module]], parameters: Sequence[torch.Tensor]
    ) -> None:
        self.names: list[str] = []
        self.forward: list[tuple[torch.Tensor, int]] = []  # norm, and of how many entries
        self.backward: dict[int, tuple[torch.Tensor, int]] = {}
        self.alive: list[tuple[str, torch.Tensor]] = []  # activation, which units were on
        self.batch = 0
        self.parameters = parameters
        self.norms: Sequence[torch.Tensor] = []
        self.products: Sequence[torch.Tensor] = []  # of the gradient with that of the step before
        self.earlier: Sequence[torch.Tensor] = []
        self._fresh: dict[int, torch.Tensor] = {}
        self._clean: bool | None = None  # whether there was no gradient before the step's first backward pass
        self.left: torch.Tensor | None = None
        self._handles = [model.register_forward_hook(self._forward, with_kwargs=True)]
        self._weighted = {name for name, module in modules if not isinstance(module, _DYING)}
        for name, module in modules:
            self._handles.append(module.register_forward_hook(self._hook(name)))
        self._small = min((p for p in parameters if p.requires_grad), key=lambda p: p.numel(), default=None)
        self.unclipped: dict[int, torch.Tensor] = {}
        if self._small is not None:
            self._handles.append(self._small.register_hook(self._contribution))
            self._handles.append(self._small.register_post_accumulate_grad_hook(self._accumulated))

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ---- hooks ---------------------------------------------------------------------------------------------
    def _forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Samples count for the step when a gradient arrives at what was made of them: an evaluation has none."""
        first = next(tensors_in((args, kwargs)), None)
        size = int(first.shape[0]) if first is not None and first.dim() else 0
        made = list(tensors_in(output))
        if not size or not torch.is_grad_enabled():
            return
        if not made:  # an object that is not known to hold tensors
            self.batch += size if module.training else 0
            return
        counted: list[bool] = []

        def arrived(grad: torch.Tensor) -> None:
            if not counted:
                counted.append(True)
                self.batch += size

        for t in made:
            if t.requires_grad:
                t.register_hook(arrived)

    def _hook(self, name: str) -> Any:
        def dying(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.dim() > 1 and output.numel() and torch.is_grad_enabled():
                d = output.detach()
                # Channels of images are their second dimension, units of anything else the last.
                if d.dim() >= 4:
                    top = d.amax((0, *range(2, d.dim())))
                else:
                    top = (d.flatten(0, -2) if d.dim() > 2 else d).amax(0)
                self.alive.append((name, top > 0))

        def weighted(module: nn.Module, args: Any, output: Any) -> None:
            t = output if isinstance(output, torch.Tensor) else next(tensors_in(output), None)
            if t is None or not t.is_floating_point() or not t.numel() or not torch.is_grad_enabled():
                return
            k = len(self.names)
            self.names.append(name)
            self.forward.append((_size(t.detach()), t.numel()))
            if t.requires_grad:

                def gradient(grad: torch.Tensor) -> None:
                    self.backward[k] = (_size(grad.detach()), grad.numel())

                t.register_hook(gradient)

        return weighted if name in self._weighted else dying

    def _contribution(self, grad: torch.Tensor) -> None:
        if self._clean is None:
            self._clean = self._small is not None and self._small.grad is None
        if self._clean:
            return  # zero_grad() has taken everything away
        with torch.no_grad():
            self._fresh[0] = self._fresh[0] + grad if 0 in self._fresh else grad.detach().clone()

    def _accumulated(self, p: torch.Tensor) -> None:
        if p.grad is None:
            return
        with torch.no_grad():
            if 0 in self._fresh and p.grad.shape == self._fresh[0].shape:
                self.left = (p.grad - self._fresh[0]).abs().max() / self._fresh[0].abs().max().clamp_min(1e-30)
            if self._clean or self.left is not None:
                self.unclipped[0] = _size(p.grad.detach())

    def at_step(self, previous: Sequence[torch.Tensor | None] = ()) -> None:
        """The optimizer is about to step: sizes of the gradients as it sees them, and their product with the last."""
        pairs = [(own_part(p.grad), g) for p, g in zip(self.parameters, previous, strict=False)
                 if p.grad is not None and g is not None and not p.grad.is_sparse]  # fmt: skip
        self.products = [torch.dot(a.flatten(), b.flatten()) for a, b in pairs]
        self.earlier = _foreach_norm([b for _, b in pairs]) if pairs else []
        grads = [own_part(p.grad) for p in self.parameters if p.grad is not None and not p.grad.is_sparse]
        self.norms = _foreach_norm(grads) if grads else []
        small = self._small
        if small is not None and small.grad is not None and self.unclipped:
            self.unclipped[1] = _size(own_part(small.grad.detach()))

    # ---- the entry -----------------------------------------------------------------------------------------
    def entry(
        self, step: int, names: Sequence[str], parameters: Sequence[torch.Tensor], before: Sequence[torch.Tensor]
    ) -> dict[str, Any]:
        """All numbers of the step, over all processes."""
        seen = range(len(self.names))
        now = [own_part(p.detach()) for p in parameters]
        old = list(before)
        both = _foreach_norm([*_foreach_sub(now, old), *old]) if old else []
        changes, sizes = both[: len(old)], both[len(old) :]
        zero = self.forward[0][0].new_zeros(()) if self.forward else torch.zeros(())
        rows = [
            [self.forward[k][0] for k in seen],
            [self.backward[k][0] if k in self.backward else zero for k in seen],
            [*changes], [*sizes], [*self.norms], [*self.earlier], [*self.products],
            [self.left if self.left is not None else zero, self.unclipped.get(0, zero), self.unclipped.get(1, zero)],
        ]  # fmt: skip
        flat = [own_part(t) for row in rows for t in row]
        alike = len({(t.dtype, t.device) for t in flat}) == 1
        device = flat[0].device
        packed = torch.stack(flat if alike else [t.to(device, torch.float64) for t in flat])
        # Norms of parts add up as squares; what is left of a gradient and its clipping are averaged below.
        square = len(flat) - 3 - len(self.products)
        counts = [float(self.forward[k][1]) for k in seen]
        counts += [float(self.backward[k][1]) if k in self.backward else 0.0 for k in seen] + [float(self.batch)]
        processes = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            packed = packed.double()
            packed[:square] = packed[:square] ** 2
            packed = torch.cat(
                [packed, torch.tensor(counts, dtype=torch.float64, device=device)]
                + [mask.to(device, torch.float64) for _, mask in self.alive]
            )
            torch.distributed.all_reduce(packed)  # the one reduction of a report
            found = packed.tolist()
        else:
            masks = [mask.to(device) for _, mask in self.alive]
            found = packed.tolist()
            found[:square] = [n * n for n in found[:square]]
            found += [*counts, *(torch.cat(masks).tolist() if masks else ())]
        sharded = any(hasattr(p, "to_local") for p in parameters)
        return self._unpacked(step, names, iter(found), [len(r) for r in rows], processes, sharded)

    def _unpacked(
        self, step: int, names: Sequence[str], numbers: Iterator[float], lengths: Sequence[int], processes: int,
        sharded: bool,
    ) -> dict[str, Any]:  # fmt: skip
        forward, backward, changes, sizes, norms, earlier, products, (left, free, clipped) = (
            [next(numbers) for _ in range(n)] for n in lengths
        )
        n_forward, n_backward = ([next(numbers) for _ in forward] for _ in range(2))
        batch = next(numbers)
        layers: dict[str, dict[str, float | None]] = {}
        used: dict[str, int] = {}
        for k, name in enumerate(self.names):
            used[name] = used.get(name, 0) + 1
            key = name if used[name] == 1 else f"{name} (use {used[name]})"
            # Each process has the mean over its own samples as its loss; gradients are averaged.
            slope = _root(backward[k] / processes**2, n_backward[k])
            layers[key] = {
                "forward": _root(forward[k], n_forward[k]), "backward": slope, "dead": None,
            }  # fmt: skip
        for name, mask in self.alive:
            off = sum(next(numbers) == 0.0 for _ in range(mask.numel())) / max(mask.numel(), 1)
            row = layers.setdefault(name, {"forward": None, "backward": None, "dead": off})
            row["dead"] = min(off, row["dead"] if row["dead"] is not None else 1.0)  # dead in every use
        updates = {
            name: math.sqrt(change / size) if size > 0 else (math.inf if change > 0 else 0.0)
            for name, change, size in zip(names, changes, sizes, strict=False)
        }
        squares = sum(norms)
        norm = math.sqrt(squares if sharded else squares / processes) if squares >= 0 else squares
        return {
            "step": step, "grad_norm": norm, "batch": int(batch), "leftover": left / processes,
            "clipped": clipped / free if free > 0 else 1.0,
            "noise_scale": noise_scale(sum(norms), sum(earlier), sum(products), batch) if products else None,
            "layers": layers, "updates": updates,
        }  # fmt: skip


def noise_scale(now: float, before: float, product: float, batch: float) -> float | None:
    """The batch size at which noise and signal are equal, from two gradients in a row: B tr(S) / |G|^2.

    Their product estimates |G|^2, what their squares have more than that is tr(S) / B. One pair is a rough estimate;
    None where the two gradients point apart.

    Source: McCandlish et al. 2018, appendix A, with the second batch in place of the larger one.
    """
    return batch * max((now + before) / 2 - product, 0.0) / product if product > 0 else None


def leaf_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that are measured."""
    return [(n.removeprefix("module."), m) for n, m in model.named_modules()
            if next(m.children(), None) is None and (isinstance(m, _DYING) or _weighted(m))]  # fmt: skip


def _weighted(module: nn.Module) -> bool:
    """Whether a module has a weight of rank two or more: a layer, and no normalisation."""
    return any(p.dim() >= 2 for p in module.parameters(recurse=False))


def _size(t: torch.Tensor) -> torch.Tensor:
    wide = t.is_complex() or t.dtype in (torch.float32, torch.float64)
    return torch.linalg.vector_norm(t if wide else t.float())


def _root(total: float, count: float) -> float | None:
    if not count:
        return None
    return math.sqrt(total / count) if total >= 0 else total
