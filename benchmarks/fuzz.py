"""Random formulas, valid and broken, through every verb on formulas: a result or a ChainruleError, within 10 s.

Run: python -m benchmarks.fuzz [count] [seed]
"""

from __future__ import annotations

import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pool
from time import perf_counter

import chainrule as cr
from benchmarks.timing import machine
from chainrule.errors import ChainruleError
from chainrule.frontends.formula.functions import known_functions, parameters

LIMIT = 10  # seconds for one formula
SHAPES = {"x": "n", "y": "n", "w": "m", "A": "n,n", "B": "m,n", "C": "n,m", "T": "n,n,m", "θ": "n", "φ": "m"}
SCALARS = ("a", "b", "σ", "beta_0")
_SCRAPS = (
    *("(", ")", "[", "]", "'", ".T", "@", "*", "/", "^", "+", "-", ",", ";", "\n", "=", ":", "None", "...", "<", ">"),
    *("I[", "d2l/dx2", "dl[f]/df", "1e999", "0", "1.5e-3", "\\frac{1}{x}", "\\mathbf{A}^T", "{", "}", "_", "é", "∂"),
    *("\x00", "\ud7ff", "𝔁", "∑", "²", '"ij,jk->ik"', "#", "%", "$", "where", "einsum(", "x[0]", "A[:, 0]"),
)


class TooLong(BaseException):
    """The time of one formula is over."""


# ---- texts -------------------------------------------------------------------------------------------------
_SCALAR = ("sum({v})", "norm({v})^2", "{v}' @ {v}", "tr({m})", "{v}' @ {m} @ {v}", "{s} * {s}", "{s} + {s}", "{s}^2")
_SCALAR += (
    "{s} / (1 + {s}^2)",
    "{u}({s})",
    "logsumexp({v})",
    "logdet({m})",
    "{v}[0]",
    "mean({v})",
    "where({s} > 0, {s}, 0)",
)
_SCALAR += ("max({v})", "l({s})", "I[{s} > 0] * {s}", 'einsum("i,i->", {v}, {v})', "sum({m} * {m})", "-({s})")
_VECTOR = ("{m} @ {v}", "{u}({v})", "{v} + {v}", "{v} * {v}", "{s} * {v}", "softmax({v})", "{v} / (1 + {v}^2)", "C @ w")
_VECTOR += (
    "solve({m}, {v})",
    "{m}[0]",
    "{m}[:, -1]",
    "diag({m})",
    "maximum({v}, 0)",
    "-({v})",
    'einsum("ij,j->i", {m}, {v})',
)
_MATRIX = (
    "{m} @ {m}",
    "({m})'",
    "{v} @ ({v})'",
    "{m} + {m}",
    "{m} * {m}",
    "{u}({m})",
    "inv({m})",
    "{s} * {m}",
    "diag({v})",
)
_MATRIX += ("C @ B", "eye(n)", "outer({v}, {v})", "tril({m})", "softmax({m}, 1)", 'einsum("ij,kj->ik", {m}, {m})')
_FUNCTIONS = ("exp", "tanh", "sin", "sigmoid", "relu", "log", "sqrt", "softplus", "abs", "gelu", "erf", "cos", "atan")


def fitting(rng: random.Random, kind: str, depth: int) -> str:
    """Text of an expression whose operands fit: a scalar ``s``, a vector ``v`` of n or a matrix ``m`` of n by n."""
    if depth <= 0 or rng.random() < 0.15:
        return rng.choice({"s": (*SCALARS, "2", "0.5"), "v": ("x", "y", "θ", "x"), "m": ("A", "A", "C @ B")}[kind])
    text = rng.choice({"s": _SCALAR, "v": _VECTOR, "m": _MATRIX}[kind]).replace("{u}", rng.choice(_FUNCTIONS))
    for inner in "svm":
        while "{" + inner + "}" in text:
            text = text.replace("{" + inner + "}", f"({fitting(rng, inner, depth - 1)})", 1)
    return text


def expression(rng: random.Random, depth: int) -> str:
    """Text of a random expression; about half of them have operands that fit."""
    if depth <= 0 or rng.random() < 0.12:
        return rng.choice((*SHAPES, *SCALARS, "2", "0.5", "x", "x", "A", "a", "b", "0", "3"))
    a = expression(rng, depth - 1)
    kind = rng.randrange(14)
    if kind < 4:
        return _call(rng, depth)
    if kind < 8:
        return f"({a}) {rng.choice('+-*/@')} ({expression(rng, depth - 1)})"
    if kind == 8:
        return f"({a})^{rng.choice(('2', '3', '-1', '0.5', '0', 'a', 'x'))}"
    if kind == 9:
        return f"({a}){rng.choice((chr(39), '.T', '[0]', '[:, 0]', '[None]', '[1:]', '[..., -1]'))}"
    if kind == 10:
        form = rng.choice(("ij,jk->ik", "i,i->", "ij->ji", "ij,j->i", "i,j->ij", "ii->", "ijk,jk->i", "ij,->ij"))
        parts = [expression(rng, depth - 2) for _ in form.split("->")[0].split(",")]
        return f'einsum("{form}", {", ".join(parts)})'
    if kind == 11:
        return rng.choice((f"-({a})", f"sum({a})", f"tanh({a})", f"x' @ ({a})", f"l({a})", f"A @ ({a})"))
    if kind == 12:
        return f"where({a} {rng.choice(('<', '>', '>=', '=='))} 0, {expression(rng, depth - 1)}, 0)"
    return rng.choice((f"I[{a} > 0] * a", f"norm({a})^2", f"softmax({a})", f"sum(({a})^2)"))


def _call(rng: random.Random, depth: int) -> str:
    name = rng.choice(sorted(known_functions()))
    given = {"size": "n", "shape": "(n, m)", "axis": "0", "condition": "x > 0", "text": '"ij->ji"'}
    parts = [
        given[p.kind] if p.kind in given else expression(rng, depth - 1)
        for p in parameters(name)
        if p.required or rng.random() < 0.2
    ]
    return f"{name}({', '.join(parts) or expression(rng, depth - 1)})"


def source(rng: random.Random) -> str:
    """A formula, assignments, a text with a few characters changed, or characters with no meaning."""
    kind = rng.random()
    if kind < 0.06:
        return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))) for _ in range(rng.randrange(40)))
    if kind < 0.14:
        return "".join(rng.choice((*_SCRAPS, *SHAPES)) for _ in range(rng.randrange(14)))
    fits = rng.random() < 0.6
    text = fitting(rng, rng.choice("ssvm"), rng.randrange(1, 4)) if fits else expression(rng, rng.randrange(1, 5))
    if kind < 0.4:
        steps = [f"f{k} = {fitting(rng, 's', 2) if fits else expression(rng, 2)}" for k in range(rng.randrange(1, 4))]
        text = "; ".join([*steps, f"z = ({text}) * f{rng.randrange(len(steps))}"])
    for _ in range(rng.randrange(4) if rng.random() < 0.2 else 0):
        at = rng.randrange(len(text) + 1)
        text = rng.choice((text[:at], text[:at] + rng.choice(_SCRAPS) + text[at:], text[:at] + text[at + 1 :]))
    return text


# ---- one formula -------------------------------------------------------------------------------------------
def questions(rng: random.Random, text: str) -> list[tuple[str, Callable[[], object]]]:
    """What is asked of one text: (name, call)."""
    shapes = {k: v for k, v in SHAPES.items() if k in text and rng.random() < 0.95}
    wrt = rng.choice(("x", "A", "a", "all", "all", "b"))
    options: dict[str, object] = {"mode": rng.choice(("direct", "forward", "reverse", "best")), "shapes": shapes}
    options |= {"order": rng.choice((1, 1, 1, 1, 2, 3)), "layout": rng.choice(("denominator", "numerator"))}
    if rng.random() < 0.15:
        options |= {"cotangent": rng.choice(("g", "x")), "mode": "reverse"}
    if rng.random() < 0.1:
        options["assume"] = {"A": rng.choice(("symmetric", "diagonal", "lower triangular", "nonsense"))}

    def derived() -> None:
        d = cr.derive(text, wrt=wrt, **options)  # type: ignore[arg-type]
        _ = d.text(), d.text("index"), d.latex(), d.latex("index"), d._repr_html_(), d.to_dict(), d.where
        _ = [s.lines for s in d.steps]
        if rng.random() < 0.05:
            d.code(rng.choice(("numpy", "torch", "autograd")))

    asked: list[tuple[str, Callable[[], object]]] = [("derive", derived)]
    if rng.random() < 0.3:
        asked.append(("formula", lambda: cr.formula(text, shapes=shapes).simplified().to_dict()))
    if rng.random() < 0.1:
        claim = rng.choice((expression(rng, 2), "\\frac{a}{b}", "2*x", "\\mathbf{A}^T \\mathbf{x}", source(rng)))
        asked.append(("check", lambda: str(cr.check(text, wrt=wrt, claim=claim, shapes=shapes))))
    if rng.random() < 0.05:
        asked.append(("activation", lambda: str(cr.activation(text))))
    return asked


def tried(number: int) -> list[tuple[str, str, float, str]]:
    """(verb, outcome, seconds, text) of everything asked of the formula of this number."""
    rng = random.Random(number)
    text = source(rng)
    found = []
    for verb, ask in questions(rng, text):
        start = perf_counter()
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            ask()
            outcome = "result"
        except ChainruleError as error:
            outcome = type(error).__name__
        except TooLong:
            outcome = f"FAULT over {LIMIT} s"
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"FAULT {type(error).__name__} in {last.name} ({last.filename.rpartition('/')[2]}:{last.lineno})"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        found.append((verb, outcome, perf_counter() - start, text))
    return found


def alarmed() -> None:
    """Lets a formula that takes too long end with :class:`TooLong`."""

    def stop(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, stop)


def main(count: int = 100_000, seed: int = 0) -> None:
    """Prints the table."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[str, str] = {}
    slowest: list[tuple[float, str, str]] = []
    with Pool(2, initializer=alarmed, maxtasksperchild=50) as pool:
        numbers = range(seed * 10**9, seed * 10**9 + count)
        for answers in pool.imap_unordered(tried, numbers, chunksize=100):
            for verb, outcome, seconds, text in answers:
                counts[verb, outcome] += 1
                slowest = sorted([*slowest, (seconds, verb, text)], reverse=True)[:10]
                if outcome.startswith("FAULT"):
                    examples.setdefault(outcome, text)
    print(machine())
    for (verb, outcome), n in sorted(counts.items()):
        print(f"{verb:12} {outcome:60} {n:8}")
    for outcome, text in examples.items():
        print(f"{outcome}: {text!r}")
    for seconds, verb, text in slowest:
        print(f"{seconds:6.2f} s  {verb:10} {text[:120]!r}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
