"""Calls that no declaration covers: run by their own function, differentiated by its own rule.

A torch op without a declaration, or a custom ``autograd.Function``, is one node that says its name. Its backward is
what torch's tape gives for exactly this call, so that nothing passes through in silence: no closed form, no second
derivative, but the gradient that eager execution would have.

    opaque           the outputs
    opaque_taped     the outputs, and (at run time) the tape of this one call behind them
    opaque_backward  the tape read backwards, for given cotangents

Neighbours: ``frontends.torch`` makes these nodes; emission runs the taped call alone where both occur
(``Op.recorded``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chainrule.errors import UnsupportedOpError
from chainrule.ir import OPS, Node, Op, TensorType, TupleType, apply, item, register


@dataclass(frozen=True)
class Call:
    """A function outside of the language.

    Attributes:
        name: how messages call it. types: of the outputs.
        text: the expression, with ``{0}``, ``{1}`` for operands and ``{f}`` for ``function``, a Python callable.
        reason: why there is no declaration for it.
    """

    name: str
    text: str
    types: tuple[TensorType, ...]
    function: Any = None
    reason: str = ""

    def written(self, function: str, operands: Sequence[str]) -> str:
        """The expression on operands with these names."""
        return self.text.format(*operands, f=function)


_PRELUDE = '''\
def taped(function, wanted, *inputs):
    """The outputs of one call, and its tape behind them; which kernel runs may depend on whose derivative is wanted."""
    flags = iter(wanted)
    moves = [x.is_floating_point() and next(flags) for x in inputs]
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(m) for x, m in zip(inputs, moves)]
        try:
            outs = function(*leaves)
        except RuntimeError:  # among them an argument that torch has no derivative for
            moving = [x.requires_grad and accepts(function, inputs, k) for k, x in enumerate(leaves)]
            leaves = [x.detach().requires_grad_(m) for x, m in zip(inputs, moving)]
            outs = function(*leaves)
    outs = tuple(outs) if isinstance(outs, (tuple, list)) else (outs,)
    # The places in autograd's graph, not the outputs: what its backward does not read can be freed.
    edges = [torch.autograd.graph.get_gradient_edge(o) if o.requires_grad else None for o in outs]
    return (*(o.detach() for o in outs), (leaves, edges))


def accepts(function, inputs, place):
    """Whether torch accepts that one input alone has a derivative."""
    try:
        function(*(x.detach().requires_grad_(k == place) for k, x in enumerate(inputs)))
    except RuntimeError:
        return False
    return True


def taped_backward(wanted, given, tape, *cotangents):
    """The cotangents of those floating-point inputs of a taped call that are wanted, None for the others."""
    leaves, edges = tape
    edges = [edges[k] for k in given]
    places = [x for x in leaves if x.is_floating_point()]
    asked = [x for x, w in zip(places, wanted) if w and x.requires_grad]
    pairs = [(e, g) for e, g in zip(edges, cotangents) if e is not None]
    grads = [None] * len(asked)
    if pairs:
        grads = torch.autograd.grad([e for e, _ in pairs], asked, [g for _, g in pairs], allow_unused=True)
    found = {id(x): g for x, g in zip(asked, grads) if g is not None}
    return tuple(found.get(id(x), torch.zeros_like(x)) if w else None for x, w in zip(places, wanted))


taped.as_it_is = taped_backward.as_it_is = True  # a tape of autograd's own: nothing for torch.compile
'''


def _no_value(*_: Any, call: Call | None = None, **__: Any) -> Any:
    raise UnsupportedOpError(
        f"{call.name if call else 'an opaque op'} has no value in NumPy",
        given=call.reason if call else "",
        required="declared ops",
        instead="the torch back end, which calls it",
    )


def _shape(*_: Any, call: Call, **__: Any) -> Any:
    return call.types[0] if len(call.types) == 1 else TupleType(call.types)


def _text(p: Any, node: Node) -> str:
    return f"opaque({', '.join(p.child(i, 0) for i in node.inputs)})"


def _latex(p: Any, node: Node) -> str:
    return rf"\operatorname{{opaque}}\left({', '.join(p.child(i, 0) for i in node.inputs)}\right)"


def _torch(node: Node, x: list[str]) -> str:
    call: Call = node.params["call"]
    function, *operands = x if call.function is not None else ["", *x]
    return call.written(function, operands)


def _taped_torch(node: Node, x: list[str]) -> str:
    call: Call = node.params["call"]
    function, *operands = x if call.function is not None else ["", *x]
    arguments = [f"a{k}" for k in range(len(operands))]
    floats = [i for i in node.inputs if isinstance(i.type, TensorType) and i.type.is_float]
    wanted = node.params.get("wanted", (True,) * len(floats))
    written = call.written(function, arguments)
    return f"taped(lambda {', '.join(arguments)}: {written}, {', '.join([str(wanted), *operands])})"


def _vjp(g: Any, y: Node, *xs: Node, call: Call, **params: Any) -> tuple[Node | None, ...]:
    assert y.op.recorded is not None
    if not any(t.is_float for t in call.types):
        return (None,) * len(xs)
    return _back(g, y.op.recorded(y, xs), xs)


def _back(g: Any, taped: Node, xs: Sequence[Node]) -> tuple[Node | None, ...]:
    """The cotangents of the operands of a taped call."""
    moving = [k for k, x in enumerate(xs) if isinstance(x.type, TensorType) and x.type.is_float]
    cotangents = g if isinstance(g, tuple) else (g,)
    given = tuple(k for k, c in enumerate(cotangents) if c is not None)
    if not moving or not given:
        return (None,) * len(xs)
    types = tuple(xs[k].type for k in moving)
    flowing = [cotangents[k] for k in given]
    back = apply(_BACKWARD, taped, *flowing, types=types, given=given, wanted=(True,) * len(types))
    found: list[Node | None] = [None] * len(xs)
    for position, k in enumerate(moving):
        found[k] = item(back, position)
    return tuple(found)


_BACKWARD = register(
    Op(
        "opaque_backward",
        "opaque",
        shape=lambda *_, types, given, wanted: TupleType(types),
        value=_no_value,
        text=_text,
        latex=_latex,
        torch=lambda node, x: f"taped_backward({node.params['wanted']}, {node.params['given']}, {', '.join(x)})",
        aliases=True,
        choosy=True,
        prelude=_PRELUDE,
        source="torch.autograd.grad over the tape of one call",
    )
)


def _declared(suffix: str, pure: bool) -> Op:
    shared: dict[str, Any] = {
        "value": _no_value,
        "text": _text,
        "latex": _latex,
        "externals": lambda *, call, **_: () if call.function is None else (call.function,),
        "pure": pure,
        "works_inside": True,
        "aliases": True,  # a function of the user's may return what it was given, and a tape keeps it
        "source": "the function itself; its derivative is its own",
    }
    taped = register(
        Op(
            f"opaque_taped{suffix}",
            "opaque",
            shape=lambda *_, call, **__: TupleType(call.types),
            torch=_taped_torch,
            prelude=_PRELUDE,
            keeps_more=True,
            **shared,
        )
    )
    return register(
        Op(
            f"opaque{suffix}",
            "opaque",
            shape=_shape,
            torch=_torch,
            vjp=_vjp,
            recorded=lambda node, inputs: apply(taped, *inputs, **node.params),
            **shared,
        )
    )


OPAQUE = _declared("", pure=True)
OPAQUE_RANDOM = _declared("_random", pure=False)


def opaque(call: Call, *inputs: Node, stream: int | None = None) -> Node:
    """The node of one call; ``stream`` numbers it among the random draws of the program, if it is one."""
    return (
        apply(OPAQUE, *inputs, call=call) if stream is None else apply(OPAQUE_RANDOM, *inputs, call=call, stream=stream)
    )


# ---- declared kernels whose backward is torch's own --------------------------------------------------------
def by_tape(node: Node, inputs: Sequence[Node]) -> Node:
    """``recorded`` of a declared op: its call in torch, with the tape of this one call."""
    assert callable(node.op.torch)
    places = [f"{{{k}}}" for k in range(len(inputs))]
    types = node.type.items if isinstance(node.type, TupleType) else (node.type,)
    call = Call(node.op.name, str(node.op.torch(node, places)), types, reason="its backward is torch's kernel")
    return apply(OPS["opaque_taped"], *inputs, call=call)


def by_tape_vjp(g: Node, y: Node, *xs: Node, **params: Any) -> tuple[Node | None, ...]:
    """``fused_vjp`` of a declared op whose backward kernel torch chooses together with the forward one."""
    return _back(g, by_tape(y, xs), xs)
