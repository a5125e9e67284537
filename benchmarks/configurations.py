"""Models of the transformers library, made from configurations with small widths; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as tf
from torch import nn

Make = Callable[[], tuple[nn.Module, Any]]

_GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(3, 48, (2, 10), generator=_GENERATOR)
PIXELS = torch.randn(2, 3, 32, 32, generator=_GENERATOR)
SOUND = torch.randn(2, 8, 20, generator=_GENERATOR)
WAVE = torch.randn(2, 400, generator=_GENERATOR)
CLASSES = torch.tensor([1, 3])
PADDED = torch.ones(2, 10, dtype=torch.long)
PADDED[1, 7:] = 0

_WORDS = {"input_ids": IDS, "labels": IDS}
_IMAGE = {"pixel_values": PIXELS, "labels": CLASSES}
_TOKENS: dict[str, Any] = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
_BERT = {**_TOKENS, **_SIZES, "max_position_embeddings": 16}
_LLAMA = {**_BERT, "num_key_value_heads": 1, "attention_dropout": 0.1}
_PATCHES = {**_SIZES, "image_size": 32, "patch_size": 8, "num_labels": 4}
_DROPPED = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def _made(model: str, config: str, batch: Mapping[str, Any], attention: Any = None, **fields: Any) -> Make:
    def make() -> tuple[nn.Module, Any]:
        given = getattr(tf, config)(**fields)
        if attention is not None:
            given._attn_implementation = attention
        return getattr(tf, model)(given), dict(batch)

    return make


def _whisper_encoder() -> tuple[nn.Module, Any]:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(tf.WhisperConfig(**_WHISPER)), {"input_features": SOUND}


_GPT2 = {**_TOKENS, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
_T5 = {**_TOKENS, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
_WHISPER: dict[str, Any] = {
    **_TOKENS,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 12,
    "decoder_start_token_id": 1,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
}
_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 4}
_CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "num_labels": 4, "drop_path_rate": 0.1}
_CLIP: dict[str, Any] = {
    "text_config": {**_BERT, "attention_dropout": 0.1},
    "vision_config": {**_SIZES, "image_size": 32, "patch_size": 8},
    "projection_dim": 8,
}
_PAIR = {"input_ids": IDS, "pixel_values": PIXELS, "return_loss": True}
_MAMBA = {**_TOKENS, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "expand": 2, "conv_kernel": 3}
_SPAN = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([4, 6])}
_TYPES = torch.tensor([[0] * 5 + [1] * 5] * 2)


def families() -> dict[str, Make]:
    """The ten families that the front end promises."""
    return {
        "gpt2": _made("GPT2LMHeadModel", "GPT2Config", _WORDS, **_GPT2),
        "llama": _made("LlamaForCausalLM", "LlamaConfig", _WORDS, **_LLAMA),
        "bert": _made("BertForMaskedLM", "BertConfig", {**_WORDS, "attention_mask": PADDED}, **_BERT),
        "t5": _made("T5ForConditionalGeneration", "T5Config", {**_WORDS, "labels": IDS[:, :6].clone()}, **_T5),
        "vit": _made("ViTForImageClassification", "ViTConfig", _IMAGE, **_PATCHES, **_DROPPED),
        "resnet": _made("ResNetForImageClassification", "ResNetConfig", _IMAGE, layer_type="basic", **_RESNET),
        "convnext": _made("ConvNextForImageClassification", "ConvNextConfig", _IMAGE, **_CONVNEXT),
        "whisper-encoder": _whisper_encoder,
        "clip": _made("CLIPModel", "CLIPConfig", _PAIR, **_CLIP),
        "mamba": _made("MambaForCausalLM", "MambaConfig", _WORDS, **_MAMBA),
    }


def variants() -> dict[str, Make]:
    """Other configurations of these families, and other families."""
    masked = {**_WORDS, "attention_mask": PADDED}
    classes = {"input_ids": IDS, "attention_mask": PADDED, "labels": CLASSES}
    four = {"num_labels": 4}
    return {
        **_decoders(masked),
        **_encoders(masked, classes, four),
        **_pairs(masked),
        **_images(),
        **_sounds(),
    }


def _decoders(masked: Mapping[str, Any]) -> dict[str, Make]:
    gpt2, llama = ("GPT2LMHeadModel", "GPT2Config"), ("LlamaForCausalLM", "LlamaConfig")
    wide = {**_LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        "gpt2-eager": _made(*gpt2, _WORDS, "eager", **_GPT2),
        "gpt2-masked": _made(*gpt2, masked, **_GPT2),
        "gpt2-inverse-layer": _made(*gpt2, _WORDS, "eager", **_GPT2, scale_attn_by_inverse_layer_idx=True),
        "gpt2-untied": _made(*gpt2, _WORDS, **_GPT2, tie_word_embeddings=False, activation_function="relu"),
        "gpt2-classes": _made(
            "GPT2ForSequenceClassification", "GPT2Config", {"input_ids": IDS, "labels": CLASSES}, **_GPT2, num_labels=4
        ),
        "gpt2-no-scale": _made(*gpt2, _WORDS, **_GPT2, scale_attn_weights=False, attn_pdrop=0.0),
        "llama-mha": _made(*llama, _WORDS, **{**_LLAMA, "num_key_value_heads": 2}),
        "llama-gqa": _made(*llama, masked, **wide),
        "llama-eager": _made(*llama, masked, "eager", **wide),
        "llama-tied-bias": _made(
            *llama, _WORDS, **_LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
        ),
        "llama-no-dropout": _made(*llama, masked, **{**wide, "attention_dropout": 0.0}),
        "llama-rope-linear": _made(
            *llama, _WORDS, **_LLAMA, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
        ),
        "llama-rope-dynamic": _made(
            *llama, _WORDS, **_LLAMA, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        ),
        "mistral": _made("MistralForCausalLM", "MistralConfig", masked, **_LLAMA, sliding_window=4),
        "gemma": _made("GemmaForCausalLM", "GemmaConfig", _WORDS, **_LLAMA, head_dim=8),
        "gemma2": _made("Gemma2ForCausalLM", "Gemma2Config", _WORDS, "eager", **_LLAMA, head_dim=8, sliding_window=4),
        "gemma3": _made("Gemma3ForCausalLM", "Gemma3TextConfig", _WORDS, **_LLAMA, head_dim=8, sliding_window=4),
        "qwen2": _made("Qwen2ForCausalLM", "Qwen2Config", masked, **_LLAMA),
        "qwen3": _made("Qwen3ForCausalLM", "Qwen3Config", _WORDS, **_LLAMA, head_dim=8),
        "phi": _made("PhiForCausalLM", "PhiConfig", _WORDS, **_LLAMA),
        "phi3": _made("Phi3ForCausalLM", "Phi3Config", _WORDS, **_LLAMA),
        "olmo": _made("OlmoForCausalLM", "OlmoConfig", _WORDS, **_LLAMA),
        "falcon": _made("FalconForCausalLM", "FalconConfig", _WORDS, **_BERT, attention_dropout=0.1),
        "bloom": _made("BloomForCausalLM", "BloomConfig", _WORDS, **_TOKENS, hidden_size=16, n_layer=2, n_head=2),
        "opt": _made("OPTForCausalLM", "OPTConfig", masked, **_BERT, ffn_dim=24, word_embed_proj_dim=16),
        "gpt-neo": _made(
            "GPTNeoForCausalLM",
            "GPTNeoConfig",
            _WORDS,
            **_TOKENS,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            max_position_embeddings=16,
            attention_dropout=0.1,
        ),
        "gpt-neox": _made("GPTNeoXForCausalLM", "GPTNeoXConfig", _WORDS, **_BERT, attention_dropout=0.1),
        "gptj": _made("GPTJForCausalLM", "GPTJConfig", _WORDS, **_GPT2, rotary_dim=4),
        "mamba-no-bias": _made("MambaForCausalLM", "MambaConfig", _WORDS, **_MAMBA, use_conv_bias=False),
        "mamba2": _made(
            "Mamba2ForCausalLM", "Mamba2Config", _WORDS, **_MAMBA, num_heads=4, head_dim=8, n_groups=1, chunk_size=4
        ),
    }


def _encoders(masked: Mapping[str, Any], classes: Mapping[str, Any], four: Mapping[str, Any]) -> dict[str, Make]:
    bert, albert = "BertConfig", {**_BERT, "embedding_size": 8, **_DROPPED}
    distil = {**_TOKENS, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 16}
    roberta = {**_BERT, "max_position_embeddings": 20}
    return {
        "bert-eager": _made("BertForMaskedLM", bert, masked, "eager", **_BERT),
        "bert-types": _made(
            "BertForSequenceClassification", bert, {**classes, "token_type_ids": _TYPES}, **_BERT, **four
        ),
        "bert-regression": _made(
            "BertForSequenceClassification", bert, {**classes, "labels": torch.randn(2)}, **_BERT, num_labels=1
        ),
        "bert-multilabel": _made(
            "BertForSequenceClassification",
            bert,
            {**classes, "labels": torch.rand(2, 4).round()},
            **_BERT,
            **four,
            problem_type="multi_label_classification",
        ),
        "bert-tokens": _made("BertForTokenClassification", bert, {**masked, "labels": IDS % 4}, **_BERT, **four),
        "bert-span": _made("BertForQuestionAnswering", bert, {"input_ids": IDS, **_SPAN}, **_BERT),
        "bert-choice": _made(
            "BertForMultipleChoice",
            bert,
            {"input_ids": torch.stack([IDS, IDS.flip(1)]), "labels": torch.tensor([0, 1])},
            **_BERT,
        ),
        "bert-pretraining": _made(
            "BertForPreTraining", bert, {**masked, "next_sentence_label": torch.tensor([0, 1])}, **_BERT
        ),
        "bert-ignored": _made(
            "BertForMaskedLM", bert, {**masked, "labels": torch.where(IDS % 3 == 0, IDS, -100)}, **_BERT
        ),
        "bert-chunked": _made("BertModel", bert, {"input_ids": IDS}, **_BERT, chunk_size_feed_forward=5),
        "bert-decoder": _made("BertLMHeadModel", bert, masked, **_BERT, is_decoder=True),
        "roberta": _made("RobertaForMaskedLM", "RobertaConfig", masked, **roberta),
        "distilbert": _made("DistilBertForMaskedLM", "DistilBertConfig", masked, **distil),
        "albert": _made("AlbertForMaskedLM", "AlbertConfig", masked, **albert),
        "electra": _made(
            "ElectraForPreTraining", "ElectraConfig", {**masked, "labels": IDS % 2}, **_BERT, embedding_size=8
        ),
        "deberta": _made(
            "DebertaForMaskedLM", "DebertaConfig", masked, **_BERT, relative_attention=True, pos_att_type="c2p|p2c"
        ),
        "deberta-v2": _made(
            "DebertaV2ForMaskedLM",
            "DebertaV2Config",
            masked,
            **_BERT,
            relative_attention=True,
            pos_att_type="c2p|p2c",
            position_buckets=4,
        ),
        "xlnet": _made(
            "XLNetLMHeadModel", "XLNetConfig", _WORDS, **_TOKENS, d_model=16, n_layer=2, n_head=2, d_inner=24
        ),
        "mpnet": _made("MPNetForMaskedLM", "MPNetConfig", masked, **roberta),
        "modernbert": _made(
            "ModernBertForMaskedLM", "ModernBertConfig", masked, "sdpa", **_BERT, attention_dropout=0.1
        ),
        "longformer": _made(
            "LongformerForMaskedLM",
            "LongformerConfig",
            _WORDS,
            **{**_BERT, "max_position_embeddings": 40},
            attention_window=4,
        ),
    }


def _pairs(masked: Mapping[str, Any]) -> dict[str, Make]:
    bart = {
        **_TOKENS,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 16,
        "decoder_start_token_id": 1,
        "attention_dropout": 0.1,
    }
    t5 = "T5ForConditionalGeneration"
    both = {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": PADDED, "return_loss": True}
    blip = {
        "text_config": {**_BERT, "encoder_hidden_size": 16},
        "vision_config": {**_SIZES, "image_size": 32, "patch_size": 8},
    }
    return {
        "t5-masked": _made(t5, "T5Config", masked, **_T5),
        "t5-gated": _made(t5, "T5Config", masked, **_T5, feed_forward_proj="gated-gelu"),
        "t5-untied": _made(t5, "T5Config", _WORDS, **_T5, tie_word_embeddings=False, relative_attention_num_buckets=8),
        "t5-encoder": _made("T5EncoderModel", "T5Config", {"input_ids": IDS, "attention_mask": PADDED}, **_T5),
        "mt5": _made("MT5ForConditionalGeneration", "MT5Config", masked, **_T5),
        "umt5": _made("UMT5ForConditionalGeneration", "UMT5Config", masked, **_T5),
        "bart": _made("BartForConditionalGeneration", "BartConfig", masked, **bart),
        "bart-layerdrop": _made("BartForConditionalGeneration", "BartConfig", masked, **bart, encoder_layerdrop=0.5),
        "pegasus": _made("PegasusForConditionalGeneration", "PegasusConfig", masked, **bart),
        "clip-masked": _made("CLIPModel", "CLIPConfig", both, **_CLIP),
        "clip-eager": _made("CLIPModel", "CLIPConfig", both, "eager", **_CLIP),
        "siglip": _made(
            "SiglipModel", "SiglipConfig", _PAIR, text_config=_CLIP["text_config"], vision_config=_CLIP["vision_config"]
        ),
        "blip": _made("BlipModel", "BlipConfig", _PAIR, **blip, projection_dim=8),
    }


def _images() -> dict[str, Make]:
    swin = {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [2, 2],
        "window_size": 4,
        "num_labels": 4,
    }
    bottle = {**_RESNET, "layer_type": "bottleneck", "depths": [2, 1]}
    image = "ForImageClassification"
    return {
        "vit-eager": _made(f"ViT{image}", "ViTConfig", _IMAGE, "eager", **_PATCHES, **_DROPPED),
        "vit-pooled": _made("ViTModel", "ViTConfig", {"pixel_values": PIXELS}, **_PATCHES, **_DROPPED),
        "vit-masked": _made(
            "ViTForMaskedImageModeling",
            "ViTConfig",
            {"pixel_values": PIXELS, "bool_masked_pos": torch.arange(32).reshape(2, 16) % 3 == 0},
            **_PATCHES,
            encoder_stride=8,
        ),
        "vit-mae": _made(
            "ViTMAEForPreTraining",
            "ViTMAEConfig",
            {"pixel_values": PIXELS},
            **_PATCHES,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=24,
        ),
        "deit": _made(f"DeiT{image}", "DeiTConfig", _IMAGE, **_PATCHES, **_DROPPED),
        "beit": _made(
            f"Beit{image}",
            "BeitConfig",
            _IMAGE,
            **_PATCHES,
            **_DROPPED,
            use_relative_position_bias=True,
            layer_scale_init_value=0.1,
            drop_path_rate=0.2,
        ),
        "dinov2": _made(f"Dinov2{image}", "Dinov2Config", _IMAGE, **_PATCHES, drop_path_rate=0.2),
        "swin": _made(f"Swin{image}", "SwinConfig", _IMAGE, **swin),
        "swinv2": _made(f"Swinv2{image}", "Swinv2Config", _IMAGE, **swin),
        "resnet-bottleneck": _made(f"ResNet{image}", "ResNetConfig", _IMAGE, **bottle),
        "resnet-downsample": _made(
            f"ResNet{image}",
            "ResNetConfig",
            _IMAGE,
            **bottle,
            downsample_in_bottleneck=True,
            downsample_in_first_stage=True,
        ),
        "convnextv2": _made(f"ConvNextV2{image}", "ConvNextV2Config", _IMAGE, **_CONVNEXT),
        "convnext-plain": _made(
            f"ConvNext{image}",
            "ConvNextConfig",
            _IMAGE,
            **{**_CONVNEXT, "drop_path_rate": 0.0},
            layer_scale_init_value=0.0,
        ),
        "mobilenet-v1": _made(f"MobileNetV1{image}", "MobileNetV1Config", _IMAGE, depth_multiplier=0.25, num_labels=4),
        "mobilenet-v2": _made(f"MobileNetV2{image}", "MobileNetV2Config", _IMAGE, depth_multiplier=0.25, num_labels=4),
        "mobilevit": _made(
            f"MobileViT{image}",
            "MobileViTConfig",
            _IMAGE,
            num_labels=4,
            image_size=32,
            hidden_sizes=[16, 16, 16],
            neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        ),
        "regnet": _made(
            f"RegNet{image}",
            "RegNetConfig",
            _IMAGE,
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            groups_width=4,
            layer_type="y",
            num_labels=4,
        ),
        "poolformer": _made(
            f"PoolFormer{image}",
            "PoolFormerConfig",
            _IMAGE,
            hidden_sizes=[8, 8, 8, 8],
            depths=[1, 1, 1, 1],
            num_labels=4,
        ),
        "segformer": _made(
            f"Segformer{image}",
            "SegformerConfig",
            _IMAGE,
            hidden_sizes=[8, 8, 8, 8],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 2, 2],
            num_labels=4,
        ),
        "levit": _made(
            f"Levit{image}",
            "LevitConfig",
            _IMAGE,
            image_size=32,
            hidden_sizes=[8, 12, 16],
            num_attention_heads=[2, 2, 2],
            depths=[1, 1, 1],
            key_dim=[4, 4, 4],
            num_labels=4,
        ),
        "pvt": _made(
            f"Pvt{image}",
            "PvtConfig",
            _IMAGE,
            image_size=32,
            hidden_sizes=[8, 8, 8, 8],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            num_labels=4,
        ),
    }


def _sounds() -> dict[str, Make]:
    wave = {
        **_BERT,
        "conv_dim": (8, 8),
        "conv_stride": (5, 2),
        "conv_kernel": (10, 3),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "apply_spec_augment": False,
    }
    speech = {"input_values": WAVE, "labels": IDS[:, :4].clone()}
    whisper = {"input_features": SOUND, "labels": IDS[:, :6].clone()}
    return {
        "whisper": _made("WhisperForConditionalGeneration", "WhisperConfig", whisper, **_WHISPER),
        "whisper-eager": _made("WhisperForConditionalGeneration", "WhisperConfig", whisper, "eager", **_WHISPER),
        "whisper-classes": _made(
            "WhisperForAudioClassification",
            "WhisperConfig",
            {"input_features": SOUND, "labels": CLASSES},
            **_WHISPER,
            num_labels=4,
        ),
        "wav2vec2": _made("Wav2Vec2ForCTC", "Wav2Vec2Config", speech, **{**wave, "pad_token_id": 0}),
        "hubert": _made("HubertForCTC", "HubertConfig", speech, **wave),
        "wavlm": _made("WavLMForCTC", "WavLMConfig", speech, **wave),
        "ast": _made(
            "ASTForAudioClassification",
            "ASTConfig",
            {"input_values": torch.randn(2, 20, 8), "labels": CLASSES},
            **_SIZES,
            **_DROPPED,
            max_length=20,
            num_mel_bins=8,
            patch_size=4,
            frequency_stride=4,
            time_stride=4,
            num_labels=4,
        ),
    }
