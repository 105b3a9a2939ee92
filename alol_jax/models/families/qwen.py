"""Qwen2, Qwen2.5 and Qwen3."""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.models.config import ATTENTION_PROJECTIONS, AttentionConfig, Local, ModelConfig
from alol_jax.models.families.family import Architecture, Family
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.gguf_form import (
    GGUF_PRE_NORMS,
    GGUFForm,
    Keys,
    gguf_decoder,
    gguf_rows,
)
from alol_jax.models.families.layouts import SCORE, head
from alol_jax.models.families.llama import (
    BIAS,
    DECODER,
    PRE_NORMS,
    QUERY_KEY_NORMS,
    attention_biases,
    decoder_body,
    read_decoder,
    write_decoder,
)
from alol_jax.models.families.windows import (
    LAYER_TYPES,
    read_local,
    window_size,
    write_layer_types,
)

_BIASED = ("q_proj", "k_proj", "v_proj")
_WINDOWS = LAYER_TYPES | {"use_sliding_window", "max_window_layers"}


def _local(fields: Fields) -> Local | None:
    """Return the windows: of the layers from ``max_window_layers`` on, unless layer_types says."""
    layers, window = fields.size("num_hidden_layers"), None
    if fields.flag("use_sliding_window", False):
        window = window_size(fields, 4096)
    first = fields.size("max_window_layers", 28)
    default = [window is not None and layer >= first for layer in range(layers)]
    return read_local(fields, default, window=window)


def _read_2(fields: Fields) -> ModelConfig:
    attention = AttentionConfig(local=_local(fields))
    config = read_decoder(fields, "qwen2")
    return dataclasses.replace(config, biases=_BIASED, attention=attention)


def _read_3(fields: Fields) -> ModelConfig:
    return dataclasses.replace(
        read_decoder(fields, "qwen3", head_width=fields.size("head_dim", 128)),
        biases=attention_biases(fields),
        attention=AttentionConfig("head", _local(fields)),
    )


def _write_2(config: ModelConfig) -> dict[str, Any]:
    used = {"use_sliding_window": config.attention.local is not None}
    return write_decoder(config) | write_layer_types(config) | used


def _write_3(config: ModelConfig) -> dict[str, Any]:
    return _write_2(config) | {"attention_bias": bool(config.biases)}


def _gguf_2(keys: Keys) -> ModelConfig:
    return dataclasses.replace(gguf_decoder(keys, "qwen2", own_heads=False), biases=_BIASED)


def _gguf_3(keys: Keys) -> ModelConfig:
    return dataclasses.replace(gguf_decoder(keys, "qwen3"), attention=AttentionConfig("head"))


_GGUF_NORMS = GGUF_PRE_NORMS | {"attn_q_norm": "q_norm", "attn_k_norm": "k_norm"}

QWEN2 = Family(
    name="qwen2",
    reads=DECODER | _WINDOWS,
    implemented={"hidden_act": ("silu",), "use_mrope": (False, None)},
    read=_read_2,
    write=_write_2,
    body=decoder_body(PRE_NORMS, _BIASED),
    prefix="model.",
    architectures={
        "Qwen2ForCausalLM": Architecture("qwen2", head("lm_head")),
        "Qwen2ForSequenceClassification": Architecture("qwen2", SCORE),
    },
    gguf=GGUFForm("qwen2", gguf_rows(GGUF_PRE_NORMS, biases=_BIASED), _gguf_2),
)
QWEN3 = Family(
    name="qwen3",
    reads=DECODER | _WINDOWS | BIAS,
    implemented={"hidden_act": ("silu",)},
    read=_read_3,
    write=_write_3,
    body=decoder_body(PRE_NORMS | QUERY_KEY_NORMS, ATTENTION_PROJECTIONS),
    prefix="model.",
    architectures={
        "Qwen3ForCausalLM": Architecture("qwen3", head("lm_head")),
        "Qwen3ForSequenceClassification": Architecture("qwen3", SCORE),
    },
    gguf=GGUFForm("qwen3", gguf_rows(_GGUF_NORMS), _gguf_3),
)
