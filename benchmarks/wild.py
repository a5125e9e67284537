"""Every architecture of transformers that builds from a configuration: initialisation, moments, diagnosis, gradients.

    python -m benchmarks.wild [TYPE ...] [--parts init,moments,diagnose,check] [--dtype float64]

Each model type is built with small sizes from its own configuration class, random weights and nothing downloaded.

    init       weights that have torch's default distribution although the configuration has an ``initializer_range``
               (a layer's default is uniform on +-1/sqrt(fan_in), which no normal distribution stays inside), and that
               the model's own ``_init_weights``, called on them, does not move
    moments    the trace's predicted second moments against one forward pass: largest ratio over modules, rows unknown
    diagnose   findings above info, in train mode with the mean square of the outputs as loss
    check      the traced gradient against autograd's, in float64, dropout on

``docs/found-in-the-wild.md`` says what was found, and why each finding stands.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import math
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import chainrule as cr
from benchmarks.models import measured, moved
from benchmarks.zoo import scalar
from chainrule.errors import ChainruleError

PROMISED = 0.1  # initializer_range: far from the default of a layer of these sizes
SIZES: dict[str, Any] = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64, "embed_dim": 64, "hidden_dim": 64, "width": 64,
    "intermediate_size": 96, "d_ff": 96, "n_inner": 96, "ffn_dim": 96, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "d_kv": 16, "head_dim": 16,
    "attention_head_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "n_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2, "depth": 2,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "n_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "vocab_size": 100, "max_position_embeddings": 64, "n_positions": 64, "embedding_size": 64,
    "image_size": 64, "max_source_positions": 32, "patch_size": 16, "num_mel_bins": 16, "projection_dim": 32,
    "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": PROMISED, "init_std": PROMISED, "initializer_factor": 1.0,
}  # fmt: skip


# ---- models ------------------------------------------------------------------------------------------------
def types() -> list[str]:
    """The model types that transformers knows."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return sorted(MODEL_MAPPING_NAMES)


def shrunk(config: Any) -> Any:
    """The configuration with small sizes, its parts too."""
    from transformers import PretrainedConfig

    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            shrunk(value)
        elif key in SIZES and isinstance(value, type(SIZES[key])) and not isinstance(value, bool):
            setattr(config, key, SIZES[key])
        elif key == "layer_types" and isinstance(value, list):
            config.layer_types = value[:2]
    return config


def built(kind: str) -> tuple[nn.Module, Any]:
    """(model, configuration) of a type, small."""
    from transformers import AutoConfig, AutoModel

    config = shrunk(AutoConfig.for_model(kind))
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    if sum(p.numel() for p in model.parameters()) > 2e8:
        raise ValueError("too large with its sizes as they are")
    return model, config


def batch_of(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """Inputs by the name that the model gives to its main one."""
    generator = torch.Generator().manual_seed(0)
    name = getattr(model, "main_input_name", "input_ids")
    names = inspect.signature(model.forward).parameters
    found: dict[str, torch.Tensor] = {}
    if name == "input_ids" or "input_ids" in names:
        found["input_ids"] = torch.randint(3, 99, (2, 12), generator=generator)
        if "decoder_input_ids" in names:
            found["decoder_input_ids"] = found["input_ids"]
    vision = getattr(config, "vision_config", config)
    if "pixel_values" in names and (name == "pixel_values" or hasattr(config, "vision_config")):
        size = getattr(vision, "image_size", 64)
        size = size if isinstance(size, (list, tuple)) else (size, size)
        found["pixel_values"] = torch.randn(2, getattr(vision, "num_channels", 3), *size, generator=generator)
    if name == "input_values":
        found[name] = torch.randn(2, 8000, generator=generator)
    if name == "input_features":
        longest, bins = getattr(config, "max_source_positions", None), getattr(config, "num_mel_bins", None)
        bins = bins or getattr(config, "feature_projection_input_dim", 80)
        shape = (2, bins, 2 * longest) if longest else (2, 40, bins)
        found[name] = torch.randn(shape, generator=generator)
    return found


# ---- what is asked -----------------------------------------------------------------------------------------
def left_at_default(model: nn.Module) -> Iterator[tuple[str, nn.Module, float]]:
    """(name, module, std) of layers whose weight has the distribution that torch gives it."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.numel() < 512 or weight.dim() < 2:
            continue
        std, largest = float(weight.detach().float().std()), float(weight.detach().abs().max())
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            bound = 1 / math.sqrt(weight[0].numel())
            inside = 0.95 * bound < largest <= bound * (1 + 1e-6)
            if inside and abs(std * math.sqrt(3) / bound - 1) < 0.1:
                yield name, module, std
        elif isinstance(module, nn.Embedding) and abs(std - 1) < 0.1:
            yield name, module, std


def ranges(config: Any) -> set[float]:
    """The standard deviations that a configuration and its parts name."""
    from transformers import PretrainedConfig

    found = {v for k, v in vars(config).items() if k in ("initializer_range", "init_std") and isinstance(v, float)}
    for part in vars(config).values():
        found |= ranges(part) if isinstance(part, PretrainedConfig) else set()
    return found


def written_by(model: nn.Module, name: str) -> bool:
    """Whether the model's own initialisation moves the layer's weight when it is called again on the layer."""
    from transformers import PreTrainedModel

    modules = dict(model.named_modules())
    path = [".".join(name.split(".")[:k]) for k in range(len(name.split(".")), -1, -1)]
    owner = next(k for k, part in enumerate(path) if isinstance(modules[part], PreTrainedModel))
    for parameter in model.parameters():  # what the library marks as loaded or done
        vars(parameter).pop("_is_hf_initialized", None)  # type: ignore[attr-defined]
    before = modules[name].weight.detach().clone()  # type: ignore[union-attr, operator]
    torch.manual_seed(1)
    for part in path[:owner]:
        modules[path[owner]]._init_weights(modules[part])  # type: ignore[operator]
    return not torch.equal(before, modules[name].weight.detach())  # type: ignore[arg-type, union-attr, operator]


def init(kind: str) -> str:
    """Layers that the initialisation never reaches, by class and place; those that it sets to torch's default apart."""
    model, config = built(kind)
    if not ranges(config):
        return "no initializer_range"
    left, chosen = Counter(), 0
    for name, module, std in list(left_at_default(model)):
        place = ".".join("#" if part.isdigit() else part for part in name.split("."))
        if written_by(model, name):
            chosen += 1
        else:
            left[f"{place} ({type(module).__name__}, std {std:.3f})"] += 1
    found = "never applied to " + "; ".join(f"{n} x{c}" if c > 1 else n for n, c in left.items()) if left else "applied"
    return found + (f"; {chosen} layers are set to torch's default on purpose" if chosen else "")


def moments(kind: str) -> str:
    """Predicted against one pass."""
    model, config = built(kind)
    model.eval()
    batch = batch_of(model, config)
    table = cr.moments(model, batch)
    seen: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: float(out.detach().double().square().mean())})
            if isinstance(out, torch.Tensor) and out.is_floating_point() else None
        )
        for name, module in model.named_modules()
    ]  # fmt: skip
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    worst, at, unknown = 1.0, "", 0
    for row in {row.name: row for row in table.rows}.values():  # of a module that is called several times, the last
        if row.kind == "unknown":
            unknown += 1
        elif row.name in seen and seen[row.name] > 0 and isinstance(row.second, float) and row.second > 0:
            ratio = max(row.second / seen[row.name], seen[row.name] / row.second)
            worst, at = max((worst, at), (ratio, row.name))
    return f"{len(table.rows)} rows, {unknown} unknown, worst ratio {worst:.2f} {at}"


def diagnose(kind: str, dtype: torch.dtype = torch.float32) -> str:
    """Findings above info."""
    model, config = built(kind)
    batch = moved(batch_of(model, config), dtype)
    model.to(dtype).train()
    result = cr.diagnose(model, batch, None, objective=scalar)
    loud = [f for f in result.findings if f.severity != "info"]
    return "; ".join(f"{f.kind} at {f.where}: {f.measured}" for f in loud)[:600] or "silent"


def check(kind: str) -> str:
    """The traced gradient against autograd's."""

    def make() -> Any:
        model, config = built(kind)
        return model, batch_of(model, config)

    row = measured(kind, make)
    if row.error:
        return row.error.splitlines()[0][:200]
    opaque = f", opaque {', '.join(row.opaque)}" if row.opaque else ""
    return f"{'right' if row.right else 'WRONG'}: float64 {row.float64:.1e}{opaque}"


PARTS: dict[str, Callable[[str], str]] = {"init": init, "moments": moments, "diagnose": diagnose, "check": check}


def _late(*_: Any) -> None:
    raise TimeoutError("took too long")


def main() -> None:
    """One line per model type and part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16"), help="of diagnose")
    parser.add_argument("--seconds", type=int, default=60, help="for one part of one type")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _late)
    parts = PARTS | {"diagnose": partial(diagnose, dtype=getattr(torch, given.dtype))}
    for kind in given.types or types():
        for part in given.parts.split(","):
            signal.alarm(given.seconds)
            try:
                line = parts[part](kind)
            except ChainruleError as error:
                line = f"refused: {' '.join(str(error).split())[:200]}"
            except Exception as error:  # the library's own refusals of small sizes, above all
                line = f"not built: {type(error).__name__} {' '.join(str(error).split())[:120]}"
            finally:
                signal.alarm(0)
            print(f"{kind:32} {part:9} {line}", flush=True)


if __name__ == "__main__":
    main()
