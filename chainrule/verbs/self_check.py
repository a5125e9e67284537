"""The check that an emitted file carries: every derivative against central differences, at points of its domain."""

from __future__ import annotations

from collections.abc import Sequence

from chainrule.backends.identifiers import unique
from chainrule.backends.source import Function, Language
from chainrule.backends.source.sizes import with_valid_sizes
from chainrule.interpreters.differentiate import vjp, zeros_like
from chainrule.ir import Graph, Node, constant
from chainrule.ops.movement import broadcast
from chainrule.verbs.derivatives import Derivatives
from chainrule.verbs.domain import Domain, domain

_AGREE = '''\
def _agree(what, function, tangent, x, rng, tolerance=1e-6):
    """Whether tangent(d) is (f(x + t d) - f(x - t d)) / 2t in random directions d; those across a kink are left out."""
    errors = []
    for _ in range(20):
        d = {normal}
        d = d / {np}.sum(d * d) ** 0.5
        t = 1e-6 * max(1.0, float({np}.max({np}.abs(x))))
        slope, closer = ((function(x + s * d) - function(x - s * d)) / (2 * s) for s in (t, t / 2))
        found = tangent(d)
        size = max(_norm(slope), _norm(found), 1e-3 * max(1.0, _norm(function(x))))
        if _norm(slope - closer) <= 1e-4 * size or not _norm(slope) < float("inf"):
            errors.append(_norm(slope - found) / size)
        if len(errors) == 3:
            break
    if len(errors) < 3 or not all(error <= tolerance for error in errors):
        raise AssertionError(f"{{what}} differs from finite differences: relative errors {{errors}}")
    return f"{{what}} ({{max(errors):.0e}})"


def _norm(value):
    return float({np}.sum(value * value)) ** 0.5
'''

_DRAWS = {
    "numpy": {
        "normal": "rng.standard_normal({shape})",
        "positive": "rng.uniform(0.5, 1.5, {shape})",
        "small": "rng.uniform(-0.8, 0.8, {shape})",
        "inside": "rng.uniform(0.2, 0.8, {shape})",
        "whole": "rng.integers(0, 2, {shape})",
    },
    "torch": {
        "normal": "torch.randn({shape}, generator=rng, dtype=torch.float64)",
        "positive": "0.5 + torch.rand({shape}, generator=rng, dtype=torch.float64)",
        "small": "1.6 * torch.rand({shape}, generator=rng, dtype=torch.float64) - 0.8",
        "inside": "0.2 + 0.6 * torch.rand({shape}, generator=rng, dtype=torch.float64)",
        "whole": "torch.randint(0, 2, {shape}, generator=rng)",
    },
}
_DRAWS["jax"] = {law: f"jnp.asarray({text})" for law, text in _DRAWS["numpy"].items()}
_WIDTH = 110  # columns of a line
_GENERATORS = {
    "numpy": "np.random.default_rng(seed)",
    "torch": "torch.Generator().manual_seed(seed)",
    "jax": "np.random.default_rng(seed)",
}


def check_source(found: Derivatives, functions: Sequence[Function], language: Language) -> str:
    """``_agree``, ``check`` and the lines that run it."""
    np = language.np
    at = _domain(found)
    scope = _Scope(functions, language)
    arguments = scope.arguments
    # The sizes of the check are those of the functions: same names, same order.
    graph = Graph((*found.inputs, *found.vectors), tuple(o for p in found.parts for o in p.graph.outputs))
    taken: list[str] = []
    for i in graph.inputs:
        taken.append(unique(str(i.params["name"]), taken, ()))
    renamed, names = with_valid_sizes(graph, taken)
    image = dict(zip(graph.inputs, renamed.inputs, strict=True))
    lines = [f"{scope.rng} = {_GENERATORS[language.name]}"]
    if language.name == "jax":
        lines.insert(0, 'jax.config.update("jax_enable_x64", True)')
    lines += [f"{names[name]} = {size}" for name, size in at.sizes.items() if name in names]
    for name, node in zip(arguments, found.inputs, strict=True):
        lines += _drawn(name, image[node], at.laws[node], language, scope.rng)
    lines += _checks(found, functions, language, scope)
    normal = _DRAWS[language.name]["normal"].format(shape="x.shape" if np != "np" else "np.shape(x)")
    body = "\n".join(f"    {line}" for line in lines)
    doc = '"""Compares every derivative with central differences at a random point, in float64."""'
    return (
        f"{_AGREE.format(np=np, normal=normal)}\n\ndef check(seed=0):\n    {doc}\n"
        f'{body}\n    print("ok: " + ", ".join({scope.found}))\n\n\nif __name__ == "__main__":\n    check()\n'
    )


class _Scope:
    """The names inside ``check``: variables may be called as what it uses (``d``, ``rng``, ``value``).

    Attributes:
        arguments: what the variables are called there. direction, rng, found, upstream: names of its own.
    """

    def __init__(self, functions: Sequence[Function], language: Language) -> None:
        sizes = [s for f in functions for s in f.sizes]
        called = {*(f.name for f in functions), "check", "print", "_agree", "_norm", language.np, "jax"}
        taken: list[str] = list(dict.fromkeys(sizes))
        names: list[str] = []
        for name in (*functions[0].arguments, "d", "rng", "found", "g_of_value"):
            names.append(unique(name, taken, called))
            taken.append(names[-1])
        self.arguments = tuple(names[:-4])
        self.direction, self.rng, self.found, self.upstream = names[-4:]


def _domain(found: Derivatives) -> Domain:
    value = found.parts[0].graph.outputs[0]
    seed = broadcast(constant(1.0, value.type.dtype), value.shape)
    back = vjp([value], [seed], found.wrt)
    slopes = [b if b is not None else zeros_like(w) for w, b in zip(found.wrt, back, strict=True)]
    return domain(found.inputs, value, found.wrt, slopes)


def _shape(node: Node) -> str:
    return f"({', '.join(map(str, node.shape))}{',' if node.type.rank == 1 else ''})"


def _drawn(name: str, node: Node, law: str, language: Language, rng: str) -> list[str]:
    draws = {law: _with_generator(text, rng) for law, text in _DRAWS[language.name].items()}
    if law != "definite":
        return [f"{name} = {draws[law].format(shape=_shape(node))}"]
    axes = f"{language.np}.swapaxes({name}, -1, -2)"
    return [
        f"{name} = {draws['normal'].format(shape=_shape(node))}",
        f"{name} = {name} @ {axes} / {node.shape[-1]} + {language.np}.eye({node.shape[-1]})  # positive definite",
    ]


def _with_generator(draw: str, rng: str) -> str:
    return draw.replace("rng.", f"{rng}.").replace("generator=rng", f"generator={rng}")


def _checks(found: Derivatives, functions: Sequence[Function], language: Language, scope: _Scope) -> list[str]:
    np, d = language.np, scope.direction
    by_kind = {part.kind: function for part, function in zip(found.parts, functions, strict=True)}
    arguments = scope.arguments
    value = by_kind["value"]

    def call(kind: str, k: int, *vectors: str) -> str:
        function = by_kind[kind]
        keywords = [f"{s}={s}" for s in function.sizes]
        several = f"[{k}]" if len(found.wrt) > 1 else ""
        return f"{function.name}({', '.join([*arguments, *vectors, *keywords])}){several}"

    value_call = f"{value.name}({', '.join([*arguments, *(f'{s}={s}' for s in value.sizes)])})"
    lines = [f"{scope.found} = ["]
    before: list[str] = []
    for k, w in enumerate(found.wrt):
        x = arguments[found.inputs.index(w)]
        rank = w.type.rank

        def row(what: str, function: str, tangent: str, x: str = x) -> str:
            parts = (f'"{what} by {x}"', f"lambda {x}: {function}", f"lambda {d}: {tangent}", x, scope.rng)
            line = f"    _agree({', '.join(parts)}),"
            if len(line) <= _WIDTH:
                return line
            return "".join(["    _agree(", *(f"\n            {p}," for p in parts), "\n        ),"])

        first = "gradient" if "gradient" in by_kind else "jacobian"
        rank_f = found.parts[0].graph.outputs[0].type.rank
        if first == "gradient":
            lines.append(row("gradient", value_call, f"{np}.sum({call('gradient', k)} * {d})"))
        elif found.layout == "denominator":
            lines.append(row("Jacobian", value_call, f"{np}.tensordot({d}, {call('jacobian', k)}, {rank})"))
        else:
            lines.append(row("Jacobian", value_call, f"{np}.tensordot({call('jacobian', k)}, {d}, {rank})"))
        if "hessian" in by_kind:
            slope = call(first, k)
            if first == "jacobian" and found.layout == "denominator" and rank_f and rank:
                order = (*range(rank, rank + rank_f), *range(rank))
                slope = f"{np}.{'permute' if np == 'torch' else 'transpose'}({slope}, {order})"
            lines.append(row("Hessian", slope, f"{np}.tensordot({call('hessian', k)}, {d}, {rank})"))
        if "third" in by_kind:
            lines.append(
                row("third derivative", call("hessian", k), f"{np}.tensordot({call('third', k)}, {d}, {rank})")
            )
        if "product" in by_kind:
            zeros = [f"{np}.zeros_like({arguments[found.inputs.index(o)]})" for o in found.wrt]
            vectors = [*zeros[:k], d, *zeros[k + 1 :]]
            lines.append(row("Hessian-vector product", call("gradient", k), call("product", k, *vectors)))
        if "vjp" in by_kind:
            shape = f"{value_call}.shape"
            g = _with_generator(_DRAWS[language.name]["normal"], scope.rng).format(shape=shape)
            before = [f"{scope.upstream} = {g}"]
            product = f"{np}.sum({call('vjp', k, scope.upstream)} * {d})"
            lines.append(row("vector-Jacobian product", f"{np}.sum({value_call} * {scope.upstream})", product))
    return [*before, *lines, "]"]
