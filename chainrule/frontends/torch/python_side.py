"""What a program does to tensors that never reaches torch's dispatcher, where ``record`` listens.

Attributes (``.data``, ``.grad``), ways out of torch (``numpy()``, ``tolist()``) and derivatives taken inside
the program are seen here, at the level of Python functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from chainrule.frontends.torch.inner_gradients import Recording, inner_gradient


class Watcher(Recording, Protocol):
    """What is asked of the recorder."""

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's numbers change with the inputs."""
        ...

    def fail(self, what: str, *, required: str = "", instead: str = "") -> None:
        """Raises, with the place."""
        ...

    @property
    def suspended(self) -> bool:
        """Whether what runs now is inside a call that is recorded as a whole."""
        ...

    def read_out(self, tensor: torch.Tensor) -> None:
        """Python takes the numbers of a tensor out of torch."""
        ...

    def custom(self, cls: Any, apply_: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call of a custom autograd.Function."""
        ...


class PythonSide(TorchFunctionMode):
    """What never reaches the dispatcher: attributes of tensors, and ways out of torch."""

    def __init__(self, recorder: Watcher) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.recorder.suspended:
            return func(*args, **(kwargs or {}))
        if func == _DATA.__get__:
            return args[0].detach()  # the same value and memory, and a derivative that ends here: never lost
        if func in _WAYS_OUT and self.recorder.depends(args[0]):
            self.recorder.read_out(args[0])
        if func in _FREEZING and args[0].requires_grad and not {*args[1:], *(kwargs or {}).values()} <= {True}:
            self.recorder.fail("requires_grad is switched off inside the traced program", instead=".detach()")
        if func is torch.autograd.grad:
            return inner_gradient(self.recorder, *args, **(kwargs or {}))
        if func in _REFUSED:
            self.recorder.fail(f"{_REFUSED[func]} inside the traced program")
        return func(*args, **(kwargs or {}))


@contextmanager
def custom_calls(recorder: Watcher) -> Iterator[None]:
    """While the block runs, calls of custom autograd.Functions go through the recorder.

    ``Function.apply`` is no op of the dispatcher and no torch function: there is no other place to see it whole. One
    that was bound before (``relu = MyReLU.apply``) is seen at the next class that it asks, which has none of its own.
    """
    original = torch.autograd.Function.__dict__["apply"]
    inner: Any = torch.autograd.Function.__mro__[1]
    before = vars(inner).get("apply")  # of a trace around this one
    inside: list[Any] = []

    def once(cls: Any, call: Any, args: Any, kwargs: Any) -> Any:
        if inside:
            return call(*args, **kwargs)

        def plain(*args: Any, **kwargs: Any) -> Any:
            inside.append(cls)
            try:
                return call(*args, **kwargs)
            finally:
                inside.pop()

        return recorder.custom(cls, plain, args, kwargs)

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return once(cls, original.__get__(None, cls), args, kwargs)

    def bound_before(cls: Any, *args: Any) -> Any:
        return once(cls, super(inner, cls).apply, args, {})

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment]
    inner.apply = classmethod(bound_before)
    try:
        yield
    finally:
        torch.autograd.Function.apply = original
        if before is None:
            del inner.apply
        else:
            inner.apply = before


_DATA: Any = torch.Tensor.data
_WAYS_OUT = {
    getattr(torch.Tensor, name)
    for name in ("numpy", "tolist", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__")
}
_FREEZING: Any = (torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
_REFUSED: dict[Any, str] = {
    _DATA.__set__: "assignment to .data",
    torch.Tensor.grad.__set__: "assignment to .grad",  # type: ignore[attr-defined]
    torch.Tensor.backward: "backward()",
    torch.autograd.backward: "torch.autograd.backward",
    torch.Tensor.register_hook: "a hook on a tensor's gradient",
    torch.Tensor.set_: "set_()",
}
