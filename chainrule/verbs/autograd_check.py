"""The self-check of an emitted autograd function: gradcheck, plain autograd of the formula, and float32.

Inputs are drawn at small sizes, of a kind for which the formula and its gradients are finite (found by evaluation
when the file is written): standard normal, positive, or square matrices near the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chainrule.interpreters.evaluate import evaluate, numeric
from chainrule.ir import Dim, Node, toposort
from chainrule.verbs.residual_plan import ResidualPlan

_CHECK = '''\
def check():
    """Checks the backward pass; raises where it is wrong."""
    inputs = example()
    wrt = {wrt}

    def leaves(dtype, wanted=wrt):
        return [x.to(dtype).clone().requires_grad_(k in wanted) for k, x in enumerate(inputs)]

    def gradients(function, dtype, wanted=wrt):
        arguments = leaves(dtype, wanted)
        value = function(*arguments)
        if not value.requires_grad:
            return value, [torch.zeros_like(arguments[k]) for k in wanted]
        upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).reshape(value.shape).to(dtype)
        found = torch.autograd.grad(value, [arguments[k] for k in wanted], upstream, allow_unused=True)
        return value, [torch.zeros_like(arguments[k]) if f is None else f for k, f in zip(wanted, found)]

    def apart(found, expected):
        # Relative to the largest; where plain autograd has no finite value there is nothing to compare with.
        pairs = [(f[e.isfinite()], e[e.isfinite()]) for f, e in zip(found, expected) if e.isfinite().any()]
        scale = max((float(e.abs().max()) for _, e in pairs), default=0.0) or 1.0
        return max((float((f - e).abs().max()) for f, e in pairs), default=0.0) / scale

    # 1. In float64 against finite differences.
    torch.autograd.gradcheck({name}, leaves(torch.float64), atol=1e-5, rtol=1e-3)
    # 2. Against plain autograd of the formula: value, all gradients, each gradient alone.
    value, expected = gradients(reference, torch.float64)
    own, found = gradients({name}, torch.float64)
    torch.testing.assert_close(own, value, rtol=1e-9, atol=1e-9)
    assert apart(found, expected) < 1e-8, "the gradients differ from plain autograd"
    for k, e in zip(wrt, expected):
        assert apart(gradients({name}, torch.float64, (k,))[1], [e]) < 1e-8, f"gradient {{k}} alone differs"
    # 3. In float32: about as close to float64 as plain autograd comes in float32.
    plain = apart([g.double() for g in gradients(reference, torch.float32)[1]], expected)
    single = apart([g.double() for g in gradients({name}, torch.float32)[1]], expected)
    assert single <= 4 * plain + 1e-5, f"in float32 the error is {{single:.1e}}, of plain autograd {{plain:.1e}}"
    print("ok")


if __name__ == "__main__":
    check()
'''

# How a variable is drawn: source of it, and the same in NumPy. Tried in this order.
_RECIPES = (
    ("torch.randn({shape}, dtype=torch.float64)", lambda r, s: r.standard_normal(s)),
    ("torch.rand({shape}, dtype=torch.float64) + 0.5", lambda r, s: r.uniform(0.5, 1.5, s)),
    ("torch.rand({shape}, dtype=torch.float64) * 0.4 + 0.3", lambda r, s: r.uniform(0.3, 0.7, s)),
    ("torch.eye({size}, dtype=torch.float64) + 0.1 * torch.randn({shape}, dtype=torch.float64)", None),
)
_DRAWS = 30
_LARGEST = 1e4  # of a value or gradient; beyond that finite differences say little


def check_source(plan: ResidualPlan, name: str, arguments: Sequence[str]) -> str:
    """The functions ``example`` and ``check`` and the call of the latter."""
    ways = [example_sizes(plan.inputs, reverse) for reverse in (False, True)]
    found = [_recipes(plan, ways[0])]
    if found[0][1] and ways[1] != ways[0]:
        found.append(_recipes(plan, ways[1]))
    k = min(range(len(found)), key=lambda k: found[k][1])
    sizes, (recipes, _) = ways[k], found[k]
    lines = ["def example():"]
    shown = ", ".join(f"{k} = {v}" for k, v in sizes.items())
    lines.append(f'    """Random inputs in float64{": " + shown if shown else ""}."""')
    lines.append("    torch.manual_seed(0)")
    for argument, node, recipe in zip(arguments, plan.inputs, recipes, strict=True):
        shape = numeric(node.shape, sizes)
        inside = ", ".join(map(str, shape)) if shape else "()"
        lines.append(f"    {argument} = {_RECIPES[recipe][0].format(shape=inside, size=shape[-1] if shape else 0)}")
    lines.append(f"    return {', '.join(arguments)}{',' if len(arguments) == 1 else ''}")
    wrt = tuple(k for k, g in enumerate(plan.gradients) if g is not None)
    return "\n".join([*lines, "", "", _CHECK.format(name=name, wrt=wrt)])


def example_sizes(inputs: Sequence[Node], reverse: bool = False) -> dict[str, int]:
    """A small number for every named dimension such that every shape is positive.

    Dimensions are numbered so that those that lead come out larger, or with ``reverse`` smaller: in one of the two
    a matrix product ``X' X`` is invertible.
    """
    names = list(dict.fromkeys(n for i in inputs for s in i.shape if isinstance(s, Dim) for n in sorted(s.names)))
    if reverse:
        names.reverse()
    for spread in range(1, 6):
        sizes = {n: 2 + spread * (len(names) - k - 1) // max(1, len(names) // 3) for k, n in enumerate(names)}
        sizes = {n: min(s, 5) if spread < 3 else s for n, s in sizes.items()}
        if all(isinstance(s, int) and s > 0 for i in inputs for s in numeric(i.shape, sizes)):
            return sizes
    return dict.fromkeys(names, 3)


def _recipes(plan: ResidualPlan, sizes: dict[str, int]) -> tuple[list[int], int]:
    """For each input the number of the recipe by which values are finite and of moderate size; how often not."""
    square = [len(i.shape) >= 2 and i.shape[-1] == i.shape[-2] for i in plan.inputs]
    ways = [[k] * len(plan.inputs) for k in range(3)]
    if any(square):
        ways += [[3 if s else k for s in square] for k in range(3)]
    roots = [plan.output, *(g for g in plan.gradients if g is not None)]
    best, fewest = ways[0], _DRAWS + 1
    for way in ways:
        bad = 0
        for seed in range(_DRAWS):
            generator = np.random.default_rng(seed)
            values = {}
            for node, recipe in zip(plan.inputs, way, strict=True):
                shape, draw = numeric(node.shape, sizes), _RECIPES[recipe][1]
                near = 0.1 * generator.standard_normal(shape)
                values[node] = draw(generator, shape) if draw is not None else np.eye(shape[-1]) + near
            used = {n for n in toposort(roots) if n.is_leaf}
            values = {n: v for n, v in values.items() if n in used}
            if plan.cotangent in used:
                values[plan.cotangent] = np.ones(numeric(plan.cotangent.shape, sizes))
            found = evaluate(roots, values, sizes)
            bad += any(not np.all(np.isfinite(v)) or np.max(np.abs(v), initial=0.0) > _LARGEST for v in found)
        if bad < fewest:
            best, fewest = way, bad
        if not bad:
            break
    return best, fewest
