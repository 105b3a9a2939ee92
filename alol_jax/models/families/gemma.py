"""Gemma 2, and the text models of Gemma 3."""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.models.config import (
    ATTENTION_PROJECTIONS,
    AttentionConfig,
    EmbeddingConfig,
    Local,
    ModelConfig,
)
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
from alol_jax.models.families.layouts import SCORE, Layout, head
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
    KINDS,
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
_IGNORED = frozenset({"hidden_act", "cache_implementation", "_sliding_window_pattern"})


def _gemma(config: ModelConfig, biases: tuple[str, ...] = ()) -> ModelConfig:
    """Add what both have in common."""
    return dataclasses.replace(
        config,
        norm="rms_plus_one",
        residual="around",
        activation="gelu_tanh",
        biases=biases,
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
        _gemma(config, attention_biases(fields)),
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
        _gemma(config, attention_biases(fields)),
        attention=AttentionConfig("head", local, scale=_scale(fields)),
        logit_cap=fields.positive("final_logit_softcapping", None),
    )


def _rotaries(fields: Fields, width: int) -> tuple[Rotary, Rotary]:
    """Return the rotary positions of layers that see everything, and of local ones.

    transformers 5 has ``rope_parameters`` for each kind of layer; 4 has ``rope_theta`` and
    ``rope_scaling`` for the former, and ``rope_local_base_freq`` for the latter.
    """
    given, nested = fields.values, fields.values.get("rope_parameters") or {}
    if not isinstance(nested, dict) or not nested.keys() <= KINDS.keys():
        raise fields.unimplemented("rope_parameters", nested, f"one for each of {[*KINDS]}")
    shared = {"max_position_embeddings": fields.size("max_position_embeddings")}
    whole = shared | {name: given.get(name) for name in ("rope_theta", "rope_scaling")}
    near = shared | {"rope_theta": given.get("rope_local_base_freq")}
    whole["rope_parameters"], near["rope_parameters"] = map(nested.get, KINDS)
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
    rope = {name: rope_parameters(config.rotary_of(local)) for name, local in KINDS.items()}
    return _write(config) | {"rope_parameters": rope}


# In GGUF files a head is never apart in Gemma 2, and norms are stored as 1 + w.
_PLUS_ONE = Layout(lambda c, x: (x - 1,), lambda c, parts: parts[0] + 1)
_GGUF_NORMS = GGUF_PRE_NORMS | {
    "post_attention_norm": "attention_out_norm",
    "post_ffw_norm": "mlp_out_norm",
}
_GGUF_QUERY_KEY_NORMS = {"attn_q_norm": "q_norm", "attn_k_norm": "k_norm"}
_WINDOW = "attention.sliding_window"
_CAP, _LOGIT_CAP = "attn_logit_softcapping", "final_logit_softcapping"
_LOCAL_BASE = "rope.freq_base_swa"


def _gguf_local(keys: Keys, period: int, rotary: Rotary | None) -> Local:
    """Return the windows that llama.cpp has: in all layers but each ``period``-th."""
    keys.only("attention.sliding_window_pattern", period)
    return Local(keys.size(_WINDOW, 4096), (True,) * (period - 1) + (False,), rotary)


def _gguf_scale(config: ModelConfig, largest: int) -> float:
    """Return the scale of the scores; that of the model with ``largest`` layers is another."""
    wide = config.layers == largest
    return (config.width // config.heads if wide else config.head_width) ** -0.5


def _gguf_2(keys: Keys) -> ModelConfig:
    config = dataclasses.replace(gguf_decoder(keys, "gemma2"), tied_embeddings=True)
    return dataclasses.replace(
        _gemma(config),
        attention=AttentionConfig(
            local=_gguf_local(keys, 2, None),
            scale=_gguf_scale(config, 46),
            cap=keys.number(_CAP, 50.0),
        ),
        logit_cap=keys.number(_LOGIT_CAP, 30.0),
    )


def _gguf_3(keys: Keys) -> ModelConfig:
    config = gguf_decoder(keys, "gemma3_text")
    near = Rotary(keys.number(_LOCAL_BASE, 1e4), config.head_width)
    attention = AttentionConfig("head", _gguf_local(keys, 6, near), _gguf_scale(config, 62))
    return dataclasses.replace(_gemma(config), attention=attention)


def _gguf_keys_2(config: ModelConfig) -> dict[str, Any]:
    caps = {_CAP: config.attention.cap, _LOGIT_CAP: config.logit_cap}
    return decoder_keys(config) | {key: cap for key, cap in caps.items() if cap} | _window(config)


def _gguf_keys_3(config: ModelConfig) -> dict[str, Any]:
    return decoder_keys(config) | {_LOCAL_BASE: config.rotary_of(True).theta} | _window(config)


def _window(config: ModelConfig) -> dict[str, int]:
    local = config.attention.local
    return {} if local is None else {_WINDOW: local.window}


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
    gguf=GGUFForm(
        "gemma2",
        gguf_rows(_GGUF_NORMS, norm=_PLUS_ONE),
        _gguf_2,
        _gguf_keys_2,
    ),
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
    gguf=GGUFForm(
        "gemma3",
        gguf_rows(_GGUF_NORMS | _GGUF_QUERY_KEY_NORMS, norm=_PLUS_ONE),
        _gguf_3,
        _gguf_keys_3,
    ),
)
