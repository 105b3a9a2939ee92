"""Phi-3 and Phi-4-mini: a Llama with fused projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import jax.numpy as jnp
import numpy as np

from alol_jax.models.config import AttentionConfig, ModelConfig
from alol_jax.models.families.family import Architecture, Family
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.layouts import AS_IS, SCORE, TRANSPOSED, Layout, Row, head
from alol_jax.models.families.llama import DECODER, PRE_NORMS, read_decoder, write_decoder
from alol_jax.models.families.windows import WINDOW, read_window, write_window
from alol_jax.models.rotary import LongRope

_ORIGINAL = "original_max_position_embeddings"


def _read(fields: Fields) -> ModelConfig:
    attention = AttentionConfig(local=read_window(fields, None))
    return dataclasses.replace(read_decoder(fields, "phi3", partial=True), attention=attention)


def _write(config: ModelConfig) -> dict[str, Any]:
    fields = write_decoder(config) | write_window(config)
    share = config.rotary.width / config.head_width
    fields["rope_parameters"] |= {"partial_rotary_factor": share}
    if isinstance(config.rotary.scaling, LongRope):
        fields[_ORIGINAL] = config.rotary.scaling.original
    return fields


def _side_by_side(sizes: Callable[[ModelConfig], list[int]]) -> Layout:
    """Tensors [out, in] whose rows are those of several maps, one after the other.

    ``sizes`` is (config) -> the outputs of each.
    """

    def split(config, x):
        return [part.T for part in np.split(x, list(accumulate(sizes(config)))[:-1])]

    return Layout(split, lambda config, parts: jnp.concatenate([part.T for part in parts]))


_QKV = _side_by_side(lambda c: [heads * c.head_width for heads in (c.heads, *[c.kv_heads] * 2)])
_GATE_UP = _side_by_side(lambda c: [c.mlp_width] * 2)


def _kernels(*names: str) -> tuple[str, ...]:
    return tuple(f"layers/{name}/kernel" for name in names)


_LAYER = "model.layers.{i}"
_BODY = (
    Row("model.embed_tokens.weight", ("embed/embedding",), AS_IS),
    *(
        Row(f"{_LAYER}.{theirs}.weight", (f"layers/{ours}/scale",), AS_IS)
        for theirs, ours in PRE_NORMS.items()
    ),
    Row(f"{_LAYER}.self_attn.qkv_proj.weight", _kernels("q_proj", "k_proj", "v_proj"), _QKV),
    Row(f"{_LAYER}.self_attn.o_proj.weight", _kernels("o_proj"), TRANSPOSED),
    Row(f"{_LAYER}.mlp.gate_up_proj.weight", _kernels("gate_proj", "up_proj"), _GATE_UP),
    Row(f"{_LAYER}.mlp.down_proj.weight", _kernels("down_proj"), TRANSPOSED),
    Row("model.norm.weight", ("final_norm/scale",), AS_IS),
)


PHI3 = Family(
    name="phi3",
    reads=DECODER | WINDOW | {_ORIGINAL},
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
    body=_BODY,
    prefix="model.",
    architectures={
        "Phi3ForCausalLM": Architecture("phi3", head("lm_head")),
        "Phi3ForSequenceClassification": Architecture("phi3", SCORE),
    },
)
