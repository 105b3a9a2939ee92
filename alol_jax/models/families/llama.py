"""Llama 1 to 3.2, from Hugging Face and from GGUF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alol_jax.models.config import ModelConfig
from alol_jax.models.families.family import SIZES, Architecture, Family, sizes
from alol_jax.models.families.fields import ROPE, Fields, read_rotary, rope_parameters
from alol_jax.models.families.layouts import AS_IS, SCORE, TRANSPOSED, Layout, Row, head


def _read(fields: Fields) -> ModelConfig:
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_width = fields.size("head_dim", width // max(heads, 1))
    grouped = {"kv_heads": fields.size("num_key_value_heads", heads), "head_width": head_width}
    rotary = read_rotary(fields, head_width, share=1.0)
    if rotary.width != head_width:
        key = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
        raise fields.unimplemented(key, fields.values[key], "partial_rotary_factor 1.0")
    return ModelConfig(
        family="llama",
        **sizes(fields, width, heads) | grouped,
        layers=fields.size("num_hidden_layers"),
        mlp_width=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings"),
        norm_epsilon=fields.number("rms_norm_eps"),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        rotary=rotary,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
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


_PROJECTIONS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
_BODY = (
    Row("model.embed_tokens.weight", ("embed/embedding",), AS_IS),
    Row("model.layers.{i}.input_layernorm.weight", ("layers/attention_norm/scale",), AS_IS),
    Row("model.layers.{i}.post_attention_layernorm.weight", ("layers/mlp_norm/scale",), AS_IS),
    *(
        Row(f"model.layers.{{i}}.{theirs}.weight", (f"layers/{ours}/kernel",), TRANSPOSED)
        for ours, theirs in _PROJECTIONS.items()
    ),
    Row("model.norm.weight", ("final_norm/scale",), AS_IS),
)


def _pairs(heads_of: Callable[[ModelConfig], int]) -> Layout:
    """llama.cpp's order of query and key rows, for tensors [heads · H, D].

    Within each head, row 2i is our row i and row 2i + 1 is our row H/2 + i.
    """

    def split(c, x):
        pairs = x.reshape(heads_of(c), c.head_width // 2, 2, x.shape[1])
        return (pairs.swapaxes(1, 2).reshape(x.shape).T,)

    def join(c, parts):
        x = parts[0].T
        halves = x.reshape(heads_of(c), 2, c.head_width // 2, x.shape[1])
        return halves.swapaxes(1, 2).reshape(x.shape)

    return Layout(split, join)


_GGUF = (
    Row("token_embd.weight", ("embed/embedding",), AS_IS),
    Row("blk.{i}.attn_norm.weight", ("layers/attention_norm/scale",), AS_IS),
    Row("blk.{i}.ffn_norm.weight", ("layers/mlp_norm/scale",), AS_IS),
    Row("blk.{i}.attn_q.weight", ("layers/q_proj/kernel",), _pairs(lambda c: c.heads)),
    Row("blk.{i}.attn_k.weight", ("layers/k_proj/kernel",), _pairs(lambda c: c.kv_heads)),
    Row("blk.{i}.attn_v.weight", ("layers/v_proj/kernel",), TRANSPOSED),
    Row("blk.{i}.attn_output.weight", ("layers/o_proj/kernel",), TRANSPOSED),
    Row("blk.{i}.ffn_gate.weight", ("layers/gate_proj/kernel",), TRANSPOSED),
    Row("blk.{i}.ffn_up.weight", ("layers/up_proj/kernel",), TRANSPOSED),
    Row("blk.{i}.ffn_down.weight", ("layers/down_proj/kernel",), TRANSPOSED),
    Row("output_norm.weight", ("final_norm/scale",), AS_IS),
    Row("output.weight", ("head/kernel",), TRANSPOSED),
)


LLAMA = Family(
    name="llama",
    reads=SIZES | ROPE | {"num_key_value_heads", "head_dim", "rms_norm_eps"},
    implemented={
        "hidden_act": ("silu",),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "rope_interleaved": (False, None),
        "partial_rotary_factor": (1.0, None),
        "sliding_window": (None,),
        "use_sliding_window": (False, None),
        "layer_types": (None,),
    },
    read=_read,
    write=_write,
    body=_BODY,
    prefix="model.",
    architectures={
        "LlamaForCausalLM": Architecture("llama", head("lm_head")),
        "LlamaForSequenceClassification": Architecture("llama", SCORE),
    },
    gguf=_GGUF,
)
