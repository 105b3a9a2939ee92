"""Mistral."""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.models.config import AttentionConfig, ModelConfig
from alol_jax.models.families.family import Architecture, Family
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.layouts import SCORE, head
from alol_jax.models.families.llama import (
    DECODER,
    LLAMA_GGUF,
    PRE_NORMS,
    decoder_body,
    read_decoder,
    write_decoder,
)
from alol_jax.models.families.windows import WINDOW, read_window, write_window


def _read(fields: Fields) -> ModelConfig:
    attention = AttentionConfig(local=read_window(fields, 4096))
    return dataclasses.replace(read_decoder(fields, "mistral"), attention=attention)


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_decoder(config) | write_window(config)


MISTRAL = Family(
    name="mistral",
    reads=DECODER | WINDOW,
    implemented={"hidden_act": ("silu",), "layer_types": (None,)},
    read=_read,
    write=_write,
    body=decoder_body(PRE_NORMS),
    prefix="model.",
    architectures={
        "MistralForCausalLM": Architecture("mistral", head("lm_head")),
        "MistralForSequenceClassification": Architecture("mistral", SCORE),
    },
    gguf=LLAMA_GGUF,
)
