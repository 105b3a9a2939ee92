"""Gemma 2, and the text models of Gemma 3."""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.models.config import (
    ATTENTION_PROJECTIONS,
    AttentionConfig,
    EmbeddingConfig,
    ModelConfig,
)
from alol_jax.models.families.family import Architecture, Family
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.layouts import SCORE, head
from alol_jax.models.families.llama import (
    BIAS,
    DECODER,
    QUERY_KEY_NORMS,
    attention_biases,
    decoder_body,
    read_decoder,
    write_decoder,
)
from alol_jax.models.families.rope import read_rotary, rope_parameters
from alol_jax.models.families.windows import (
    LAYER_TYPES,
    read_local,
    window_size,
    write_layer_types,
)
from alol_jax.models.rotary import Rotary

_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_out_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}
_READS = DECODER | BIAS | LAYER_TYPES | {"query_pre_attn_scalar", "final_logit_softcapping"}
_GELU = "gelu_pytorch_tanh"
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "hidden_activation": (_GELU, None),
    "use_bidirectional_attention": (False, None),
}
_KINDS = {"full_attention": False, "sliding_attention": True}  # -> whether the layer is local
_IGNORED = frozenset({"hidden_act", "cache_implementation", "_sliding_window_pattern"})


def _with_norms(config: ModelConfig, fields: Fields) -> ModelConfig:
    """Add what both have in common."""
    return dataclasses.replace(
        config,
        norm="rms_plus_one",
        residual="around",
        activation="gelu_tanh",
        biases=attention_biases(fields),
        embedding=EmbeddingConfig(scaled=True),
    )


def _scale(fields: Fields) -> float:
    return fields.positive("query_pre_attn_scalar", 256.0) ** -0.5


def _read_2(fields: Fields) -> ModelConfig:
    layers = range(fields.size("num_hidden_layers"))
    window = window_size(fields, 4096)
    local = read_local(fields, [layer % 2 == 0 for layer in layers], window=window)
    cap = fields.positive("attn_logit_softcapping", 50.0)
    config = read_decoder(fields, "gemma2", head_width=fields.size("head_dim", 256), tied=True)
    return dataclasses.replace(
        _with_norms(config, fields),
        attention=AttentionConfig(local=local, scale=_scale(fields), cap=cap),
        logit_cap=fields.positive("final_logit_softcapping", 30.0),
    )


def _read_3(fields: Fields) -> ModelConfig:
    width, period = fields.size("head_dim", 256), fields.size("sliding_window_pattern", 6)
    whole, near = _rotaries(fields, width)
    layers = range(fields.size("num_hidden_layers"))
    local = read_local(
        fields,
        [(layer + 1) % period != 0 for layer in layers],
        window=window_size(fields, 4096),
        rotary=near,
    )
    config = read_decoder(fields, "gemma3_text", head_width=width, rotary=whole, tied=True)
    return dataclasses.replace(
        _with_norms(config, fields),
        attention=AttentionConfig("head", local, scale=_scale(fields)),
        logit_cap=fields.positive("final_logit_softcapping", None),
    )


def _rotaries(fields: Fields, width: int) -> tuple[Rotary, Rotary]:
    """Return the rotary positions of layers that see everything, and of local ones.

    transformers 5 has ``rope_parameters`` for each kind of layer; 4 has ``rope_theta`` and
    ``rope_scaling`` for the former, and ``rope_local_base_freq`` for the latter.
    """
    given, nested = fields.values, fields.values.get("rope_parameters") or {}
    if not isinstance(nested, dict) or not nested.keys() <= _KINDS.keys():
        raise fields.unimplemented("rope_parameters", nested, f"one for each of {[*_KINDS]}")
    shared = {"max_position_embeddings": fields.size("max_position_embeddings")}
    whole = shared | {name: given.get(name) for name in ("rope_theta", "rope_scaling")}
    near = shared | {"rope_theta": given.get("rope_local_base_freq")}
    whole["rope_parameters"], near["rope_parameters"] = map(nested.get, _KINDS)
    return (
        read_rotary(Fields(whole, fields.where), width, theta=1e6),
        read_rotary(Fields(near, fields.where), width),
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    fields = write_decoder(config) | write_layer_types(config)
    fields.pop("hidden_act")
    return fields | {
        "hidden_activation": _GELU,
        "attention_bias": bool(config.biases),
        "query_pre_attn_scalar": round(config.attention.scale**-2),  # transformers wants an int
        "final_logit_softcapping": config.logit_cap,
    }


def _write_2(config: ModelConfig) -> dict[str, Any]:
    return _write(config) | {"attn_logit_softcapping": config.attention.cap}


def _write_3(config: ModelConfig) -> dict[str, Any]:
    rope = {name: rope_parameters(config.rotary_of(local)) for name, local in _KINDS.items()}
    return _write(config) | {"rope_parameters": rope}


GEMMA2 = Family(
    name="gemma2",
    reads=_READS | {"attn_logit_softcapping"},
    implemented=_IMPLEMENTED,
    ignored=_IGNORED,
    read=_read_2,
    write=_write_2,
    body=decoder_body(_NORMS, ATTENTION_PROJECTIONS),
    prefix="model.",
    architectures={
        "Gemma2ForCausalLM": Architecture("gemma2", head("lm_head")),
        "Gemma2ForSequenceClassification": Architecture("gemma2", SCORE),
    },
)
GEMMA3 = Family(
    name="gemma3_text",
    reads=_READS | {"sliding_window_pattern", "rope_local_base_freq"},
    implemented=_IMPLEMENTED | {"attn_logit_softcapping": (None,)},
    ignored=_IGNORED,
    read=_read_3,
    write=_write_3,
    body=decoder_body(_NORMS | QUERY_KEY_NORMS, ATTENTION_PROJECTIONS),
    prefix="model.",
    architectures={
        "Gemma3ForCausalLM": Architecture("gemma3_text", head("lm_head")),
        "Gemma3TextForSequenceClassification": Architecture("gemma3_text", SCORE),
    },
)
