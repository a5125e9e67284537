"""What a value is without its numbers: shape, dtype, layout and device.

Neighbours: ``dims`` for the entries of a shape; ``graph.Node`` carries one of these.
"""

from __future__ import annotations

from dataclasses import dataclass

from chainrule.errors import ShapeError
from chainrule.ir.dims import Dim, product

Shape = tuple["int | Dim", ...]

# Lowest to highest; a result takes the highest of its operands (torch's order, which is NumPy's for these).
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
_BYTES = {"bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8} | {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
}


@dataclass(frozen=True)
class TensorType:
    """The type of one tensor.

    Attributes:
        shape: a tuple of sizes; ``()`` is a scalar.
        dtype: one of :data:`DTYPES`.
        layout: strides in elements where a front end knows them, else None. They decide which kernel and which
            random bits eager execution would use; no rule of calculus reads them.
        device: ``"cpu"``, ``"cuda:0"``, ``"meta"``.
    """

    shape: Shape = ()
    dtype: str = "float64"
    layout: tuple[int, ...] | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in _BYTES:
            raise ShapeError(
                f"dtype {self.dtype!r} is not supported",
                required=f"one of {', '.join(DTYPES)}",
                instead="complex tensors as a pair of real ones" if "complex" in self.dtype else "",
            )

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def numel(self) -> int | Dim:
        """Number of elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> int | Dim:
        """Bytes of the dense tensor."""
        return self.numel * _BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether values of this type have derivatives."""
        return "float" in self.dtype

    def with_shape(self, shape: Shape) -> TensorType:
        """The same dtype and device with another shape (the layout is then unknown)."""
        return TensorType(tuple(shape), self.dtype, None, self.device)

    def with_dtype(self, dtype: str) -> TensorType:
        """The same shape and device in another dtype."""
        return TensorType(self.shape, dtype, None, self.device)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class TupleType:
    """The type of a node with several outputs; ``item`` nodes take them apart."""

    items: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))})"


def shape_text(shape: Shape) -> str:
    """A shape as printed in messages and tables: ``scalar``, ``n``, ``D_1 x D_2``."""
    return " x ".join(map(str, shape)) if shape else "scalar"


def broadcast_shapes(*shapes: Shape) -> Shape:
    """NumPy broadcasting over sizes that may be names; names broadcast only with themselves and 1.

    >>> broadcast_shapes((Dim("n"), 1), (Dim("m"),))
    (n, m)
    """
    rank = max((len(s) for s in shapes), default=0)
    result: list[int | Dim] = []
    for axis in range(rank):
        size: int | Dim = 1
        for shape in shapes:
            position = axis - rank + len(shape)
            if position < 0 or shape[position] == 1:
                continue
            if size != 1 and size != shape[position]:
                raise ShapeError(
                    "shapes do not broadcast together",
                    given=" and ".join(f"({shape_text(s)})" for s in shapes),
                    required=f"equal sizes, or 1, in dimension {axis}",
                )
            size = shape[position]
        result.append(size)
    return tuple(result)


def promote(*types: TensorType) -> tuple[str, str]:
    """The dtype and device of a result: the highest dtype among tensors; 0-d operands only raise the category."""

    def highest(of: list[TensorType]) -> str:
        return max((t.dtype for t in of), key=DTYPES.index)

    tensors = [t for t in types if t.shape] or list(types)
    dtype, scalars = highest(tensors), [t for t in types if not t.shape]
    if scalars and not tensors[0].shape == ():
        scalar = highest(scalars)
        if _category(scalar) > _category(dtype):
            dtype = scalar
    device = next((t.device for t in types if t.shape and t.device != "cpu"), None)
    return dtype, device or next((t.device for t in types if t.device != "cpu"), "cpu")


def _category(dtype: str) -> int:
    return 0 if dtype == "bool" else 2 if "float" in dtype else 1
