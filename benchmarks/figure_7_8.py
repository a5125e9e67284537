"""Loss and all gradients of figure 7.8's network: the derived step against eager autograd, results checked equal first.

Run: python -m benchmarks.figure_7_8
"""

from __future__ import annotations

import torch

from benchmarks.timing import best_times, machine
from chainrule import examples
from chainrule.frontends.torch import trace_case
from chainrule.verbs.fit import CompiledStep


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    case = examples.figure_7_8()
    model, batch, loss = case.model, case.batch, case.loss
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    step = case.step
    assert callable(loss)

    def eager() -> None:
        model.zero_grad(set_to_none=True)
        loss(model(batch[0]), batch[1]).backward()

    eager()
    _, grads = step(parameters, batch)
    worst = max(float((grads[n] - p.grad).abs().max()) for n, p in model.named_parameters())
    tensors = {**step._case.values, **{step._case.parameters[n]: p for n, p in parameters.items()}}
    inputs = [tensors[i] for i in step.graph.inputs]
    checked = CompiledStep(model, loss)
    times = best_times(
        {
            "torch eager autograd": eager,
            "derived step, arguments checked": lambda: checked(parameters, batch),
            "derived step, compiled function": lambda: step._compiled(*inputs),
        }
    )
    trace_case(model, batch, loss)
    traced = best_times({"trace": lambda: trace_case(model, batch, loss)}, rounds=10)["trace"]
    print(machine())
    print(f"a trace takes {traced * 1e3:.1f} ms")
    print(f"largest difference of gradients: {worst:.1e}")
    print(f"{'loss and all gradients, batch 10':36} {'us/step':>8} {'ratio':>6}")
    for name, seconds in times.items():
        print(f"{name:36} {seconds * 1e6:8.1f} {seconds / times['torch eager autograd']:6.2f}")


if __name__ == "__main__":
    main()
