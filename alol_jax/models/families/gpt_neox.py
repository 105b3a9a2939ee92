"""GPT-NeoX and Pythia."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from alol_jax.models.config import UNGATED, ModelConfig
from alol_jax.models.families.family import SIZES, Architecture, Family, hf_activation, sizes
from alol_jax.models.families.fields import ACTIVATIONS, Fields
from alol_jax.models.families.gguf_form import (
    FUSED_GGUF,
    GGUFForm,
    Keys,
    decoder_keys,
    gguf_decoder,
)
from alol_jax.models.families.layouts import (
    AS_IS,
    SCORE,
    Array,
    Layout,
    Row,
    affine,
    head,
    layer_norm,
    packed_qkv,
)
from alol_jax.models.families.rope import ROPE, read_rotary, rope_parameters


def _read(fields: Fields) -> ModelConfig:
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return ModelConfig(
        family="gpt_neox",
        **sizes(fields, width, heads),
        layers=fields.size("num_hidden_layers"),
        mlp_width=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings"),
        norm_epsilon=fields.number("layer_norm_eps"),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        rotary=read_rotary(fields, width // max(heads, 1), share=0.25),
        norm="layer",
        activation=fields.one_of("hidden_act", ACTIVATIONS, "gelu"),
        gated_mlp=False,
        biases=UNGATED,
        residual="parallel" if fields.flag("use_parallel_residual", True) else "pre",
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    share = config.rotary.width / config.head_width
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": hf_activation(config),
        "use_parallel_residual": config.residual == "parallel",
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": rope_parameters(config.rotary) | {"partial_rotary_factor": share},
    }


def _unpack_heads(c: ModelConfig, x: Array) -> tuple[Array, ...]:
    """Split GPT-NeoX's [N · 3 · H, …], which has query, key and value of each head in turn."""
    parts = x.reshape(c.heads, 3, c.head_width, *x.shape[1:]).swapaxes(0, 1)
    return tuple(part.reshape(-1, *x.shape[1:]).T for part in parts)


def _pack_heads(c: ModelConfig, parts: Sequence):
    rows = [part.T.reshape(c.heads, 1, c.head_width, *part.shape[:-1]) for part in parts]
    return jnp.concatenate(rows, axis=1).reshape(-1, *parts[0].shape[:-1])


INTERLEAVED = Layout(_unpack_heads, _pack_heads)
_BODY = (
    Row("gpt_neox.embed_in.weight", ("embed/embedding",), AS_IS),
    *layer_norm("gpt_neox.layers.{i}.input_layernorm", "layers/attention_norm"),
    *layer_norm("gpt_neox.layers.{i}.post_attention_layernorm", "layers/mlp_norm"),
    *packed_qkv("gpt_neox.layers.{i}.attention.query_key_value", INTERLEAVED, INTERLEAVED),
    *affine("gpt_neox.layers.{i}.attention.dense", "layers/o_proj"),
    *affine("gpt_neox.layers.{i}.mlp.dense_h_to_4h", "layers/up_proj"),
    *affine("gpt_neox.layers.{i}.mlp.dense_4h_to_h", "layers/down_proj"),
    *layer_norm("gpt_neox.final_layer_norm", "final_norm"),
)


_PARALLEL = "use_parallel_residual"


def _read_gguf(keys: Keys) -> ModelConfig:
    """Read what llama.cpp computes: GELU by tanh, which Pythia has not, and no tied head."""
    config = gguf_decoder(keys, "gpt_neox", own_heads=False, partial=True, norm="layer")
    return dataclasses.replace(
        config,
        tied_embeddings=False,
        activation="gelu_tanh",
        gated_mlp=False,
        biases=UNGATED,
        residual="parallel" if keys.only(_PARALLEL, True, False) else "pre",
    )


def _gguf_keys(config: ModelConfig) -> dict[str, Any]:
    return decoder_keys(config) | {_PARALLEL: config.residual == "parallel"}


GPT_NEOX = Family(
    name="gpt_neox",
    reads=SIZES | ROPE | {"layer_norm_eps", "hidden_act", "use_parallel_residual"},
    implemented={"attention_bias": (True, None)},
    read=_read,
    write=_write,
    body=_BODY,
    prefix="gpt_neox.",
    architectures={
        "GPTNeoXForCausalLM": Architecture("gpt_neox", head("embed_out")),
        "GPTNeoXForSequenceClassification": Architecture("gpt_neox", SCORE),
        "GPTNeoXRewardModel": Architecture("gpt_neox", affine("out_proj", "score")),
    },
    other_types=("gpt_neox_reward_model",),
    gguf=GGUFForm("gptneox", FUSED_GGUF, _read_gguf, _gguf_keys),
)
