"""Tensor names and layouts in the files of other libraries: one table per model family.

A row is a stored tensor and the parameters that it holds: usually one, or three for a packed
query-key-value tensor. ``{i}`` is the layer. Parameters under ``layers/`` stack all layers on their
first axis; a row describes one layer. Kernels are [in, out] here and [out, in] in PyTorch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.config import ModelConfig

Array = np.ndarray


class Layout(NamedTuple):
    """Conversion between a stored tensor and the parameters that it holds.

    ``join`` is the inverse of ``split``, in `jax.numpy`, so that it also works on shapes alone.
    """

    split: Callable[[ModelConfig, Array], Sequence[Array]]
    join: Callable[[ModelConfig, Sequence], object]


class Row(NamedTuple):
    """A stored tensor: its name, the parameters that it holds, and their layout."""

    name: str
    paths: tuple[str, ...]
    layout: Layout

    @property
    def layered(self) -> bool:
        return self.paths[0].startswith("layers/")

    def names(self, config: ModelConfig) -> list[str]:
        """Return the tensor names: one, or one per layer."""
        return [self.name.format(i=i) for i in range(config.layers if self.layered else 1)]

    def stored_shape(
        self, config: ModelConfig, ours: Mapping[str, jax.ShapeDtypeStruct]
    ) -> tuple[int, ...]:
        """Return the shape of the tensor (of one layer); ``ours`` holds the parameters by path."""
        parts = [
            jax.ShapeDtypeStruct(ours[path].shape[self.layered :], jnp.float32)
            for path in self.paths
        ]
        return tuple(jax.eval_shape(functools.partial(self.layout.join, config), parts).shape)


AS_IS = Layout(lambda c, x: (x,), lambda c, parts: parts[0])
TRANSPOSED = Layout(lambda c, x: (x.T,), lambda c, parts: parts[0].T)


def _unpack_heads(c: ModelConfig, x: Array) -> tuple[Array, ...]:
    """Split GPT-NeoX's [N · 3 · H, …], which has query, key and value of each head in turn."""
    parts = x.reshape(c.heads, 3, c.head_width, *x.shape[1:]).swapaxes(0, 1)
    return tuple(part.reshape(-1, *x.shape[1:]).T for part in parts)


def _pack_heads(c: ModelConfig, parts: Sequence):
    rows = [part.T.reshape(c.heads, 1, c.head_width, *part.shape[:-1]) for part in parts]
    return jnp.concatenate(rows, axis=1).reshape(-1, *parts[0].shape[:-1])


INTERLEAVED = Layout(_unpack_heads, _pack_heads)
CONCATENATED = Layout(  # GPT-2's Conv1D, which stores [in, out]
    lambda c, x: np.split(x, 3, axis=-1), lambda c, parts: jnp.concatenate(parts, axis=-1)
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


def _norm(stem: str, ours: str) -> tuple[Row, Row]:
    """Return the rows of a LayerNorm's scale and bias."""
    return (
        Row(f"{stem}.weight", (f"{ours}/scale",), AS_IS),
        Row(f"{stem}.bias", (f"{ours}/bias",), AS_IS),
    )


def _affine(stem: str, ours: str, kernel: Layout = TRANSPOSED) -> tuple[Row, Row]:
    """Return the rows of a linear map's kernel and bias."""
    return (
        Row(f"{stem}.weight", (f"{ours}/kernel",), kernel),
        Row(f"{stem}.bias", (f"{ours}/bias",), AS_IS),
    )


def _packed_qkv(stem: str, kernel: Layout, bias: Layout) -> tuple[Row, Row]:
    ours = [f"layers/{x}_proj" for x in "qkv"]
    return (
        Row(f"{stem}.weight", tuple(f"{path}/kernel" for path in ours), kernel),
        Row(f"{stem}.bias", tuple(f"{path}/bias" for path in ours), bias),
    )


_LLAMA_PROJECTIONS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
_LLAMA = (
    Row("model.embed_tokens.weight", ("embed/embedding",), AS_IS),
    Row("model.layers.{i}.input_layernorm.weight", ("layers/attention_norm/scale",), AS_IS),
    Row("model.layers.{i}.post_attention_layernorm.weight", ("layers/mlp_norm/scale",), AS_IS),
    *(
        Row(f"model.layers.{{i}}.{theirs}.weight", (f"layers/{ours}/kernel",), TRANSPOSED)
        for ours, theirs in _LLAMA_PROJECTIONS.items()
    ),
    Row("model.norm.weight", ("final_norm/scale",), AS_IS),
)
_GPT_NEOX = (
    Row("gpt_neox.embed_in.weight", ("embed/embedding",), AS_IS),
    *_norm("gpt_neox.layers.{i}.input_layernorm", "layers/attention_norm"),
    *_norm("gpt_neox.layers.{i}.post_attention_layernorm", "layers/mlp_norm"),
    *_packed_qkv("gpt_neox.layers.{i}.attention.query_key_value", INTERLEAVED, INTERLEAVED),
    *_affine("gpt_neox.layers.{i}.attention.dense", "layers/o_proj"),
    *_affine("gpt_neox.layers.{i}.mlp.dense_h_to_4h", "layers/up_proj"),
    *_affine("gpt_neox.layers.{i}.mlp.dense_4h_to_h", "layers/down_proj"),
    *_norm("gpt_neox.final_layer_norm", "final_norm"),
)
_GPT2 = (
    Row("transformer.wte.weight", ("embed/embedding",), AS_IS),
    Row("transformer.wpe.weight", ("positions/embedding",), AS_IS),
    *_norm("transformer.h.{i}.ln_1", "layers/attention_norm"),
    *_norm("transformer.h.{i}.ln_2", "layers/mlp_norm"),
    *_packed_qkv("transformer.h.{i}.attn.c_attn", CONCATENATED, CONCATENATED),
    *_affine("transformer.h.{i}.attn.c_proj", "layers/o_proj", AS_IS),
    *_affine("transformer.h.{i}.mlp.c_fc", "layers/up_proj", AS_IS),
    *_affine("transformer.h.{i}.mlp.c_proj", "layers/down_proj", AS_IS),
    *_norm("transformer.ln_f", "final_norm"),
)
_ROBERTA = (
    Row("roberta.embeddings.word_embeddings.weight", ("embed/embedding",), AS_IS),
    Row("roberta.embeddings.position_embeddings.weight", ("positions/embedding",), AS_IS),
    Row("roberta.embeddings.token_type_embeddings.weight", ("token_types/embedding",), AS_IS),
    *_norm("roberta.embeddings.LayerNorm", "embed_norm"),
    *_affine("roberta.encoder.layer.{i}.attention.self.query", "layers/q_proj"),
    *_affine("roberta.encoder.layer.{i}.attention.self.key", "layers/k_proj"),
    *_affine("roberta.encoder.layer.{i}.attention.self.value", "layers/v_proj"),
    *_affine("roberta.encoder.layer.{i}.attention.output.dense", "layers/o_proj"),
    *_norm("roberta.encoder.layer.{i}.attention.output.LayerNorm", "layers/attention_norm"),
    *_affine("roberta.encoder.layer.{i}.intermediate.dense", "layers/up_proj"),
    *_affine("roberta.encoder.layer.{i}.output.dense", "layers/down_proj"),
    *_norm("roberta.encoder.layer.{i}.output.LayerNorm", "layers/mlp_norm"),
)

BODIES: dict[str, tuple[Row, ...]] = {
    "llama": _LLAMA,
    "gpt_neox": _GPT_NEOX,
    "gpt2": _GPT2,
    "roberta": _ROBERTA,
}
"""`ModelConfig.family` -> all tensors except the head."""

PREFIXES = {
    "llama": "model.",
    "gpt_neox": "gpt_neox.",
    "gpt2": "transformer.",
    "roberta": "roberta.",
}
"""`ModelConfig.family` -> prefix of the names above; files of the body alone lack it."""

_SCORE = (Row("score.weight", ("score/kernel",), TRANSPOSED),)
CRITIC_ROWS = (*_affine("dense", "score/dense"), *_affine("out_proj", "score/out"))
"""The tensors of a critic's head, which is stored in a separate file."""


class Architecture(NamedTuple):
    """A class of transformers: a body of ``family`` and the tensors of its head.

    ``head`` tensors are required; tensors matching the regex ``ignored`` are optional and unused.
    """

    family: str
    head: tuple[Row, ...] = ()
    ignored: str = ""


ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(
        "llama", (Row("lm_head.weight", ("head/kernel",), TRANSPOSED),)
    ),
    "LlamaForSequenceClassification": Architecture("llama", _SCORE),
    "GPTNeoXForCausalLM": Architecture(
        "gpt_neox", (Row("embed_out.weight", ("head/kernel",), TRANSPOSED),)
    ),
    "GPTNeoXForSequenceClassification": Architecture("gpt_neox", _SCORE),
    "GPTNeoXRewardModel": Architecture("gpt_neox", _affine("out_proj", "score")),
    "GPT2LMHeadModel": Architecture("gpt2", (Row("lm_head.weight", ("head/kernel",), TRANSPOSED),)),
    "GPT2ForSequenceClassification": Architecture("gpt2", _SCORE, ignored=r"lm_head\.weight"),
    "GPT2ForOC_S_offensive": Architecture(
        "gpt2", _affine("off_classifier", "score"), ignored=r"lm_head\.weight"
    ),
    "RobertaModel": Architecture("roberta", _affine("pooler.dense", "pooler")),
    "RobertaForSequenceClassification": Architecture(
        "roberta",
        (*_affine("classifier.dense", "score/dense"), *_affine("classifier.out_proj", "score/out")),
        ignored=r"roberta\.pooler\.dense\.(weight|bias)",
    ),
}
"""Class name in config.json's ``architectures`` -> the tensors in its files."""

GGUF: dict[str, tuple[Row, ...]] = {
    "llama": (
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
}
"""`ModelConfig.family` -> all tensors of a GGUF file, with llama.cpp's order of query rows."""

BUFFERS = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|attn\.(bias|masked_bias)|attention\.(bias|masked_bias)"
    r"|embeddings\.position_ids)"
)
"""Tensors of old exports that the config determines; they are not loaded."""
