"""The largest eigenvalue of the Hessian on the batch, by differences of gradients.

A Hessian-vector product is (g(w + t v) - g(w)) / t: one pass each, for any model, also where autograd cannot
differentiate twice (fused attention, checkpointing). Lanczos needs few of them.
"""

from __future__ import annotations

import math

import torch

from chainrule.errors import ModelError
from chainrule.frontends.torch import generator_states, restore_generators
from chainrule.verbs.diagnose.examination import Examination

PRODUCTS = 8


def largest_eigenvalue(e: Examination, products: int = PRODUCTS) -> float | None:
    """lambda_max, from below; None where gradients are not finite.

    Source: Lanczos 1950, with full reorthogonalisation; the draws of dropout are the same in every pass.
    """
    found = e.__dict__.get("_top", "unknown")
    if found != "unknown":
        return found
    e.__dict__["_top"] = top = _lanczos(e, products)
    return top


def _lanczos(e: Examination, products: int) -> float | None:
    subject = e.subject
    names = [n for n in subject.trainable if e.seen.gradients[n] is not None and not e.seen.gradients[n].is_sparse]  # type: ignore[union-attr]
    if not names:
        return None
    parameters = [subject.trainable[n] for n in names]
    generator = torch.Generator().manual_seed(0)
    with subject.safely():
        states = generator_states()

        def gradient() -> torch.Tensor:
            restore_generators(states)
            _, grads = subject.gradients()
            parts = [
                torch.zeros_like(p) if (g := grads[n]) is None else g for n, p in zip(names, parameters, strict=True)
            ]
            return torch.cat([g.detach().double().flatten().cpu() for g in parts])

        def moved(v: torch.Tensor, size: float) -> None:
            at = 0
            with torch.no_grad():
                for p, start in zip(parameters, starts, strict=True):
                    part = v[at : at + p.numel()].reshape(p.shape).to(p)
                    p.copy_(start + size * part)
                    at += p.numel()

        starts = [p.detach().clone() for p in parameters]
        norm = math.sqrt(sum(float((s.double() ** 2).sum()) for s in starts)) or 1.0
        try:
            base = gradient()
            # The gradient itself starts nearer to the steep directions than chance does.
            v = base + 0.1 * float(base.norm()) / math.sqrt(base.numel()) * torch.randn(
                base.numel(), generator=generator, dtype=torch.float64
            )
            if not bool(torch.isfinite(v).all()) or float(v.norm()) == 0.0:
                return None
            v = v / v.norm()
            basis, alphas, betas = [v], [], []
            size = 1e-3 * norm / math.sqrt(max(base.numel(), 1)) * math.sqrt(base.numel()) * 1e-1
            for _ in range(min(products, base.numel())):
                moved(basis[-1], size)
                w = (gradient() - base) / size
                if not bool(torch.isfinite(w).all()):
                    return None
                alphas.append(float(w @ basis[-1]))
                for b in basis:
                    w = w - (w @ b) * b
                beta = float(w.norm())
                if beta < 1e-8 * max(abs(alphas[-1]), 1e-30):
                    break
                betas.append(beta)
                basis.append(w / beta)
        except ModelError:
            return None
    k = len(alphas)
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    for i in range(k - 1):
        matrix[i, i + 1] = matrix[i + 1, i] = betas[i]
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    return top if top > 0 else None
