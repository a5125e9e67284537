"""A partition as Inductor takes it: a class of its own kind, with what its caches go by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomPartitionerFn


class Planned(CustomPartitionerFn):
    """Calls the partition; written to a cache key as its name alone."""

    def __init__(self, partition: Any) -> None:
        self.partition, self.name = partition, partition.uuid()

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
        return self.partition(gm, joint_inputs, **kwargs)

    def uuid(self) -> str:
        """What the caches go by."""
        return self.name

    def __getstate__(self) -> dict[str, str]:
        return {"name": self.name}


def compiled(module: fx.GraphModule, inputs: Sequence[Any], partition: Any) -> Any:
    """The module compiled by Inductor with this partition."""
    with config.patch(custom_partitioner_fn=Planned(partition)):
        return compile_fx(module, list(inputs))
