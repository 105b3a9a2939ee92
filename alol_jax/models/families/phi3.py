"""Phi-3 and Phi-4-mini: a Llama with fused projections."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from alol_jax.models.config import AttentionConfig, Local, ModelConfig
from alol_jax.models.families.family import Architecture, Family
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.gguf_form import (
    GGUF_PRE_NORMS,
    GGUFForm,
    Keys,
    decoder_keys,
    gguf_decoder,
    gguf_rows,
)
from alol_jax.models.families.layouts import GATE_UP, QKV, SCORE, Kernel, head
from alol_jax.models.families.llama import (
    DECODER,
    PRE_NORMS,
    decoder_body,
    read_decoder,
    write_decoder,
)
from alol_jax.models.families.rope import ORIGINAL
from alol_jax.models.families.windows import WINDOW, read_window, write_window
from alol_jax.models.rotary import LongRope


def _read(fields: Fields) -> ModelConfig:
    attention = AttentionConfig(local=read_window(fields, None))
    return dataclasses.replace(read_decoder(fields, "phi3", partial=True), attention=attention)


def _write(config: ModelConfig) -> dict[str, Any]:
    fields = write_decoder(config) | write_window(config)
    share = config.rotary.width / config.head_width
    fields["rope_parameters"] |= {"partial_rotary_factor": share}
    if isinstance(config.rotary.scaling, LongRope):
        fields[ORIGINAL] = config.rotary.scaling.original
    return fields


_KERNELS = (
    Kernel("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj"), QKV),
    Kernel("self_attn.o_proj", ("o_proj",)),
    Kernel("mlp.gate_up_proj", ("gate_proj", "up_proj"), GATE_UP),
    Kernel("mlp.down_proj", ("down_proj",)),
)


def _read_gguf(keys: Keys) -> ModelConfig:
    config = gguf_decoder(keys, "phi3", own_heads=False, partial=True)
    window = keys.size("attention.sliding_window", 0)
    local = Local(window) if window else None
    original = keys.size("rope.scaling.original_context_length", config.max_positions)
    factors = [keys.vector(name) for name in _FACTORS]
    rotary = config.rotary
    if None not in factors:
        keys.only("rope.scaling.type", "none")
        magnitude = keys.number("rope.scaling.attn_factor", 1.0)
        rotary = dataclasses.replace(rotary, scaling=LongRope(*factors, original, magnitude))
    else:
        keys.only("rope.scaling.attn_factor", 1.0)
    return dataclasses.replace(config, rotary=rotary, attention=AttentionConfig(local=local))


def _keys(config: ModelConfig) -> dict[str, Any]:
    """Return the keys: no window, which is 0, because llama.cpp reads one but does not apply it."""
    scaling = config.rotary.scaling
    found = decoder_keys(config) | {"attention.sliding_window": 0}
    original = config.max_positions
    if isinstance(scaling, LongRope):
        original = scaling.original
        found["rope.scaling.attn_factor"] = scaling.magnitude
    return found | {"rope.scaling.original_context_length": original}


def _factors(config: ModelConfig) -> dict[str, np.ndarray]:
    scaling = config.rotary.scaling
    if not isinstance(scaling, LongRope):
        return {}
    return dict(zip(_FACTORS, map(np.float32, (scaling.short, scaling.long)), strict=True))


_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
_GGUF_KERNELS = (
    Kernel("attn_qkv", ("q_proj", "k_proj", "v_proj"), QKV),
    Kernel("attn_output", ("o_proj",)),
    Kernel("ffn_up", ("gate_proj", "up_proj"), GATE_UP),
    Kernel("ffn_down", ("down_proj",)),
)


PHI3 = Family(
    name="phi3",
    reads=DECODER | WINDOW | {ORIGINAL},
    implemented={
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "lm_head_bias": (False, None),
        "full_attn_mod": (1, None),
        "interpolate_factor": (1, None),
    },
    # The repositories name code of their own, which transformers has too, and which is not run.
    ignored=frozenset({"auto_map"}),
    read=_read,
    write=_write,
    body=decoder_body(PRE_NORMS, kernels=_KERNELS),
    prefix="model.",
    architectures={
        "Phi3ForCausalLM": Architecture("phi3", head("lm_head")),
        "Phi3ForSequenceClassification": Architecture("phi3", SCORE),
    },
    gguf=GGUFForm(
        arch="phi3",
        rows=gguf_rows(GGUF_PRE_NORMS, _GGUF_KERNELS),
        read=_read_gguf,
        keys=_keys,
        vectors=_factors,
    ),
)
