"""What the examination has to know about torch's own ops: which only move numbers, which squash, which are losses.

One table per property, by the name of the aten op without overload and without the trailing underscore of in-place
variants. An op in no table is still recorded; nothing is claimed of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The output holds numbers of the input, at other places.
MOVEMENT = frozenset(
    "view reshape _unsafe_view view_as reshape_as flatten unflatten squeeze unsqueeze expand expand_as permute "
    "transpose t numpy_T mT movedim swapaxes swapdims contiguous clone alias lift_fresh slice select narrow split "
    "split_with_sizes chunk unbind to _to_copy type_as detach detach_ unfold ravel tensor_split hsplit index_select "
    "broadcast_to broadcast_tensors as_strided diagonal flip roll float double half real".split()
)
# Linear in their first input whatever the others are, besides movement.
LINEAR_IN_VALUE = frozenset("neg sum mean cat stack pad constant_pad_nd avg_pool1d avg_pool2d avg_pool3d "
                            "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split())  # fmt: skip
# op -> (position of the input, position of the weight): products of a value with a parameter.
PRODUCTS: Mapping[str, tuple[int, int]] = {
    "linear": (0, 1), "conv1d": (0, 1), "conv2d": (0, 1), "conv3d": (0, 1), "convolution": (0, 1),
    "_convolution": (0, 1), "conv_transpose1d": (0, 1), "conv_transpose2d": (0, 1), "conv_transpose3d": (0, 1),
    "addmm": (1, 2), "matmul": (0, 1), "mm": (0, 1), "bmm": (0, 1), "baddbmm": (1, 2), "mv": (1, 0),
    "bilinear": (0, 2), "einsum": (1, 1),
}  # fmt: skip
CONVOLUTIONS = frozenset(n for n in PRODUCTS if "conv" in n)
RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split())
TABLES = frozenset({"embedding", "embedding_bag", "_embedding_bag", "embedding_bag_forward_only"})
NORMALIZATIONS = frozenset(
    "batch_norm _native_batch_norm_legit native_batch_norm layer_norm native_layer_norm group_norm native_group_norm "
    "instance_norm rms_norm _fused_rms_norm".split()
)
# Normalise over the batch in training, on purpose.
BATCH_STATISTICS = frozenset({"batch_norm", "_native_batch_norm_legit", "native_batch_norm", "sync_batch_norm"})
DROPOUTS = frozenset("dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout".split())
SOFTMAXES = frozenset({"softmax", "_softmax", "_safe_softmax"})
LOG_SOFTMAXES = frozenset({"log_softmax", "_log_softmax"})


@dataclass(frozen=True)
class Activation:
    """A squashing function.

    Attributes:
        top: the largest size of its derivative. dies: whether its derivative is exactly 0 on a half line.
        bounded: its range where that is finite.
    """

    top: float
    dies: bool = False
    bounded: tuple[float, float] | None = None


ACTIVATIONS: Mapping[str, Activation] = {
    "relu": Activation(1.0, dies=True),
    "relu6": Activation(1.0, dies=True, bounded=(0.0, 6.0)),
    "leaky_relu": Activation(1.0), "prelu": Activation(1.0), "_prelu_kernel": Activation(1.0),
    "rrelu": Activation(1.0), "elu": Activation(1.0), "selu": Activation(1.76), "celu": Activation(1.0),
    "sigmoid": Activation(0.25, bounded=(0.0, 1.0)),
    "tanh": Activation(1.0, bounded=(-1.0, 1.0)),
    "hardtanh": Activation(1.0, dies=True, bounded=(-1.0, 1.0)),
    "hardsigmoid": Activation(1 / 6, dies=True, bounded=(0.0, 1.0)),
    "hardswish": Activation(1.5, dies=True),
    "clamp": Activation(1.0, dies=True), "clamp_min": Activation(1.0, dies=True),
    "clamp_max": Activation(1.0, dies=True), "threshold": Activation(1.0, dies=True),
    "gelu": Activation(1.13), "silu": Activation(1.1), "mish": Activation(1.09), "softplus": Activation(1.0),
    "log_sigmoid": Activation(1.0), "erf": Activation(1.13, bounded=(-1.0, 1.0)),
    "atan": Activation(1.0, bounded=(-1.571, 1.571)), "softsign": Activation(1.0, bounded=(-1.0, 1.0)),
}  # fmt: skip
# The derivative is zero wherever there is one.
FLAT = frozenset("sign sgn round floor ceil trunc heaviside signbit".split())

# They ask a tensor for its shape only.
SHAPE_ONLY = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty "
    "new_empty_strided".split()
)


@dataclass(frozen=True)
class LossOp:
    """A loss that torch has an op for.

    Attributes:
        expects: what its first input has to be: "logits", "log_probabilities", "probabilities" or "any".
        classes: whether the target holds class indices (where it is of whole numbers).
    """

    expects: str
    classes: bool = False


LOSSES: Mapping[str, LossOp] = {
    "cross_entropy_loss": LossOp("logits", classes=True),
    "nll_loss": LossOp("log_probabilities", classes=True),
    "nll_loss_nd": LossOp("log_probabilities", classes=True),
    "nll_loss2d": LossOp("log_probabilities", classes=True),
    "binary_cross_entropy": LossOp("probabilities"),
    "binary_cross_entropy_with_logits": LossOp("binary_logits"),
    "mse_loss": LossOp("any"), "l1_loss": LossOp("any"), "smooth_l1_loss": LossOp("any"), "huber_loss": LossOp("any"),
    "kl_div": LossOp("log_probabilities"), "poisson_nll_loss": LossOp("any"), "ctc_loss": LossOp("log_probabilities"),
    "multi_margin_loss": LossOp("any", classes=True), "soft_margin_loss": LossOp("any"),
    "hinge_embedding_loss": LossOp("any"), "multilabel_margin_loss": LossOp("any"),
    "margin_ranking_loss": LossOp("any"), "cosine_embedding_loss": LossOp("any"),
}  # fmt: skip
# Losses that are never below zero, so that a negative weight has no minimum.
UNBOUNDED_ABOVE = frozenset(LOSSES) - {"poisson_nll_loss", "kl_div"}
# What may have been done to the model's output before the loss without changing what it is.
TRANSPARENT = MOVEMENT | {"dropout", "index", "masked_select", "getitem"}


def base_name(name: str) -> str:
    """``relu_`` -> ``relu``: in-place variants are the same function."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
