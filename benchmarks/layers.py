"""The layers of ``torch.nn`` as small models: every layer, activation, loss, mask and parametrization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Make = Callable[[], tuple[nn.Module, Any]]


class _With(nn.Module):
    """A layer on its input times a parameter of that shape, so that a gradient reaches it; ``fixed`` follow."""

    def __init__(self, layer: nn.Module, shape: Sequence[int], *fixed: Any, **named: Any) -> None:
        super().__init__()
        self.layer, self.fixed, self.named = layer, fixed, named
        self.scale = nn.Parameter(torch.rand(*shape) + 0.5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x * self.scale, *self.fixed, **self.named)


class _Packed(_With):
    """A recurrent layer on sequences of different lengths."""

    def forward(self, x: torch.Tensor) -> Any:
        given = pack_padded_sequence(x * self.scale, torch.tensor([4, 2, 5]), batch_first=True, enforce_sorted=False)
        out, state = self.layer(given)
        return pad_packed_sequence(out, batch_first=True)[0], state


class _Two(_With):
    """A layer of two tensors that both have a gradient (distances, bilinear maps, decoders)."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return self.layer(x * self.scale, y * self.scale, *self.fixed, **self.named)


class _Attention(_With):
    """Attention of a sequence to itself."""

    def forward(self, x: torch.Tensor) -> Any:
        y = x * self.scale
        return self.layer(y, y, y, *self.fixed, **self.named)


def _of(layer: Callable[[], nn.Module], *shape: int, wrap: Any = _With, fixed: Any = (), **named: Any):
    def make() -> tuple[nn.Module, Any]:
        model = wrap(layer(), shape, *fixed, **named)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        return model, (x, x.flip(0).cos()) if wrap is _Two else x

    return make


def _loss(layer: Callable[[], nn.Module], target: torch.Tensor, *shape: int, squash: bool = False) -> Make:
    class Loss(_With):
        def forward(self, x: torch.Tensor) -> Any:
            y = x * self.scale
            return self.layer(
                y.sigmoid() if squash else y,
                self.fixed[0].to(x.dtype) if self.fixed[0].is_floating_point() else self.fixed[0],
            )

    return _of(layer, *shape, wrap=Loss, fixed=(target,))


def layers() -> dict[str, Make]:
    """name -> the maker of a model and what it is called with."""
    return {**_simple(), **_losses(), **_recurrent(), **_transformers(), **_parametrized()}


def _simple() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for name in _ACTIVATIONS:
        found[name] = _of(getattr(nn, name), 3, 4, 6)
    found["GLU"], found["Softmax"] = _of(nn.GLU, 3, 6), _of(lambda: nn.Softmax(-1), 3, 6)
    found["LogSoftmax"], found["Softmin"] = _of(lambda: nn.LogSoftmax(1), 3, 6), _of(lambda: nn.Softmin(-1), 3, 6)
    found["Softmax2d"] = _of(nn.Softmax2d, 2, 3, 4, 4)
    found["PReLU(3)"] = _of(lambda: nn.PReLU(3), 2, 3, 4)
    found["Threshold"] = _of(lambda: nn.Threshold(0.1, 0.5), 3, 6)
    found["Linear"], found["Identity"] = _of(lambda: nn.Linear(6, 3), 2, 4, 6), _of(nn.Identity, 3)
    found["Bilinear"] = _of(lambda: nn.Bilinear(4, 4, 3), 5, 4, wrap=_Two)
    found["Flatten"], found["Unflatten"] = _of(nn.Flatten, 2, 3, 4), _of(lambda: nn.Unflatten(1, (2, 3)), 2, 6)
    found["CosineSimilarity"] = _of(nn.CosineSimilarity, 5, 4, wrap=_Two)
    found["PairwiseDistance"] = _of(nn.PairwiseDistance, 5, 4, wrap=_Two)
    for d in (1, 2, 3):
        image = (2, 4, *(7,) * d)
        conv, back = getattr(nn, f"Conv{d}d"), getattr(nn, f"ConvTranspose{d}d")
        found |= {
            f"Conv{d}d": _of(lambda c=conv: c(4, 6, 3), *image),
            f"Conv{d}d strided": _of(lambda c=conv: c(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), *image),
            f"Conv{d}d same": _of(
                lambda c=conv: c(4, 6, 3, padding="same", padding_mode="reflect", bias=False), *image
            ),
            f"ConvTranspose{d}d": _of(
                lambda c=back: c(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), *image
            ),
            f"MaxPool{d}d": _of(lambda d=d: getattr(nn, f"MaxPool{d}d")(3, 2, 1), *image),
            f"AvgPool{d}d": _of(lambda d=d: getattr(nn, f"AvgPool{d}d")(3, 2, 1, count_include_pad=False), *image),
            f"LPPool{d}d": _of(lambda d=d: getattr(nn, f"LPPool{d}d")(2, 2), *image),
            f"AdaptiveAvgPool{d}d": _of(lambda d=d: getattr(nn, f"AdaptiveAvgPool{d}d")(3), *image),
            f"AdaptiveMaxPool{d}d": _of(lambda d=d: getattr(nn, f"AdaptiveMaxPool{d}d")(3), *image),
            f"BatchNorm{d}d": _of(lambda d=d: getattr(nn, f"BatchNorm{d}d")(4), *image),
            f"InstanceNorm{d}d": _of(lambda d=d: getattr(nn, f"InstanceNorm{d}d")(4, affine=True), *image),
            f"Dropout{d}d": _of(getattr(nn, f"Dropout{d}d"), *image),
            f"ReflectionPad{d}d": _of(lambda d=d: getattr(nn, f"ReflectionPad{d}d")(2), *image),
            f"ReplicationPad{d}d": _of(lambda d=d: getattr(nn, f"ReplicationPad{d}d")(2), *image),
            f"CircularPad{d}d": _of(lambda d=d: getattr(nn, f"CircularPad{d}d")(2), *image),
            f"ZeroPad{d}d": _of(lambda d=d: getattr(nn, f"ZeroPad{d}d")(1), *image),
            f"MaxUnpool{d}d": _of(lambda d=d: _Unpooled(d), *image),
            f"InstanceNorm{d}d tracked": _of(
                lambda d=d: getattr(nn, f"InstanceNorm{d}d")(4, track_running_stats=True), *image
            ),
            f"ConstantPad{d}d": _of(lambda d=d: getattr(nn, f"ConstantPad{d}d")(2, 0.5), *image),
        }
    image = (2, 4, 7, 7)
    return found | {
        "BatchNorm cumulative": _of(lambda: nn.BatchNorm1d(4, momentum=None), 5, 4),
        "BatchNorm no statistics": _of(lambda: nn.BatchNorm1d(4, track_running_stats=False), 5, 4),
        "FractionalMaxPool2d": _of(lambda: nn.FractionalMaxPool2d(2, output_size=3), *image),
        "FractionalMaxPool3d": _of(lambda: nn.FractionalMaxPool3d(2, output_ratio=0.5), *image, 7),
        "UpsamplingBilinear2d": _of(lambda: nn.UpsamplingBilinear2d(scale_factor=2), *image),
        "UpsamplingNearest2d": _of(lambda: nn.UpsamplingNearest2d(size=9), *image),
        "Upsample bicubic": _of(lambda: nn.Upsample(size=9, mode="bicubic", align_corners=True), *image),
        "Upsample trilinear": _of(lambda: nn.Upsample(scale_factor=2, mode="trilinear"), 2, 3, 3, 4, 3),
        "LayerNorm": _of(lambda: nn.LayerNorm([7, 7]), *image),
        "LayerNorm plain": _of(lambda: nn.LayerNorm(7, elementwise_affine=False), *image),
        "GroupNorm": _of(lambda: nn.GroupNorm(2, 4), *image),
        "RMSNorm": _of(lambda: nn.RMSNorm(7), *image),
        "LocalResponseNorm": _of(lambda: nn.LocalResponseNorm(2), *image),
        "CrossMapLRN2d": _of(lambda: nn.CrossMapLRN2d(2), *image),
        "Dropout": _of(lambda: nn.Dropout(0.3), *image),
        "AlphaDropout": _of(lambda: nn.AlphaDropout(0.3), *image),
        "FeatureAlphaDropout": _of(lambda: nn.FeatureAlphaDropout(0.3), *image),
        "Upsample bilinear": _of(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), *image),
        "Upsample nearest": _of(lambda: nn.Upsample(size=5), *image),
        "PixelShuffle": _of(lambda: nn.PixelShuffle(2), *image),
        "PixelUnshuffle": _of(lambda: nn.PixelUnshuffle(7), *image),
        "ChannelShuffle": _of(lambda: nn.ChannelShuffle(2), *image),
        "Unfold": _of(lambda: nn.Unfold(3, padding=1), *image),
        "Fold": _of(lambda: nn.Fold((4, 4), 2), 2, 8, 9),
        "Embedding": lambda: (nn.Embedding(9, 4, padding_idx=2), torch.tensor([[1, 2, 8], [1, 0, 1]])),
        "Embedding scaled": lambda: (nn.Embedding(9, 4, scale_grad_by_freq=True), torch.tensor([1, 2, 1])),
        **{
            f"EmbeddingBag {mode}": lambda m=mode: (nn.EmbeddingBag(9, 4, mode=m), torch.tensor([[1, 2, 8], [1, 0, 1]]))
            for mode in ("sum", "mean", "max")
        },
        "EmbeddingBag padded": lambda: (nn.EmbeddingBag(9, 4, padding_idx=1), torch.tensor([[1, 2, 8], [1, 0, 1]])),
        "EmbeddingBag offsets": lambda: (nn.EmbeddingBag(9, 4), (torch.tensor([1, 2, 8, 1]), torch.tensor([0, 3]))),
    }


_ACTIVATIONS = (
    "ELU Hardshrink Hardsigmoid Hardtanh Hardswish LeakyReLU LogSigmoid PReLU ReLU ReLU6 RReLU SELU CELU GELU "
    "Sigmoid SiLU Mish Softplus Softshrink Softsign Tanh Tanhshrink"
).split()


def _losses() -> dict[str, Make]:
    real, classes = torch.linspace(-1, 2, 20).reshape(5, 4), torch.tensor([0, 3, 1, 1, 2])
    share = torch.linspace(0.1, 0.9, 20).reshape(5, 4)
    signs = torch.tensor([1.0, -1, 1, -1, 1])
    found = {name: _loss(getattr(nn, name), real, 5, 4) for name in ("L1Loss", "MSELoss", "HuberLoss", "SmoothL1Loss")}
    found |= {
        "CrossEntropyLoss": _loss(nn.CrossEntropyLoss, classes, 5, 4),
        "CrossEntropyLoss smoothed": _loss(
            lambda: nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=1), classes, 5, 4
        ),
        "CrossEntropyLoss weighted": _loss(lambda: nn.CrossEntropyLoss(torch.rand(4), reduction="none"), classes, 5, 4),
        "CrossEntropyLoss shares": _loss(nn.CrossEntropyLoss, share / share.sum(1, keepdim=True), 5, 4),
        "LinearCrossEntropyLoss": _loss(lambda: nn.LinearCrossEntropyLoss(4, 5), classes, 5, 4),
        "NLLLoss": _loss(nn.NLLLoss, classes, 5, 4),
        "NLLLoss2d": _loss(nn.NLLLoss, torch.arange(18).reshape(2, 3, 3) % 4, 2, 4, 3, 3),
        "PoissonNLLLoss": _loss(lambda: nn.PoissonNLLLoss(full=True), share * 5, 5, 4),
        "KLDivLoss": _loss(lambda: nn.KLDivLoss(reduction="batchmean"), share, 5, 4),
        "BCELoss": _loss(nn.BCELoss, share, 5, 4, squash=True),
        "BCEWithLogitsLoss": _loss(lambda: nn.BCEWithLogitsLoss(pos_weight=torch.rand(4)), share, 5, 4),
        "SoftMarginLoss": _loss(nn.SoftMarginLoss, signs, 5),
        "HingeEmbeddingLoss": _loss(nn.HingeEmbeddingLoss, signs, 5),
        "MultiLabelMarginLoss": _loss(nn.MultiLabelMarginLoss, torch.tensor([[3, 0, -1, 1]]), 1, 4),
        "MultiLabelSoftMarginLoss": _loss(nn.MultiLabelSoftMarginLoss, share.round(), 5, 4),
        "MultiMarginLoss": _loss(nn.MultiMarginLoss, classes, 5, 4),
        "CosineEmbeddingLoss": _of(nn.CosineEmbeddingLoss, 5, 4, wrap=_Two, fixed=(signs,)),
        "MarginRankingLoss": _of(nn.MarginRankingLoss, 5, wrap=_Two, fixed=(signs,)),
        "TripletMarginLoss": _of(lambda: nn.TripletMarginLoss(swap=True), 5, 4, wrap=_Two, fixed=(real,)),
        "TripletMarginWithDistanceLoss": _of(nn.TripletMarginWithDistanceLoss, 5, 4, wrap=_Two, fixed=(real,)),
        "GaussianNLLLoss": _loss(lambda: _Gaussian(), real, 5, 4),
        "CTCLoss": _of(
            _Ctc, 6, 2, 5, fixed=(torch.tensor([[1, 2], [3, 3]]), torch.tensor([6, 6]), torch.tensor([2, 2]))
        ),
        "AdaptiveLogSoftmaxWithLoss": _of(
            lambda: nn.AdaptiveLogSoftmaxWithLoss(6, 10, [3, 6]), 4, 6, fixed=(torch.tensor([0, 4, 9, 2]),)
        ),
    }
    return found


class _Unpooled(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{rank}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{rank}d")(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, places = self.pool(x)
        return self.unpool(values.sin(), places, output_size=x.shape[2:])


class _Gaussian(nn.Module):
    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.GaussianNLLLoss()(x, target, x.square() + 0.1)


class _Ctc(nn.Module):
    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return nn.CTCLoss()(x.log_softmax(-1), *rest)


def _recurrent() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for kind in ("RNN", "LSTM", "GRU"):
        cls = getattr(nn, kind)
        for name, options in {
            "": {},
            " two": {"num_layers": 2, "dropout": 0.4, "batch_first": True},
            " bidirectional": {"num_layers": 2, "dropout": 0.4, "bidirectional": True, "bias": False},
        }.items():
            found[kind + name] = _of(lambda c=cls, o=options: c(4, 3, **o), 3, 5, 4)
        found[f"{kind} unbatched"] = _of(lambda c=cls: c(4, 3), 5, 4)
        found[f"{kind} packed"] = _of(
            lambda c=cls: c(4, 3, 2, bidirectional=True, dropout=0.3, batch_first=True), 3, 5, 4, wrap=_Packed
        )
        found[f"{kind}Cell"] = _of(lambda k=kind: getattr(nn, f"{k}Cell")(4, 3), 5, 4)
    found["RNN relu"] = _of(lambda: nn.RNN(4, 3, nonlinearity="relu"), 3, 5, 4)
    found["LSTM projected"] = _of(lambda: nn.LSTM(4, 3, 2, proj_size=2, dropout=0.3, bidirectional=True), 3, 5, 4)
    return found


def _transformers() -> dict[str, Make]:
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    first = {"batch_first": True}

    def attention(**options: Any) -> Callable[[], nn.Module]:
        return lambda: nn.MultiheadAttention(4, 2, **first, **options)

    def layer(**options: Any) -> Any:
        given: Any = {**first, **options}
        return nn.TransformerEncoderLayer(4, 2, 6, **given)

    def decoder() -> Any:
        given: Any = first
        return nn.TransformerDecoderLayer(4, 2, 6, **given)

    shape, masks = (3, 5, 4), {"src_key_padding_mask": padding}
    return {
        "MultiheadAttention": _of(attention(), *shape, wrap=_Attention),
        "MultiheadAttention dropout": _of(attention(dropout=0.2), *shape, wrap=_Attention, key_padding_mask=padding),
        "MultiheadAttention fast": _of(attention(dropout=0.2), *shape, wrap=_Attention, need_weights=False),
        "MultiheadAttention masked": _of(
            attention(add_bias_kv=True), *shape, wrap=_Attention, attn_mask=padding[:1].expand(5, 5)
        ),
        "MultiheadAttention zero": _of(
            attention(add_zero_attn=True), *shape, wrap=_Attention, average_attn_weights=False
        ),
        "TransformerEncoderLayer": _of(layer, *shape),
        "TransformerEncoderLayer pre": _of(lambda: layer(norm_first=True, activation="gelu"), *shape, **masks),
        "TransformerEncoder": _of(lambda: nn.TransformerEncoder(layer(), 2), *shape, **masks),
        "TransformerEncoder causal": _of(
            lambda: nn.TransformerEncoder(layer(), 2), *shape, mask=causal.isinf(), is_causal=True
        ),
        "TransformerDecoderLayer": _of(decoder, *shape, wrap=_Two),
        "TransformerDecoder": _of(
            lambda: nn.TransformerDecoder(decoder(), 2),
            *shape,
            wrap=_Two,
            tgt_mask=causal.isinf(),
            memory_key_padding_mask=padding,
        ),
        "Transformer": _of(
            lambda: nn.Transformer(4, 2, 1, 1, 6, batch_first=True),
            *shape,
            wrap=_Two,
            tgt_mask=causal.isinf(),
            src_key_padding_mask=padding,
        ),
    }


def _parametrized() -> dict[str, Make]:
    return {
        "weight_norm": _of(lambda: parametrizations.weight_norm(nn.Linear(6, 3)), 4, 6),
        "weight_norm conv": _of(lambda: parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2), 2, 4, 7),
        "weight_norm old": _of(lambda: nn.utils.weight_norm(nn.Linear(6, 3)), 4, 6),
        "spectral_norm": _of(lambda: parametrizations.spectral_norm(nn.Linear(6, 3)), 4, 6),
        "spectral_norm conv": _of(lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), 2, 4, 7, 7),
        "orthogonal": _of(lambda: parametrizations.orthogonal(nn.Linear(6, 3)), 4, 6),
        "orthogonal cayley": _of(lambda: parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"), 4, 4),
    }
