"""Llama 1 to 3.2, from Hugging Face and from GGUF, and what its kin have in common with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alol_jax.models.config import ATTENTION_PROJECTIONS, ModelConfig
from alol_jax.models.families.family import SIZES, Architecture, Family, sizes
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.gguf_form import (
    GGUF_KERNELS,
    GGUF_PRE_NORMS,
    GGUFForm,
    Keys,
    decoder_keys,
    gguf_decoder,
    gguf_rows,
    stored_biases,
)
from alol_jax.models.families.layouts import (
    SCORE,
    TRANSPOSED,
    Kernel,
    Layout,
    Row,
    decoder_rows,
    head,
)
from alol_jax.models.families.rope import ROPE, read_rotary, rope_parameters
from alol_jax.models.rotary import Llama3Scaling, LongRope, Rotary

DECODER = SIZES | ROPE | {"num_key_value_heads", "head_dim", "rms_norm_eps"}
"""The fields of config.json that `read_decoder` uses."""

BIAS = frozenset({"attention_bias"})
_MLP = ("gate_proj", "up_proj", "down_proj")


def read_decoder(
    fields: Fields,
    family: str,
    *,
    head_width: int | None = None,
    rotary: Rotary | None = None,
    partial: bool = False,
    tied: bool = False,
) -> ModelConfig:
    """Read what Llama and its kin have in common.

    Args:
        head_width: H; None reads it.
        rotary: the rotary positions; None reads them.
        partial: whether a part of a head may be rotated.
        tied: the default for ``tie_word_embeddings``.
    """
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_width = head_width or fields.size("head_dim", width // max(heads, 1))
    rotary = rotary or read_rotary(fields, head_width)
    if rotary.width != head_width and not partial:
        named = ("partial_rotary_factor", *sorted(ROPE))
        key = next(key for key in named if fields.values.get(key))
        raise fields.unimplemented(key, fields.values[key], "partial_rotary_factor 1.0")
    grouped = {"kv_heads": fields.size("num_key_value_heads", heads), "head_width": head_width}
    return ModelConfig(
        family=family,
        **sizes(fields, width, heads) | grouped,
        layers=fields.size("num_hidden_layers"),
        mlp_width=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings"),
        norm_epsilon=fields.number("rms_norm_eps"),
        tied_embeddings=fields.flag("tie_word_embeddings", tied),
        rotary=rotary,
    )


def attention_biases(fields: Fields) -> tuple[str, ...]:
    """Return the projections that ``attention_bias`` gives a bias."""
    return ATTENTION_PROJECTIONS if fields.flag("attention_bias", False) else ()


def write_decoder(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of config.json that `read_decoder` reads."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_embeddings,
        "rope_parameters": rope_parameters(config.rotary),
    }


PRE_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
QUERY_KEY_NORMS = {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}


_KERNELS = (
    *(Kernel(f"self_attn.{name}", (name,)) for name in ATTENTION_PROJECTIONS),
    *(Kernel(f"mlp.{name}", (name,)) for name in _MLP),
)


def decoder_body(
    norms: dict[str, str], biases: Sequence[str] = (), kernels: Sequence[Kernel] = _KERNELS
) -> tuple[Row, ...]:
    """Return the tensors of a decoder below its head, by `decoder_rows`."""
    names = ("model.embed_tokens", "model.layers.{i}", "model.norm")
    return decoder_rows(names, norms, kernels, biases=biases)


def _read(fields: Fields) -> ModelConfig:
    mlp = _MLP if fields.flag("mlp_bias", False) else ()
    config = read_decoder(fields, "llama")
    return dataclasses.replace(config, biases=attention_biases(fields) + mlp)


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_decoder(config) | {
        "attention_bias": "q_proj" in config.biases,
        "mlp_bias": "up_proj" in config.biases,
    }


def _pairs(heads_of: Callable[[ModelConfig], int]) -> Layout:
    """llama.cpp's order of query and key rows, for tensors [heads · H, …].

    Within each head, row 2i is our row i and row 2i + 1 is our row H/2 + i.
    """

    def split(c, x):
        pairs = x.reshape(heads_of(c), c.head_width // 2, 2, *x.shape[1:])
        return (pairs.swapaxes(1, 2).reshape(x.shape).T,)

    def join(c, parts):
        x = parts[0].T
        halves = x.reshape(heads_of(c), 2, c.head_width // 2, *x.shape[1:])
        return halves.swapaxes(1, 2).reshape(x.shape)

    return Layout(split, join)


def _read_gguf(keys: Keys) -> ModelConfig:
    """Read what llama.cpp computes; Llama 3's scaling is a divisor for every frequency."""
    config = gguf_decoder(keys, "llama")
    config = dataclasses.replace(config, biases=stored_biases(keys))
    divisors = keys.vector("rope_freqs.weight")
    if divisors is None:
        return config
    keys.only("rope.scaling.type", "none")
    scaling = LongRope(divisors, divisors, config.max_positions)
    return dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, scaling=scaling))


def _divisors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Return what divides each frequency: with Llama 3's scaling, or as a GGUF file had it."""
    scaling = config.rotary.scaling
    if isinstance(scaling, LongRope) and scaling.short == scaling.long and scaling.magnitude == 1:
        return {"rope_freqs.weight": np.float32(scaling.short)}
    if not isinstance(scaling, Llama3Scaling):
        return {}
    plain = dataclasses.replace(config.rotary, scaling=None).frequencies()
    return {"rope_freqs.weight": plain / config.rotary.frequencies()}


_PAIRED = {"q_proj": _pairs(lambda c: c.heads), "k_proj": _pairs(lambda c: c.kv_heads)}

LLAMA_GGUF = GGUFForm(
    arch="llama",
    rows=gguf_rows(
        GGUF_PRE_NORMS,
        [kernel._replace(layout=_PAIRED.get(*kernel.maps, TRANSPOSED)) for kernel in GGUF_KERNELS],
        biases=(*ATTENTION_PROJECTIONS, *_MLP),
    ),
    read=_read_gguf,
    keys=decoder_keys,
    vectors=_divisors,
)
"""llama.cpp's architecture of Llama and of a Mistral without windows."""


LLAMA = Family(
    name="llama",
    reads=DECODER | BIAS | {"mlp_bias"},
    implemented={
        "hidden_act": ("silu",),
        "rope_interleaved": (False, None),
        "sliding_window": (None,),
        "use_sliding_window": (False, None),
        "layer_types": (None,),
    },
    read=_read,
    write=_write,
    body=decoder_body(PRE_NORMS, (*ATTENTION_PROJECTIONS, *_MLP)),
    prefix="model.",
    architectures={
        "LlamaForCausalLM": Architecture("llama", head("lm_head")),
        "LlamaForSequenceClassification": Architecture("llama", SCORE),
    },
    gguf=LLAMA_GGUF,
)
