"""How far the gates of recurrent layers are squashed: their activations are no ops of their own.

z = W_ih x + W_hh h + b is computed again from what went in; of layers over whole sequences, for the first step and the
first layer, where h is at hand.
"""

from __future__ import annotations

from typing import Any

import torch

from chainrule.verbs.diagnose.values import Call, Liveness

# op -> how many gates are sigmoids and which slice is a tanh, of the blocks of the weight
GATES = frozenset("lstm gru rnn_tanh lstm_cell gru_cell rnn_tanh_cell".split())


def gates(name: str, args: tuple[Any, ...]) -> Liveness | None:
    """The share of gates whose derivative is below a thousandth of the largest; None where it cannot be told."""
    if name.endswith("_cell"):
        x, hidden, *weights = args
    else:
        if isinstance(args[1], torch.Tensor) and not isinstance(args[2], (list, tuple)):
            return None
        if not isinstance(args[2], (list, tuple)) or len(args) < 9:
            return None  # a packed sequence
        x, hidden, weights = args[0], args[1], list(args[2])
        x = x[:, 0] if args[8] and x.dim() == 3 else x[0]
        if not args[3]:
            weights = weights[:2]
    h = hidden[0] if isinstance(hidden, (list, tuple)) else hidden
    h = h[0] if h.dim() == 3 else h
    if x.dim() != 2 or h.dim() != 2 or len(weights) < 2:
        return None
    w_ih, w_hh, *biases = (w.detach() for w in weights[:4] if isinstance(w, torch.Tensor))
    if w_ih.shape[1] != x.shape[1] or w_hh.shape[1] != h.shape[1]:
        return None  # projections
    with torch.no_grad():
        z = x.detach() @ w_ih.T + h.detach() @ w_hh.T + sum(biases)
        count = {"lstm": 4, "gru": 3}.get(name.removesuffix("_cell"), 1)
        parts = z.chunk(count, 1)
        tanh = {4: 2, 3: 2, 1: 0}[count]
        slopes = [
            1 - p.tanh().square() if k == tanh else 4 * p.sigmoid() * (1 - p.sigmoid()) for k, p in enumerate(parts)
        ]
        size = torch.cat(slopes, 1).to(torch.float32)
        return Liveness(
            units=size.mean(0),
            dead=size.amax(0) == 0,
            squashed=float((size < 1e-3).to(torch.float32).mean()),
            second=float(size.square().mean()),
        )


def over_time(call: Call) -> list[float]:
    """rms of the gradient at each step's input, first step first, of the last step's output; empty where unknown.

    A recurrent layer is one op, so that its steps are seen by running it once more, from a seeded cotangent.
    """
    again: Any = call.again
    if again is None or len(again.args) < 9 or not isinstance(again.args[2], (list, tuple)):
        return []
    x, rest, first = again.args[0], again.args[1:], bool(again.args[8])
    if x.dim() != 3:
        return []
    rest = [*rest[:5], False, *rest[6:]] if len(rest) >= 8 else rest  # without dropout
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        leaf = x.detach().clone().requires_grad_()
        detached = [_detached(a) for a in rest]
        out = again.func(leaf, *detached, **again.keywords)[0]
        last = out[:, -1] if first else out[-1]
        cotangent = torch.randn(last.shape, generator=torch.Generator().manual_seed(0)).to(last)
        (grad,) = torch.autograd.grad((last * cotangent).sum(), leaf)
    steps = grad.detach().double() if first else grad.detach().double().transpose(0, 1)
    return steps.square().mean((0, 2)).sqrt().tolist()


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return [_detached(v) for v in value] if isinstance(value, (list, tuple)) else value
