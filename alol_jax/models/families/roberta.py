"""RoBERTa, as a classifier or a sentence encoder."""

from __future__ import annotations

from typing import Any

from alol_jax.models.config import ModelConfig
from alol_jax.models.families.family import SIZES, Architecture, Family, hf_activation, sizes
from alol_jax.models.families.fields import ACTIVATIONS, Fields
from alol_jax.models.families.layouts import AS_IS, Row, affine, layer_norm


def _read(fields: Fields) -> ModelConfig:
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    offset = fields.size("pad_token_id", 1) + 1  # positions start after the padding id
    return ModelConfig(
        family="roberta",
        **sizes(fields, width, heads),
        layers=fields.size("num_hidden_layers"),
        mlp_width=fields.size("intermediate_size"),
        max_positions=fields.size("max_position_embeddings") - offset,
        norm_epsilon=fields.number("layer_norm_eps", 1e-12),
        tied_embeddings=True,  # an encoder is used without a head
        rotary=None,
        norm="layer",
        activation=fields.one_of("hidden_act", ACTIVATIONS, "gelu"),
        gated_mlp=False,
        biases=True,
        post_norm=True,
        causal=False,
        position_offset=offset,
        token_types=fields.size("type_vocab_size", 2),
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions + config.position_offset,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": hf_activation(config),
        "type_vocab_size": config.token_types,
        "pad_token_id": config.position_offset - 1,
    }


_BODY = (
    Row("roberta.embeddings.word_embeddings.weight", ("embed/embedding",), AS_IS),
    Row("roberta.embeddings.position_embeddings.weight", ("positions/embedding",), AS_IS),
    Row("roberta.embeddings.token_type_embeddings.weight", ("token_types/embedding",), AS_IS),
    *layer_norm("roberta.embeddings.LayerNorm", "embed_norm"),
    *affine("roberta.encoder.layer.{i}.attention.self.query", "layers/q_proj"),
    *affine("roberta.encoder.layer.{i}.attention.self.key", "layers/k_proj"),
    *affine("roberta.encoder.layer.{i}.attention.self.value", "layers/v_proj"),
    *affine("roberta.encoder.layer.{i}.attention.output.dense", "layers/o_proj"),
    *layer_norm("roberta.encoder.layer.{i}.attention.output.LayerNorm", "layers/attention_norm"),
    *affine("roberta.encoder.layer.{i}.intermediate.dense", "layers/up_proj"),
    *affine("roberta.encoder.layer.{i}.output.dense", "layers/down_proj"),
    *layer_norm("roberta.encoder.layer.{i}.output.LayerNorm", "layers/mlp_norm"),
)

CRITIC_ROWS = (*affine("dense", "score/dense"), *affine("out_proj", "score/out"))
"""The tensors of a critic's head, which is stored in a file beside its RobertaModel."""


ROBERTA = Family(
    name="roberta",
    reads=SIZES | {"layer_norm_eps", "hidden_act", "type_vocab_size"},
    implemented={"position_embedding_type": ("absolute", None)},
    read=_read,
    write=_write,
    body=_BODY,
    prefix="roberta.",
    architectures={
        "RobertaModel": Architecture("roberta", affine("pooler.dense", "pooler")),
        # of sentence encoders, many of which were saved without the head that config.json names
        "RobertaForMaskedLM": Architecture(
            "roberta", ignored=r"lm_head\..*|(roberta\.)?pooler\.dense\.(weight|bias)"
        ),
        "RobertaForSequenceClassification": Architecture(
            "roberta",
            (
                *affine("classifier.dense", "score/dense"),
                *affine("classifier.out_proj", "score/out"),
            ),
            ignored=r"roberta\.pooler\.dense\.(weight|bias)",
        ),
    },
)
