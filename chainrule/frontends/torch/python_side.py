"""What a program does to tensors that never reaches torch's dispatcher, where ``record`` listens.

Attributes (``.data``, ``.grad``), ways out of torch (``numpy()``, ``tolist()``) and derivatives taken inside
the program are seen here, at the level of Python functions.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode


class Watcher(Protocol):
    """What is asked of the recorder."""

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's numbers change with the inputs."""
        ...

    def fail(self, what: str, *, required: str = "", instead: str = "") -> None:
        """Raises, with the place."""
        ...

    def fail_read(self) -> None:
        """Raises: Python reads a value."""
        ...


class PythonSide(TorchFunctionMode):
    """What never reaches the dispatcher: attributes of tensors, and ways out of torch."""

    def __init__(self, recorder: Watcher) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _DATA.__get__:
            return args[0].detach()  # the same value and memory, and a derivative that ends here: never lost
        if func in _WAYS_OUT and self.recorder.depends(args[0]):
            self.recorder.fail_read()
        if func in _FREEZING and args[0].requires_grad and not {*args[1:], *(kwargs or {}).values()} <= {True}:
            self.recorder.fail("requires_grad is switched off inside the traced program", instead=".detach()")
        if func in _REFUSED:
            self.recorder.fail(f"{_REFUSED[func]} inside the traced program")
        return func(*args, **(kwargs or {}))


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
    torch.autograd.grad: "torch.autograd.grad",
    torch.autograd.backward: "torch.autograd.backward",
    torch.Tensor.register_hook: "a hook on a tensor's gradient",
    torch.Tensor.set_: "set_()",
}
