"""Networks that moments are predicted for and starts are chosen for: name -> function that makes a case.

Plain networks of every activation, convolutional, residual and recurrent networks, and transformers from
configuration; all small, with random data, made from one seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn

import chainrule as cr
from chainrule.verbs.case import Case

warnings.filterwarnings("ignore")

ARCHITECTURES: dict[str, Callable[[], Case]] = {}


def architecture(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Adds a network under a name; it is made from seed 0."""

    def declare(make: Callable[[], Case]) -> Callable[[], Case]:
        def seeded() -> Case:
            torch.manual_seed(0)
            return make()

        ARCHITECTURES[name] = seeded
        return seeded

    return declare


def classifier(model: nn.Module, *shape: int, classes: int = 10) -> Case:
    """A case with normal inputs and random classes."""
    return cr.case(model, (torch.randn(*shape), torch.randint(0, classes, shape[:1])), nn.CrossEntropyLoss())


# ---- plain networks ----------------------------------------------------------------------------------------
_GAINS = {
    "ReLU": 1.414, "LeakyReLU": 1.4, "GELU": 1.53, "SiLU": 1.68, "Mish": 1.49, "ELU": 1.25,
    "SELU": 1.0, "Tanh": 1.2, "Sigmoid": 1.8, "Softplus": 1.04, "Hardswish": 1.7, "Hardtanh": 1.3,
}  # fmt: skip


def plain(activation: str, gain: float, width: int = 96, depth: int = 6) -> Case:
    """Normal weights of variance gain^2 / fan_in, biases of variance 0.01."""
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [nn.Linear(32 if k == 0 else width, width), getattr(nn, activation)()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
            nn.init.normal_(layer.bias, std=0.1)
    return classifier(model, 16, 32)


for _activation, _gain in _GAINS.items():
    architecture(f"MLP {_activation}")(lambda a=_activation, g=_gain: plain(a, g))


@architecture("MLP default, 20 deep")
def _default() -> Case:
    layers: list[nn.Module] = []
    for _ in range(20):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    return classifier(nn.Sequential(*layers, nn.Linear(64, 10)), 16, 64)


@architecture("MLP batch norm")
def _batch_norm() -> Case:
    layers: list[nn.Module] = []
    for k in range(5):
        layers += [nn.Linear(32 if k == 0 else 96, 96), nn.BatchNorm1d(96), nn.ReLU()]
    return classifier(nn.Sequential(*layers, nn.Linear(96, 10)), 32, 32)


@architecture("MLP layer norm, dropout")
def _layer_norm() -> Case:
    layers: list[nn.Module] = []
    for k in range(4):
        layers += [nn.Linear(32 if k == 0 else 96, 96), nn.LayerNorm(96), nn.GELU(), nn.Dropout(0.2)]
    return classifier(nn.Sequential(*layers, nn.Linear(96, 10)), 16, 32)


@architecture("autoencoder")
def _autoencoder() -> Case:
    sizes = (48, 96, 24, 96, 48)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    x = torch.randn(16, 48)
    return cr.case(nn.Sequential(*layers[:-1]), (x, x), nn.MSELoss())


class _Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 6 * width), nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(a) * b)


@architecture("gated residual MLP")
def _gated() -> Case:
    return classifier(nn.Sequential(nn.Linear(32, 64), *(_Gated(64) for _ in range(4)), nn.Linear(64, 10)), 16, 32)


class _Written(nn.Module):
    """Activations written out, shared values, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(96, 96) for _ in range(4))
        self.out = nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        h = h * torch.sigmoid(1.702 * h)
        u = torch.tanh(self.b(h)) * torch.sigmoid(self.c(h))
        v = self.d(u)
        v = torch.where(v > 0, v, 0.1 * v) + 0.5 * v
        return self.out(torch.cat([v, u], -1))


@architecture("written activations, concatenated")
def _written() -> Case:
    return classifier(_Written(), 16, 96)


# ---- convolutional networks --------------------------------------------------------------------------------
def _conv(a: int, b: int, k: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **more)


def he(model: nn.Module) -> nn.Module:
    """Kaiming-normal kernels."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
    return model


@architecture("CNN plain")
def _cnn() -> Case:
    layers: list[nn.Module] = [_conv(3, 32), nn.ReLU()]
    for _ in range(4):
        layers += [_conv(32, 32), nn.ReLU()]
    return classifier(he(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 64, 10))), 8, 3, 8, 8)


@architecture("CNN pooled, batch norm")
def _cnn_pooled() -> Case:
    layers: list[nn.Module] = []
    for a, b in ((3, 32), (32, 48), (48, 64)):
        layers += [_conv(a, b, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), 16, 3, 16, 16)


class _Residual(nn.Module):
    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = _conv(a, b, stride=stride, bias=False), _conv(b, b, bias=False)
        self.n1, self.n2 = nn.BatchNorm2d(b), nn.BatchNorm2d(b)
        self.skip = (
            nn.Identity() if a == b else nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.n2(self.second(torch.relu(self.n1(self.first(x)))))
        return torch.relu(h + self.skip(x))


@architecture("ResNet small")
def _resnet() -> Case:
    model = nn.Sequential(
        _conv(3, 24), nn.BatchNorm2d(24), nn.ReLU(), _Residual(24, 24), _Residual(24, 48, 2), _Residual(48, 48),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip
    return classifier(model, 16, 3, 12, 12)


@architecture("ResNet small, evaluation")
def _resnet_eval() -> Case:
    case = ARCHITECTURES["ResNet small"]()
    case.model.eval()
    return cr.case(case.model, case.batch, case.loss)


@architecture("depthwise separable")
def _separable() -> Case:
    layers: list[nn.Module] = [_conv(3, 48), nn.Hardswish()]
    for _ in range(3):
        layers += [_conv(48, 48, groups=48), nn.GroupNorm(6, 48), nn.Conv2d(48, 48, 1), nn.Hardswish()]
    return classifier(nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10)), 8, 3, 8, 8)


@architecture("transposed, autoencoder")
def _transposed() -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1),
    )  # fmt: skip
    x = torch.randn(8, 3, 16, 16)
    return cr.case(model, (x, torch.randn(8, 3, 16, 16)), nn.MSELoss())


class _Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = _conv(3, 24)
        self.layers = nn.ModuleList(_conv(24 + 16 * k, 16) for k in range(4))
        self.out = nn.Linear(24 + 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = torch.cat([h, layer(torch.relu(h))], 1)
        return self.out(h.mean((2, 3)))


@architecture("dense concatenations")
def _dense() -> Case:
    return classifier(_Dense(), 8, 3, 8, 8)


class _Squeeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.down, self.up = _conv(width, width), nn.Linear(width, width // 4), nn.Linear(width // 4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.conv(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(h.mean((2, 3))))))
        return x + h * gate[:, :, None, None]


@architecture("squeeze and excite")
def _squeeze() -> Case:
    model = nn.Sequential(
        _conv(3, 32), *(_Squeeze(32) for _ in range(3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    return classifier(model, 8, 3, 8, 8)


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = _conv(3, 24), _conv(24, 48), _conv(72, 24), nn.Conv2d(24, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        low = torch.relu(self.b(nn.functional.max_pool2d(h, 2)))
        up = nn.functional.interpolate(low, scale_factor=2)
        return self.d(torch.relu(self.c(torch.cat([h, up], 1))))


@architecture("U-Net")
def _unet() -> Case:
    return cr.case(_UNet(), (torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)), nn.MSELoss())


@architecture("1-d convolutions")
def _conv1d() -> Case:
    model = nn.Sequential(
        nn.Conv1d(8, 48, 5, padding=2), nn.GELU(), nn.Conv1d(48, 48, 5, stride=2, padding=2), nn.GELU(),
        nn.Conv1d(48, 48, 3, padding=2, dilation=2), nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(48, 10),
    )  # fmt: skip
    return classifier(model, 8, 8, 32)


# ---- recurrent networks ------------------------------------------------------------------------------------
class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], layers: int = 1) -> None:
        super().__init__()
        self.core, self.out = kind(16, 64, layers, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(x)[0][:, -1])


for _kind in (nn.LSTM, nn.GRU, nn.RNN):
    architecture(f"{_kind.__name__}")(lambda k=_kind: classifier(_Recurrent(k), 8, 12, 16))


# ---- attention ---------------------------------------------------------------------------------------------
class _Encoder(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 64), nn.Parameter(torch.randn(16, 64) * 0.5)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=first)
        self.core, self.out = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(64, 10)
        for p in self.core.parameters():  # layers are copies of one: drawn anew
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.core(self.embed(x) + self.place).mean(1))


for _first in (True, False):
    architecture(f"encoder, norm {'first' if _first else 'last'}")(
        lambda f=_first: cr.case(
            _Encoder(f), (torch.randint(0, 50, (8, 16)), torch.randint(0, 10, (8,))), nn.CrossEntropyLoss()
        )
    )


class _Mixer(nn.Module):
    def __init__(self, tokens: int = 16, width: int = 64) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.t1, self.t2, self.c1, self.c2 = (
            nn.Linear(tokens, 64),
            nn.Linear(64, tokens),
            nn.Linear(width, 128),
            nn.Linear(128, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.t2(nn.functional.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
        return x + self.c2(nn.functional.gelu(self.c1(self.n2(x))))


class _MixerNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.layers, self.out = nn.Conv2d(3, 64, 4, 4), nn.Sequential(_Mixer(), _Mixer()), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


@architecture("MLP-Mixer")
def _mixer() -> Case:
    return classifier(_MixerNet(), 8, 3, 16, 16)


# ---- from configuration ------------------------------------------------------------------------------------
def language(model: nn.Module, vocabulary: int = 512, length: int = 24, **more: Any) -> Case:
    """Random tokens, the model's own loss."""
    model.eval()
    tokens = torch.randint(0, vocabulary, (4, length))
    return cr.case(model, {"input_ids": tokens, "labels": tokens.clone(), **more}, "model")


@architecture("GPT-2")
def _gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    c = GPT2Config(vocab_size=512, n_embd=128, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    return language(GPT2LMHeadModel(c))


@architecture("Llama")
def _llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    c = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return language(LlamaForCausalLM(c))


@architecture("BERT")
def _bert() -> Case:
    from transformers import BertConfig, BertForMaskedLM

    c = BertConfig(vocab_size=512, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256)
    return language(BertForMaskedLM(c))


@architecture("T5")
def _t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    c: Any = cast(Any, T5Config)(
        vocab_size=512, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return language(T5ForConditionalGeneration(c))


@architecture("ViT")
def _vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    c: Any = cast(Any, ViTConfig)(
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=16,
        patch_size=4,
        num_labels=10,
    )
    model = ViTForImageClassification(c).eval()
    return cr.case(model, {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.randint(0, 10, (4,))}, "model")


@architecture("ConvNeXt")
def _convnext() -> Case:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    c: Any = cast(Any, ConvNextConfig)(hidden_sizes=[32, 64], depths=[2, 2], num_stages=2, num_labels=10)
    model = ConvNextForImageClassification(c).eval()
    return cr.case(model, {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.randint(0, 10, (4,))}, "model")


@architecture("ResNet from configuration")
def _hf_resnet() -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    c: Any = cast(Any, ResNetConfig)(
        embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], layer_type="basic", num_labels=10
    )
    model = ResNetForImageClassification(c)
    return cr.case(model, {"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.randint(0, 10, (8,))}, "model")


@architecture("Mamba")
def _mamba() -> Case:
    from transformers import MambaConfig, MambaForCausalLM

    c = MambaConfig(vocab_size=512, hidden_size=64, state_size=8, num_hidden_layers=2)
    return language(MambaForCausalLM(c), length=12)


@architecture("Qwen3")
def _qwen3() -> Case:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    c = Qwen3Config(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    return language(Qwen3ForCausalLM(c))
