"""Named sizes in source: read from the shapes of the arguments at the top of a function, checked, or asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chainrule.backends.identifiers import unique
from chainrule.backends.source.languages import Language
from chainrule.ir import Dim, Graph, Node, TensorType, apply, rebuild
from chainrule.ir.dims import substitute

SHAPE_HELPER = '''\
def _shape(name, value, *sizes):
    """The shape of an argument; a size that is known must agree, one in quotes is read."""
    shape = tuple({shape})
    read = dict(zip(sizes, shape))
    wanted = tuple(read.get(s) if isinstance(s, str) else s for s in sizes)
    if shape != wanted:
        raise ValueError(f"{{name}} has shape {{shape}}, required ({{', '.join(map(str, sizes))}})")
    return shape
'''


def shape_helper(language: Language) -> str:
    """The function that reads and checks shapes."""
    return SHAPE_HELPER.format(shape="value.shape" if language.name == "torch" else "np.shape(value)").replace(
        "np.", f"{language.np}."
    )


def names_of_sizes(graph: Graph) -> list[str]:
    """The names of sizes that a graph's inputs and nodes have, inputs first."""
    found: dict[str, None] = {}
    for node in dict.fromkeys((*graph.inputs, *graph.nodes)):
        types = [node.type] if isinstance(node.type, TensorType) else list(node.type.items)
        for value in (*(t.shape for t in types), *(v for k, v in node.params.items() if k != "type")):
            _collect(value, found)
    return list(found)


def _collect(value: Any, found: dict[str, None]) -> None:
    if isinstance(value, Dim):
        found.update(dict.fromkeys(sorted(value.names)))
    elif isinstance(value, tuple):
        for v in value:
            _collect(v, found)


def with_valid_sizes(graph: Graph, taken: Sequence[str]) -> tuple[Graph, dict[str, str]]:
    """The graph with sizes whose names are identifiers of their own, and old name -> new name.

    ``m`` is both a size and a variable in many formulas; in Python they would be one name.
    """
    image: dict[str, Dim] = {}
    used = list(taken)
    for name in names_of_sizes(graph):
        new = unique(name if name not in used else f"n_{name}", used)
        used.append(new)
        image[name] = Dim(new)
    if all(name == str(new) for name, new in image.items()):
        return graph, {name: name for name in image}

    def replace(node: Node, inputs: tuple[Node, ...]) -> Node:
        return apply(node.op, *inputs, **{k: _renamed(v, image) for k, v in node.params.items()})

    done = rebuild([*graph.outputs, *graph.inputs, *graph.names.values()], replace)
    renamed = graph.map(done)
    return Graph(
        tuple(done[i] for i in graph.inputs), renamed.outputs, graph.output_names, renamed.names, renamed.origins
    ), {name: str(new) for name, new in image.items()}


def _renamed(value: Any, image: Mapping[str, Dim]) -> Any:
    if isinstance(value, Dim):
        return substitute(value, image)  # type: ignore[arg-type]
    if isinstance(value, TensorType):
        return TensorType(_renamed(value.shape, image), value.dtype, None, value.device)
    if isinstance(value, tuple):
        return tuple(_renamed(v, image) for v in value)
    return value


def reading(inputs: Sequence[tuple[str, Node]], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines that read sizes off the arguments and check their agreement; and the wanted sizes that no shape tells."""
    known: set[str] = set()
    lines: list[str] = []
    if not any(node.shape for _, node in inputs):  # numbers alone: such a formula also works elementwise
        return [], list(wanted)
    # Shapes that are plain names come first, sums and products of them can then be checked.
    order = sorted(inputs, key=lambda item: any(isinstance(s, Dim) and not _atomic(s) for s in item[1].shape))
    waiting: list[tuple[str, Node]] = []
    for name, node in order:
        if not node.type.is_float and node.shape == ():
            continue
        if any(isinstance(s, Dim) and not _atomic(s) and not s.names <= known for s in node.shape):
            waiting.append((name, node))
            continue
        lines.append(_line(name, node, known))
    missing = [n for n in wanted if n not in known]
    lines += [_line(name, node, known | set(missing)) for name, node in waiting]
    return lines, missing


def _atomic(size: int | Dim) -> bool:
    return isinstance(size, Dim) and str(size) in size.names


def _line(name: str, node: Node, known: set[str]) -> str:
    targets: list[str] = []
    given: list[str] = []
    new: set[str] = set()
    for size in node.shape:
        if _atomic(size) and str(size) not in known:
            targets.append("_" if str(size) in new else str(size))
            given.append(f'"{size}"')
            new.add(str(size))
        else:
            targets.append("_")
            given.append(str(size))
    known |= new
    quoted = f'"{name}"'
    call = f"_shape({', '.join([quoted, name, *given])})"
    if all(t == "_" for t in targets):
        return call
    return f"{', '.join(targets)}{',' if len(targets) == 1 else ''} = {call}"
