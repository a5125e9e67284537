"""Families: what ops of one kind share, so that a declaration only says what is its own.

    leaf         inputs and constants
    unary        elementwise function of one value: shape, jvp, cost, printing and samples are given
    elementwise  elementwise function of several values that broadcast against each other
    linear       linear in its only input (movement): the tangent moves like the value
    multilinear  linear in each input (einsum)
    composite    declared by its expansion into smaller ops; a fused kernel and a named derivative are optional
    kernel       a composite that torch computes in one call, whose options are no part of the formula language

A local derivative is a graph expression, so it prints, simplifies and differentiates again. Broadcasting is summed
back by the differentiation interpreter, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chainrule.ir import (
    ATOM,
    DTYPES,
    OPS,
    Node,
    Op,
    Rewrite,
    Sample,
    TensorType,
    apply,
    broadcast_shapes,
    constant,
    promote,
    register,
    toposort,
    variable,
)
from chainrule.ops.moment_rules import MovementRule, Pointwise

# Points that avoid every declared kink (0, 1, -1, ±0.5) and stay inside the domain of log, sqrt, asin.
_SMOOTH = np.array([-1.7, -0.83, -0.31, 0.27, 0.64, 1.9])
_POSITIVE = np.array([0.2, 0.45, 0.9, 1.3, 2.1, 3.4])
_UNIT = np.array([-0.9, -0.55, -0.2, 0.15, 0.6, 0.85])
DOMAINS = {"real": _SMOOTH, "positive": _POSITIVE, "unit": _UNIT}


@dataclass(frozen=True)
class Parts:
    """The native form of an op with several outputs: ``rule(*xs, **params)`` gives each of them in smaller ops."""

    rule: Callable[..., tuple[Node, ...]]


def elementwise_shape(*types: TensorType, dtype: str | None = None, **_: Any) -> TensorType:
    """Operands broadcast; the result has the highest dtype among them, or ``dtype``."""
    highest, device = promote(*types)
    return TensorType(broadcast_shapes(*(t.shape for t in types)), dtype or highest, None, device)


def _float_result(*types: TensorType, **params: Any) -> TensorType:
    result = elementwise_shape(*types, **params)
    return result if result.is_float else result.with_dtype("float32")


def _one_per_element(result: TensorType, *_: TensorType, **__: Any) -> Any:
    return result.numel


def leaf(name: str, **fields: Any) -> Op:
    """A value without inputs."""
    return register(Op(name, "leaf", **fields))


def elementwise(
    name: str,
    *,
    arity: int,
    value: Callable[..., Any],
    derivative: Callable[..., Sequence[Node | None]] | None = None,
    shape: Callable[..., TensorType] = elementwise_shape,
    domain: str | Sequence[str] = "real",
    **fields: Any,
) -> Op:
    """An elementwise op of ``arity`` broadcasting operands.

    ``derivative(y, *xs)`` is the local partial derivative for each operand (None: no derivative flows there).
    """
    rules: dict[str, Any] = {}
    if derivative is not None:

        def vjp(g: Node, y: Node, *xs: Node, **params: Any) -> tuple[Node | None, ...]:
            return tuple(None if d is None else g * d for d in derivative(y, *xs, **params))

        def jvp(tangents: Sequence[Node | None], y: Node, *xs: Node, **params: Any) -> Node | None:
            partials = derivative(y, *xs, **params)
            moved = [t * d for t, d in zip(tangents, partials, strict=True) if t is not None and d is not None]
            return sum_nodes(moved)

        rules = {"vjp": vjp, "jvp": jvp}

    domains = [domain] * arity if isinstance(domain, str) else domain
    # Different offsets per operand, so that comparisons and maxima do not meet ties.
    arrays = [np.roll(DOMAINS[d], i) * (1 + 0.13 * i) for i, d in enumerate(domains)]
    samples = [Sample(tuple(arrays))]
    if arity > 1:
        samples.append(Sample((arrays[0].reshape(2, 3), *[a[:3] for a in arrays[1:]])))
        samples.append(Sample((arrays[0][:1].reshape(()), *arrays[1:])))
    kinks = [k.at for k in fields.get("kinks", ())]
    if kinks:  # of the first operand
        samples.append(Sample((np.array(kinks), *[a[: len(kinks)] for a in arrays[1:]]), kink=True))
    arguments = ", ".join(f"{{{i}}}" for i in range(arity))
    defaults: dict[str, Any] = {
        "shape": shape,
        "cost": _one_per_element,
        "text": f"{name}({arguments})",
        "latex": rf"\operatorname{{{{{name}}}}}\left({arguments}\right)".replace("_", r"\_"),
        "indexed": lambda printer, node, indices: printer.elementwise(node, indices),
        "torch": f"torch.{name}({arguments})",
        "in_place": {} if "torch" in fields else {k: f"torch.{name}({arguments}, out={{{k}}})" for k in range(arity)},
        "into": "" if "torch" in fields else f"torch.{name}({arguments}, out={{out}})",
        "order": "operands",
        "code": _shared_words(fields.get("torch"), name, arguments),
        "samples": tuple(samples),
        "error_samples": (Sample((np.zeros(2), *[np.zeros(3)] * (arity - 1))),) if arity > 1 else (),
        "names": (name,),
        "moments": Pointwise(),
        "differentiable": derivative is not None or "expansion" in fields or "vjp" in fields,
        "family": "elementwise",
    }
    stable: dict[str, Any] = {"stable": (*fields.get("stable", ()), Rewrite(_broadcasting_by_itself))}
    return register(Op(name, value=value, **(defaults | rules | fields | stable)))


def _broadcasting_by_itself(node: Node) -> Node | None:
    """The op on what its operands were before they were broadcast, as long as the result keeps its shape."""
    inputs = list(node.inputs)
    for k, x in enumerate(inputs):
        while x.op.name == "broadcast" or (x.op.name == "expand_dims" and x.inputs[0].shape == ()):
            x = x.inputs[0]
            if broadcast_shapes(x.shape, *(o.shape for n, o in enumerate(inputs) if n != k)) != node.shape:
                break
            inputs[k] = x
    return apply(node.op, *inputs, **node.params) if tuple(inputs) != node.inputs else None


def _shared_words(torch: Any, name: str, arguments: str) -> str | None:
    """An infix operator is one in every language; a function that NumPy has under this name, torch and JAX have too."""
    if isinstance(torch, str) and "(" not in torch:
        return torch
    return f"{{np}}.{name}({arguments})" if torch is None and hasattr(np, name) else None


def unary(
    name: str,
    *,
    value: Callable[..., Any],
    derivative: Callable[[Node, Node], Node] | None = None,
    **fields: Any,
) -> Op:
    """An elementwise op of one operand; ``derivative(y, x)`` is its local derivative."""
    partials = None if derivative is None else (lambda y, x: (derivative(y, x),))
    given: dict[str, Any] = {"shape": _float_result} | fields
    given["rewrites"] = (*given.get("rewrites", ()), Rewrite(_before_new_dimensions))
    return elementwise(name, arity=1, value=value, derivative=partials, **given)


def _before_new_dimensions(node: Node) -> Node | None:
    """``f(x[:, None]) = f(x)[:, None]``."""
    (x,) = node.inputs
    if x.op.name != "expand_dims" or node.params:
        return None
    return apply(x.op, apply(node.op, x.inputs[0]), **x.params)


def zeros_like(x: Node) -> Node:
    """Zeros in the type of a node. Never ``x * 0``, which is nan where x is not finite."""
    zero = constant(0.0, x.type.dtype)
    return apply(OPS["broadcast"], zero, shape=x.shape) if x.shape else zero


def zero_derivative(y: Node, x: Node) -> Node:
    """The derivative of a function that is flat almost everywhere: a constant zero, which simplify and reports see."""
    return zeros_like(x)


def lifted(change: Callable[[dict[str, Any], Any], dict[str, Any]]) -> Callable[..., Node]:
    """The ``lift`` of an op that only needs other parameters: ``change(params, extra shape)``."""
    return lambda node, inputs, extra: apply(node.op, *inputs, **change(dict(node.params), extra))


def linear(name: str, *, transpose: Callable[..., Node | None], **fields: Any) -> Op:
    """A linear op of one input (movement). ``transpose(g, y, x, **params)`` moves the cotangent back."""

    def vjp(g: Node, y: Node, x: Node, **params: Any) -> tuple[Node | None]:
        return (transpose(g, y, x, **params),)

    def jvp(tangents: Sequence[Node | None], y: Node, x: Node, **params: Any) -> Node | None:
        return None if tangents[0] is None else apply(y.op, tangents[0], **params)

    defaults: dict[str, Any] = {
        "vjp": vjp,
        "jvp": jvp,
        "moments": MovementRule(),
        "family": "linear",
        "aliases": True,  # most movement is a view
    }
    return register(Op(name, **(defaults | fields)))


def multilinear_jvp(tangents: Sequence[Node | None], y: Node, *xs: Node, **params: Any) -> Node | None:
    """The product rule: each moving operand in turn, the others held."""
    moved = [apply(y.op, *xs[:k], t, *xs[k + 1 :], **params) for k, t in enumerate(tangents) if t is not None]
    return sum_nodes(moved)


def composite(name: str, *, expansion: Callable[..., Node], **fields: Any) -> Op:
    """An op declared by its expansion ``(*xs, **params) -> Node``.

    Value, shape, printing and derivative follow from the expansion unless a kernel or a named form is given.
    """

    def shape(*types: TensorType, **params: Any) -> TensorType:
        return _expanded(expansion, types, params)[1].type

    def value(*arrays: Any, **params: Any) -> Any:
        types = [TensorType(np.shape(a), str(np.asarray(a).dtype)) for a in arrays]
        leaves, root = _expanded(expansion, types, params)
        values: dict[Node, Any] = dict(zip(leaves, arrays, strict=True))
        for node in toposort([root], stop=lambda n: n in values):
            if node not in values:
                values[node] = node.op.value(*(values[i] for i in node.inputs), **node.params)
        return values[root]

    defaults: dict[str, Any] = {
        "shape": shape,
        "value": value,
        "names": (name,),
        "precedence": ATOM,
        "family": "composite",
    }
    return register(Op(name, expansion=expansion, **(defaults | fields)))


def kernel(
    name: str,
    *,
    call: str,
    expansion: Callable[..., Node],
    optional: Sequence[str] = (),
    **fields: Any,
) -> Op:
    """A composite that torch computes in one call: ``call(*operands, **params)``, with torch's names of the params.

    ``optional`` operands are passed by name, and arrive in the expansion as keywords that may be None
    (see :func:`call_of`).
    """

    def expanded_optional(*xs: Node, given: tuple[str, ...] = (), **params: Any) -> Node:
        count = len(xs) - len(given)
        held = dict.fromkeys(optional) | dict(zip(given, xs[count:], strict=True))
        return expansion(*xs[:count], **held, **params)

    def torch(node: Node, x: list[str]) -> str:
        params = dict(node.params)
        given = params.pop("given", ())
        count = len(x) - len(given)
        options = [f"{key}={operand}" for key, operand in zip(given, x[count:], strict=True)]
        options += [f"{key}={_python(value)}" for key, value in params.items()]
        return f"{call}({', '.join([*x[:count], *options])})"

    defaults: dict[str, Any] = {"torch": torch, "names": (), "family": "kernel"} | written_as_call(name)
    return composite(name, expansion=expanded_optional if optional else expansion, **(defaults | fields))


def written_as_call(name: str) -> dict[str, Any]:
    """``text`` and ``latex`` of an op whose parameters are no part of the formula language: ``name(operands)``."""

    def text(p: Any, node: Node) -> str:
        return f"{name}({', '.join(p.child(i, 0) for i in node.inputs)})"

    def latex(p: Any, node: Node) -> str:
        written = name.replace("_", r"\_")
        return rf"\operatorname{{{written}}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)"

    return {"text": text, "latex": latex}


def indexed(name: str, *, transpose: Callable[..., Node], **fields: Any) -> Op:
    """Movement that integer operands direct: linear in the first operand, none of the others has a derivative.

    ``transpose(g, y, x, *indices, **params)`` moves the cotangent back.
    """

    def vjp(g: Node, y: Node, x: Node, *indices: Node, **params: Any) -> tuple[Node | None, ...]:
        return transpose(g, y, x, *indices, **params), *(None for _ in indices)

    def jvp(tangents: Sequence[Node | None], y: Node, x: Node, *indices: Node, **params: Any) -> Node | None:
        return None if tangents[0] is None else apply(y.op, tangents[0], *indices, **params)

    defaults: dict[str, Any] = {"vjp": vjp, "jvp": jvp} | written_as_call(name)
    return register(Op(name, "kernel", **(defaults | fields)))


def kept_dtype(node: Node) -> str:
    """``, dtype=torch.int32`` where torch would add narrow integers up in int64, else nothing."""
    narrow = node.type.dtype in ("bool", "uint8", "int8", "int16", "int32")
    return f", dtype=torch.{node.type.dtype}" if narrow else ""


def call_of(op: Op, *xs: Node, **options: Any) -> Node:
    """A kernel's node: of the options, nodes become operands passed by name, None is left out, the rest is static."""
    given = tuple(key for key, value in options.items() if isinstance(value, Node))
    static = {key: value for key, value in options.items() if value is not None and key not in given}
    return apply(op, *xs, *(options[key] for key in given), **({"given": given} if given else {}), **static)


def _python(value: Any) -> str:
    """A static parameter as Python source."""
    if isinstance(value, str) and value in DTYPES:
        return f"torch.{value}"
    return f'float("{value}")' if isinstance(value, float) and not np.isfinite(value) else repr(value)


def _expanded(
    expansion: Callable[..., Node], types: Sequence[TensorType], params: dict[str, Any]
) -> tuple[list[Node], Node]:
    leaves = [variable(f"operand_{k}", t) for k, t in enumerate(types)]
    return leaves, expansion(*leaves, **params)


def sum_nodes(nodes: Sequence[Node]) -> Node | None:
    """The sum of nodes, None of none."""
    total: Node | None = None
    for node in nodes:
        total = node if total is None else total + node
    return total
