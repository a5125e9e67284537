"""Loss and all gradients: the emitted step against eager autograd, side by side, with trace time and peak bytes.

    python -m benchmarks.step_time [names...] [--threads 2] [--rounds 5] [--device cuda] [--compile]

Both run the same model on the same batch from the same seed, training mode and dropout included; results are compared
first. Times are the best of many calls, taken in turns. Peak bytes are those of the tensors alive during one step
beside parameters and batch, seen op by op. With ``--compile`` our source goes to ``torch.compile`` and is held against
``torch.compile`` of the model and its loss; a compiled step has no ops to see, so there are no peak bytes.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import chainrule as cr

Made = tuple[nn.Module, Any, Any]


def _images(labels: int = 10, batch: int = 4) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 64, 64), "labels": torch.randint(0, labels, (batch,))}


def _tokens(vocabulary: int, batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, vocabulary, (batch, length))
    return {"input_ids": ids, "labels": ids}


def mlp() -> Made:
    """Figure 7.8's network."""
    example = cr.examples.figure_7_8()
    return example.model, example.batch, example.loss


def gpt2() -> Made:
    """Four layers of width 256."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=1000, n_positions=128, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config), _tokens(1000, 4, 128), "model"


def llama() -> Made:
    """Four layers of width 256, two key heads for four query heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config), _tokens(1000, 4, 128), "model"


def bert() -> Made:
    """Four layers of width 128."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=1000, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512
    )
    return BertForMaskedLM(config), _tokens(1000, 4, 64), "model"


def t5() -> Made:
    """Two and two layers of width 128."""
    from transformers import T5Config, T5ForConditionalGeneration

    config: Any = cast(Any, T5Config)(
        vocab_size=1000, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config), _tokens(1000, 4, 64), "model"


def vit() -> Made:
    """Four layers of width 128 on 64 patches."""
    from transformers import ViTConfig, ViTForImageClassification

    config: Any = cast(Any, ViTConfig)(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=64,
        patch_size=8,
        num_labels=10,
    )
    return ViTForImageClassification(config), _images(), "model"


def resnet() -> Made:
    """The shape of ResNet-18 at half its width."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config: Any = cast(Any, ResNetConfig)(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
    )
    return ResNetForImageClassification(config), _images(), "model"


def convnext() -> Made:
    """Two stages."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config: Any = cast(Any, ConvNextConfig)(hidden_sizes=[32, 64], depths=[2, 2], num_stages=2, num_labels=10)
    return ConvNextForImageClassification(config), _images(), "model"


def mamba() -> Made:
    """Two layers of width 64, the scan written in torch."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=100, hidden_size=64, state_size=8, num_hidden_layers=2)
    return MambaForCausalLM(config), _tokens(100, 2, 32), "model"


class LastState(nn.Module):
    """An LSTM of two layers, read at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(64, 128, 2, batch_first=True, dropout=0.1)
        self.out = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def lstm() -> Made:
    """Two layers of width 128 over 50 steps."""
    return LastState(), (torch.randn(16, 50, 64), torch.randn(16, 10)), nn.MSELoss()


MODELS = (mlp, gpt2, llama, bert, t5, vit, resnet, convnext, mamba, lstm)


class PeakBytes(TorchDispatchMode):
    """The largest number of bytes of storages that were made, and still alive, while the block ran."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in _tensors((args, kwargs or {}))}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._seen and key not in known:
                self._seen.add(key)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return out

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def _on(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _on(v, device) for k, v in value.items()}
    return tuple(_on(v, device) for v in value)


def _peak(run: Callable[[], Any]) -> int:
    mode = PeakBytes()
    with mode:
        run()
    return mode.peak


def measure(make: Callable[[], Made], rounds: int, device: str = "cpu", compiled: bool = False) -> dict[str, Any]:
    """One row of the table; ``compiled``: both through ``torch.compile``."""
    torch.manual_seed(0)
    model, batch, loss = make()
    model, batch = model.to(device).train(), _on(batch, device)
    start = time.perf_counter()
    case = cr.case(model, batch, loss, compile=compiled)
    exact = case.trace.bit_equal
    traced = time.perf_counter()
    step = case.step
    emitted = time.perf_counter()
    parameters = dict(model.named_parameters())
    values = {n: p.detach() for n, p in parameters.items()}

    def forward() -> torch.Tensor:
        return model(**batch).loss if loss == "model" else loss(model(batch[0]), batch[1])

    called = torch.compile(forward) if compiled else forward

    def eager(loss_of: Callable[[], torch.Tensor] = called) -> torch.Tensor:
        for p in parameters.values():
            p.grad = None
        value = loss_of()
        value.backward()
        return value

    def ours() -> Any:
        return step(values, batch)

    torch.manual_seed(1)
    eager(forward)  # Inductor draws other dropout masks, so what is compared is always eager's
    torch.manual_seed(1)
    _, grads = ours()
    found = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in found.values())
    error = max(float((grads[n] - g).abs().max()) for n, g in found.items()) / largest
    del grads, found
    times: dict[str, list[float]] = {"eager": [], "ours": []}
    eager()
    calls = max(4, min(200, int(0.5 / max(_timed(eager), 1e-4))))
    for _ in range(rounds):
        for name, run in (("eager", eager), ("ours", ours)):
            times[name] += [_timed(run) for _ in range(calls)]
    return {
        "exact": exact,
        "error": error,
        "eager": min(times["eager"], default=math.nan),
        "ours": min(times["ours"], default=math.nan),
        "peak": math.nan if compiled else _peak(ours) / _peak(eager),
        "trace": traced - start,
        "emit": emitted - traced,
        "opaque": sum(case.trace.opaque.values()),
    }


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _machine(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine()


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {_machine(options.device)}")
    print("model      ratio  theirs ms   ours ms   peak ratio   largest error   trace s   emit s   opaque")
    ratios = []
    for make in MODELS:
        name = make.__name__
        if options.names and name not in options.names:
            continue
        row = measure(make, options.rounds, options.device, options.compile)
        ratios.append(row["ours"] / row["eager"])
        print(
            f"{name:9s} {ratios[-1]:6.3f} {row['eager'] * 1e3:10.3f} {row['ours'] * 1e3:9.3f} {row['peak']:12.3f}"
            f" {row['error']:15.1e} {row['trace']:9.2f} {row['emit']:8.2f} {row['opaque']:8d}",
            flush=True,
        )
    print(f"geometric mean of the ratios: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f}")


if __name__ == "__main__":
    main()
