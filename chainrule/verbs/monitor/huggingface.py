"""``monitor`` as a callback of the Hugging Face Trainer; needs transformers, and is imported by whoever uses it."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from chainrule.verbs.monitor import monitor


class MonitorCallback(TrainerCallback):
    """Watches a Trainer's steps: ``Trainer(..., callbacks=[MonitorCallback(every=25)])``.

    Args:
        every, path, tensorboard, record, on_finding: as in :class:`chainrule.monitor`.

    Attributes:
        monitor: the monitor, once training has begun; its ``findings`` and ``history`` stay after the end.

    What was measured last also goes into what the Trainer logs (``monitor/grad_norm``), for the callbacks after it.
    """

    def __init__(self, every: int = 25, **settings: Any) -> None:
        self.settings = {"every": every, **settings}
        self.monitor: monitor | None = None
        self._logged = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begins to watch."""
        self.close()
        self.monitor = monitor(given["model"], given["optimizer"], **self.settings)
        self.monitor.__enter__()
        self._logged = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **given: Any) -> None:
        """Adds what was measured last to what the Trainer logs."""
        if self.monitor is None or logs is None or len(self.monitor.history) == self._logged:
            return
        self._logged = len(self.monitor.history)
        last = self.monitor.history[-1]
        logs |= {f"monitor/{k}": last[k] for k in ("grad_norm", "noise_scale") if last.get(k) is not None}
        logs["monitor/findings"] = len(self.monitor.findings)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Takes the hooks away."""
        self.close()

    def close(self) -> None:
        """Takes the hooks away; call it when ``train()`` was left by an exception."""
        if self.monitor is not None:
            self.monitor.__exit__(None, None, None)
