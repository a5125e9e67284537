"""``monitor`` as a callback of Lightning; needs lightning or pytorch-lightning, and is imported by whoever uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chainrule.errors import ModelError
from chainrule.verbs.kinds import Finding
from chainrule.verbs.monitor import monitor

if TYPE_CHECKING:
    Callback: Any = object
else:
    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError:
        try:
            from pytorch_lightning.callbacks import Callback
        except ImportError:
            Callback = object


class MonitorCallback(Callback):
    """Watches a Lightning Trainer's steps: ``Trainer(callbacks=[MonitorCallback(every=25)])``.

    Args:
        every, path, tensorboard, record, on_finding: as in :class:`chainrule.monitor`.

    Raises:
        ModelError: neither lightning nor pytorch_lightning is installed.

    Attributes:
        monitors: one for each optimizer, once training has begun. findings: of all of them.
    """

    def __init__(self, every: int = 25, **settings: Any) -> None:
        if Callback is object:
            raise ModelError(
                "the Lightning callback needs Lightning, which is not installed",
                given="no lightning, no pytorch_lightning",
                required="one of the two packages",
                instead="pip install lightning; or cr.monitor in a loop of your own",
            )
        super().__init__()
        self.settings = {"every": every, **settings}
        self.monitors: list[monitor] = []

    @property
    def findings(self) -> list[Finding]:
        """What went wrong so far."""
        return [f for m in self.monitors for f in m.findings]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to watch every optimizer."""
        self.close()
        self.monitors = [monitor(pl_module, optimizer, **self.settings) for optimizer in trainer.optimizers]
        for m in self.monitors:
            m.__enter__()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Takes the hooks away."""
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Takes the hooks away."""
        self.close()

    def close(self) -> None:
        """Takes the hooks away."""
        for m in self.monitors:
            m.__exit__(None, None, None)
