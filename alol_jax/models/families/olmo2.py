"""OLMo 2."""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.models.config import ATTENTION_PROJECTIONS, AttentionConfig, ModelConfig
from alol_jax.models.families.family import Architecture, Family
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.gguf_form import GGUFForm, Keys, gguf_decoder, gguf_rows
from alol_jax.models.families.layouts import head
from alol_jax.models.families.llama import (
    BIAS,
    DECODER,
    QUERY_KEY_NORMS,
    attention_biases,
    decoder_body,
    read_decoder,
    write_decoder,
)

_NORMS = {
    "post_attention_layernorm": "attention_out_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}


def _read(fields: Fields) -> ModelConfig:
    return dataclasses.replace(
        read_decoder(fields, "olmo2"),
        residual="after",
        biases=attention_biases(fields),
        attention=AttentionConfig("all"),
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_decoder(config) | {"attention_bias": bool(config.biases)}


def _read_gguf(keys: Keys) -> ModelConfig:
    """Read what llama.cpp computes: it knows no tied head, and no biases."""
    config = gguf_decoder(keys, "olmo2", own_heads=False)
    return dataclasses.replace(
        config, tied_embeddings=False, residual="after", attention=AttentionConfig("all")
    )


_GGUF_NORMS = {
    "post_attention_norm": "attention_out_norm",
    "post_ffw_norm": "mlp_out_norm",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
}

OLMO2 = Family(
    name="olmo2",
    reads=DECODER | BIAS,
    implemented={"hidden_act": ("silu",), "layer_types": (None,), "sliding_window": (None,)},
    read=_read,
    write=_write,
    body=decoder_body(_NORMS | QUERY_KEY_NORMS, ATTENTION_PROJECTIONS),
    prefix="model.",
    architectures={"Olmo2ForCausalLM": Architecture("olmo2", head("lm_head"))},
    gguf=GGUFForm("olmo2", gguf_rows(_GGUF_NORMS), _read_gguf),
)
