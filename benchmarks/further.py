"""Further configurations of the ten families: other attention, inputs, labels, freezing, tying, dtypes inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks import configurations as c

Make = c.Make


class Embedded(nn.Module):
    """A model that is given embeddings: those of its tokens and learned ones before them (prompt tuning)."""

    def __init__(self, model: Any, length: int = 2) -> None:
        super().__init__()
        self.model = model
        width = model.get_input_embeddings().weight.shape[1]
        self.prompt = nn.Parameter(torch.randn(1, length, width) * 0.5)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **given: Any) -> Any:
        rows = self.model.get_input_embeddings()(input_ids)
        rows = torch.cat([self.prompt.expand(len(rows), -1, -1), rows], 1)
        if labels is not None:
            ignored = labels.new_full((len(labels), self.prompt.shape[1]), -100)
            given["labels"] = torch.cat([ignored, labels], 1)
        return self.model(inputs_embeds=rows, **given)


class Frozen(nn.Module):
    """Only the parameters whose names contain one of the words are trained."""

    def __init__(self, model: nn.Module, *words: str) -> None:
        super().__init__()
        self.model = model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(word in name for word in words))

    def forward(self, **given: Any) -> Any:
        return self.model(**given)


class Twice(nn.Module):
    """Two passes with other dropout, held together by their divergence (R-Drop)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **given: Any) -> torch.Tensor:
        first, second = self.model(**given), self.model(**given)
        p, q = (out.logits.log_softmax(-1) for out in (first, second))
        apart = nn.functional.kl_div(p, q, log_target=True, reduction="batchmean")
        return first.loss + second.loss + 0.5 * apart


def _in(wrap: Callable[..., nn.Module], make: Make, *words: Any) -> Make:
    def made() -> tuple[nn.Module, Any]:
        model, batch = make()
        return wrap(model, *words), batch

    return made


def _prepared(make: Make, prepare: Callable[[Any], Any]) -> Make:
    def made() -> tuple[nn.Module, Any]:
        model, batch = make()
        prepare(model)
        return model, batch

    return made


def _checkpointing(model: Any) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False})


def _without(batch: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in batch.items() if k not in keys}


def further() -> dict[str, Make]:
    """name -> the maker of a model and what it is called with."""
    return {**_words(), **_pairs(), **_pictures(), **_sounds()}


def _words() -> dict[str, Make]:
    made, words, ids = c._made, c._WORDS, {"input_ids": c.IDS}
    masked = {**words, "attention_mask": c.PADDED}
    left = {**words, "attention_mask": c.PADDED.flip(1), "position_ids": (c.PADDED.flip(1).cumsum(1) - 1).clamp(min=0)}
    gpt2, llama, bert = (("GPT2LMHeadModel", "GPT2Config"), ("LlamaForCausalLM", "LlamaConfig"), "BertConfig")
    mamba = ("MambaForCausalLM", "MambaConfig")
    wide = {**c._LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2}
    quiet = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    block = torch.tril(torch.ones(10, 10, dtype=torch.bool)).expand(2, 1, 10, 10).clone()
    return {
        "gpt2 embedded": _in(Embedded, made(*gpt2, words, **c._GPT2)),
        "gpt2 embedded eager": _in(Embedded, made(*gpt2, words, "eager", **c._GPT2)),
        "gpt2 no labels": made("GPT2Model", "GPT2Config", ids, **c._GPT2),
        "gpt2 no dropout": made(*gpt2, masked, **c._GPT2, **quiet),
        "gpt2 types": made(*gpt2, {**words, "token_type_ids": c._TYPES}, **c._GPT2),
        "gpt2 all outputs": made(
            *gpt2,
            {**words, "output_hidden_states": True, "output_attentions": True},
            "eager",
            **c._GPT2,
        ),
        "gpt2 biases": _in(Frozen, made(*gpt2, words, **c._GPT2), "bias"),
        "gpt2 head alone": _in(Frozen, made(*gpt2, words, **c._GPT2, tie_word_embeddings=False), "lm_head", "ln_f"),
        "gpt2 checkpointing": _prepared(made(*gpt2, words, **c._GPT2), _checkpointing),
        "gpt2 twice": _in(Twice, made(*gpt2, words, **c._GPT2)),
        "gpt2 tokens": made(
            "GPT2ForTokenClassification", "GPT2Config", {**ids, "labels": c.IDS % 4}, **c._GPT2, num_labels=4
        ),
        "gpt2 silu": made(*gpt2, words, **c._GPT2, activation_function="silu"),
        "llama embedded": _in(Embedded, made(*llama, words, **wide)),
        "llama left padding": made(*llama, left, **wide),
        "llama block mask": made(*llama, {**words, "attention_mask": block}, **wide),
        "llama yarn": made(
            *llama,
            words,
            **c._LLAMA,
            rope_parameters={
                "rope_type": "yarn",
                "factor": 2.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 8,
            },
        ),
        "llama llama3": made(
            *llama,
            words,
            **c._LLAMA,
            rope_parameters={
                "rope_type": "llama3",
                "factor": 8.0,
                "rope_theta": 1e4,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
        ),
        "llama classes": made(
            "LlamaForSequenceClassification",
            "LlamaConfig",
            {**masked, "labels": c.CLASSES},
            **c._LLAMA,
            num_labels=4,
        ),
        "llama span": made("LlamaForQuestionAnswering", "LlamaConfig", {**ids, **c._SPAN}, **c._LLAMA),
        "llama no labels": made("LlamaModel", "LlamaConfig", {**ids, "use_cache": True}, **wide, head_dim=6),
        "llama checkpointing": _prepared(made(*llama, words, **wide), _checkpointing),
        "llama norms alone": _in(Frozen, made(*llama, words, **wide), "norm"),
        "llama gelu": made(*llama, words, **c._LLAMA, hidden_act="gelu_pytorch_tanh"),
        "bert embedded": _in(Embedded, made("BertForMaskedLM", bert, {**words}, **c._BERT)),
        "bert no dropout": made(
            "BertForMaskedLM",
            bert,
            masked,
            **c._BERT,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        "bert all outputs": made(
            "BertModel",
            bert,
            {**ids, "attention_mask": c.PADDED, "output_hidden_states": True, "output_attentions": True},
            "eager",
            **c._BERT,
        ),
        "bert crossed": made(
            "BertLMHeadModel",
            bert,
            {**masked, "encoder_hidden_states": torch.randn(2, 7, 16), "encoder_attention_mask": c.PADDED[:, :7]},
            **c._BERT,
            is_decoder=True,
            add_cross_attention=True,
        ),
        "bert untied relu": made(
            "BertForMaskedLM", bert, masked, **c._BERT, tie_word_embeddings=False, hidden_act="relu"
        ),
        "bert checkpointing": _prepared(made("BertForMaskedLM", bert, masked, **c._BERT), _checkpointing),
        "bert next sentence": made(
            "BertForNextSentencePrediction", bert, {**ids, "labels": torch.tensor([0, 1])}, **c._BERT
        ),
        "mamba embedded": _in(Embedded, made(*mamba, words, **c._MAMBA)),
        "mamba wide": made(
            *mamba, words, **{**c._MAMBA, "state_size": 6, "expand": 3}, time_step_rank=2, use_bias=True
        ),
        "mamba2 groups": made(
            "Mamba2ForCausalLM",
            "Mamba2Config",
            words,
            **c._MAMBA,
            num_heads=4,
            head_dim=8,
            n_groups=2,
            chunk_size=8,
            use_bias=True,
        ),
    }


def _pairs() -> dict[str, Make]:
    made, t5, words = c._made, ("T5ForConditionalGeneration", "T5Config"), c._WORDS
    masked = {**words, "attention_mask": c.PADDED}
    decoder = {**_without(masked, "labels"), "decoder_input_ids": c.IDS[:, :5].clone()}
    both = {"input_ids": c.IDS, "pixel_values": c.PIXELS, "attention_mask": c.PADDED, "return_loss": True}
    ended = torch.cat([c.IDS[:, :9], torch.full((2, 1), 2)], 1)
    pads = {**masked, "decoder_attention_mask": c.PADDED}
    return {
        "t5 no labels": made("T5Model", "T5Config", decoder, **c._T5),
        "t5 gated silu": made(*t5, masked, **c._T5, feed_forward_proj="gated-silu", tie_word_embeddings=False),
        "t5 gated no dropout": made(*t5, pads, **c._T5, feed_forward_proj="gated-gelu", dropout_rate=0.0),
        "t5 uneven": made(*t5, masked, **{**c._T5, "d_kv": 5}, num_decoder_layers=1),
        "t5 ignored": made(*t5, {**masked, "labels": torch.where(c.IDS % 3 == 0, c.IDS, -100)}, **c._T5),
        "t5 all outputs": made(*t5, {**masked, "output_hidden_states": True, "output_attentions": True}, **c._T5),
        "t5 classes": made(
            "T5ForSequenceClassification",
            "T5Config",
            {"input_ids": ended, "labels": c.CLASSES},
            **c._T5,
            num_labels=4,
        ),
        "t5 decoder frozen": _in(Frozen, made(*t5, masked, **c._T5), "encoder"),
        "t5 checkpointing": _prepared(made(*t5, masked, **c._T5), _checkpointing),
        "clip text": made(
            "CLIPTextModelWithProjection",
            "CLIPTextConfig",
            {"input_ids": c.IDS, "attention_mask": c.PADDED},
            **c._CLIP["text_config"],
            projection_dim=8,
        ),
        "clip vision": made(
            "CLIPVisionModelWithProjection",
            "CLIPVisionConfig",
            {"pixel_values": c.PIXELS},
            **c._CLIP["vision_config"],
            projection_dim=8,
        ),
        "clip quick": made(
            "CLIPModel",
            "CLIPConfig",
            both,
            **{
                **c._CLIP,
                "text_config": {**c._CLIP["text_config"], "hidden_act": "gelu"},
                "vision_config": {**c._CLIP["vision_config"], "attention_dropout": 0.2},
            },
        ),
        "clip image locked": _in(Frozen, made("CLIPModel", "CLIPConfig", both, **c._CLIP), "text", "logit_scale"),
        "clip classes": made("CLIPForImageClassification", "CLIPConfig", c._IMAGE, **c._CLIP, num_labels=4),
    }


def _pictures() -> dict[str, Make]:
    made, image = c._made, "ForImageClassification"
    large = {"pixel_values": torch.randn(2, 3, 48, 40), "labels": c.CLASSES, "interpolate_pos_encoding": True}
    strided = {"pixel_values": c.PIXELS.to(memory_format=torch.channels_last), "labels": c.CLASSES}
    deep = {**c._RESNET, "depths": [2, 2]}
    next_ = {**c._CONVNEXT, "depths": [2, 2]}
    return {
        "vit larger": made(f"ViT{image}", "ViTConfig", large, **c._PATCHES, **c._DROPPED),
        "vit no labels": made("ViTModel", "ViTConfig", {"pixel_values": c.PIXELS}, "eager", **c._PATCHES),
        "vit no bias": made(f"ViT{image}", "ViTConfig", c._IMAGE, **c._PATCHES, qkv_bias=False, hidden_act="relu"),
        "vit regression": made(
            f"ViT{image}",
            "ViTConfig",
            {"pixel_values": c.PIXELS, "labels": torch.tensor([0.3, -0.4])},
            **{**c._PATCHES, "num_labels": 1},
        ),
        "vit head alone": _in(Frozen, made(f"ViT{image}", "ViTConfig", c._IMAGE, **c._PATCHES), "classifier"),
        "vit checkpointing": _prepared(
            made(f"ViT{image}", "ViTConfig", c._IMAGE, **c._PATCHES, **c._DROPPED), _checkpointing
        ),
        "resnet deep": made(f"ResNet{image}", "ResNetConfig", c._IMAGE, **deep, layer_type="basic"),
        "resnet bottleneck gelu": made(
            f"ResNet{image}", "ResNetConfig", c._IMAGE, **deep, layer_type="bottleneck", hidden_act="gelu"
        ),
        "resnet channels last": made(f"ResNet{image}", "ResNetConfig", strided, **deep, layer_type="basic"),
        "resnet no labels": made(
            "ResNetModel", "ResNetConfig", {"pixel_values": c.PIXELS}, **c._RESNET, layer_type="bottleneck"
        ),
        "resnet multilabel": made(
            f"ResNet{image}",
            "ResNetConfig",
            {"pixel_values": c.PIXELS, "labels": torch.rand(2, 4).round()},
            **c._RESNET,
            layer_type="basic",
            problem_type="multi_label_classification",
        ),
        "convnext deep": made(f"ConvNext{image}", "ConvNextConfig", c._IMAGE, **next_, layer_scale_init_value=0.5),
        "convnext channels last": made(f"ConvNext{image}", "ConvNextConfig", strided, **next_),
        "convnext no labels": made("ConvNextModel", "ConvNextConfig", {"pixel_values": c.PIXELS}, **c._CONVNEXT),
        "convnextv2 deep": made(f"ConvNextV2{image}", "ConvNextV2Config", c._IMAGE, **next_, hidden_act="relu"),
        "convnextv2 features": made(
            "ConvNextV2Backbone", "ConvNextV2Config", {"pixel_values": c.PIXELS}, **c._CONVNEXT, out_indices=[1, 2]
        ),
    }


def _sounds() -> dict[str, Make]:
    made, whole = c._made, ("WhisperForConditionalGeneration", "WhisperConfig")
    given = {"input_features": c.SOUND, "labels": c.IDS[:, :6].clone()}
    quiet = {**c._WHISPER, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    return {
        "whisper no dropout": made(*whole, given, **quiet),
        "whisper layerdrop": made(*whole, given, **c._WHISPER, encoder_layerdrop=0.4, decoder_layerdrop=0.4),
        "whisper masked labels": made(
            *whole, {**given, "labels": torch.where(given["labels"] % 3 == 0, given["labels"], -100)}, **c._WHISPER
        ),
        "whisper decoder ids": made(
            "WhisperModel",
            "WhisperConfig",
            {"input_features": c.SOUND, "decoder_input_ids": c.IDS[:, :5].clone()},
            **c._WHISPER,
        ),
        "whisper scaled": made(*whole, given, **c._WHISPER, scale_embedding=True, activation_function="relu"),
        "whisper encoder frozen": _in(Frozen, made(*whole, given, **c._WHISPER), "decoder"),
        "whisper checkpointing": _prepared(made(*whole, given, **c._WHISPER), _checkpointing),
    }
