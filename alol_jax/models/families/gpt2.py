"""GPT-2 and DialoGPT."""

from __future__ import annotations

import dataclasses
from typing import Any

from alol_jax.models.config import UNGATED, ModelConfig
from alol_jax.models.families.family import Architecture, Family, hf_activation, sizes
from alol_jax.models.families.fields import ACTIVATIONS, Fields
from alol_jax.models.families.gguf_form import FUSED_GGUF, GGUFForm, Keys, gguf_decoder
from alol_jax.models.families.layouts import (
    AS_IS,
    CONCATENATED,
    SCORE,
    Row,
    affine,
    head,
    layer_norm,
    packed_qkv,
)


def _read(fields: Fields) -> ModelConfig:
    width, heads = fields.size("n_embd"), fields.size("n_head")
    return ModelConfig(
        family="gpt2",
        **sizes(fields, width, heads),
        layers=fields.size("n_layer"),
        mlp_width=fields.size("n_inner", 4 * width),
        max_positions=fields.size("n_positions", fields.values.get("n_ctx")),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        rotary=None,
        norm="layer",
        activation=fields.one_of("activation_function", ACTIVATIONS, "gelu_new"),
        gated_mlp=False,
        biases=UNGATED,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": hf_activation(config),
        "tie_word_embeddings": config.tied_embeddings,
    }


_BODY = (
    Row("transformer.wte.weight", ("embed/embedding",), AS_IS),
    Row("transformer.wpe.weight", ("positions/embedding",), AS_IS),
    *layer_norm("transformer.h.{i}.ln_1", "layers/attention_norm"),
    *layer_norm("transformer.h.{i}.ln_2", "layers/mlp_norm"),
    *packed_qkv("transformer.h.{i}.attn.c_attn", CONCATENATED, CONCATENATED),
    *affine("transformer.h.{i}.attn.c_proj", "layers/o_proj", AS_IS),
    *affine("transformer.h.{i}.mlp.c_fc", "layers/up_proj", AS_IS),
    *affine("transformer.h.{i}.mlp.c_proj", "layers/down_proj", AS_IS),
    *layer_norm("transformer.ln_f", "final_norm"),
)


def _read_gguf(keys: Keys) -> ModelConfig:
    config = gguf_decoder(keys, "gpt2", own_heads=False, rotates=False, norm="layer")
    return dataclasses.replace(config, activation="gelu_tanh", gated_mlp=False, biases=UNGATED)


_GGUF = (Row("position_embd.weight", ("positions/embedding",), AS_IS), *FUSED_GGUF)


GPT2 = Family(
    name="gpt2",
    reads=frozenset(
        "vocab_size n_embd n_layer n_head n_inner n_positions layer_norm_epsilon "
        "activation_function tie_word_embeddings".split()
    ),
    implemented={
        "scale_attn_weights": (True, None),
        "scale_attn_by_inverse_layer_idx": (False, None),
    },
    read=_read,
    write=_write,
    body=_BODY,
    prefix="transformer.",
    architectures={
        "GPT2LMHeadModel": Architecture("gpt2", head("lm_head")),
        "GPT2ForSequenceClassification": Architecture("gpt2", SCORE, ignored=r"lm_head\.weight"),
        "GPT2ForOC_S_offensive": Architecture(
            "gpt2", affine("off_classifier", "score"), ignored=r"lm_head\.weight"
        ),
    },
    gguf=GGUFForm("gpt2", _GGUF, _read_gguf),
)
