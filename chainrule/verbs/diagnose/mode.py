"""The mode that a model is trained in: eval() switches dropout off and keeps running statistics as they are."""

from __future__ import annotations

from torch import nn

from chainrule.verbs.diagnose.examination import Examination
from chainrule.verbs.diagnose.naming import listed
from chainrule.verbs.diagnose.patches import Patch
from chainrule.verbs.kinds import Finding

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def evaluated(e: Examination) -> list[Finding]:
    """Whether an optimizer trains a model that is in eval() as a whole.

    A part in eval() is on purpose (a frozen backbone, batch statistics that are kept), and so is a model most of whose
    parameters are not trained.
    """
    optimized = e.subject.optimized
    if e.optimizer is None or not optimized:
        return []
    modules = {run.path: run.module for run in e.seen.tape.runs if run.path != "loss"}
    if not modules or any(m.training for m in modules.values()):
        return []
    held = [p for p in e.subject.parameters.values() if p.numel()]
    trained = sum(p.numel() for p in held if p.requires_grad and id(p) in optimized)
    if trained <= 0.9 * sum(p.numel() for p in held):
        return []
    drops = [n for n, m in modules.items() if isinstance(m, _DROPS) and m.p > 0]
    norms = [
        n for n, m in modules.items()
        if isinstance(m, _BATCH) and m.track_running_stats and m.affine
        and all(p.requires_grad and id(p) in optimized for p in m.parameters())
    ]  # fmt: skip
    if not drops and not norms:
        return []
    off = [f"{listed(drops)} drops nothing"] if drops else []
    off += [f"{listed(norms)} keeps its running mean and variance"] if norms else []
    return [
        Finding(
            "frozen", "warning", listed([*drops, *norms]),
            "the optimizer trains a model that is in eval() mode: " + ", and ".join(off),
            measured="training is False in every module that ran",
            expected="model.train() before training steps, and again after each evaluation",
            fix="model.train()", patch=Patch("model.train()"),
        )
    ]  # fmt: skip
