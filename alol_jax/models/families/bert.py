"""BERT, as a classifier or a sentence encoder; RoBERTa reads its tensors and fields, too."""

from __future__ import annotations

from typing import Any

from alol_jax.models.config import UNGATED, EmbeddingConfig, ModelConfig
from alol_jax.models.families.family import SIZES, Architecture, Family, hf_activation, sizes
from alol_jax.models.families.fields import ACTIVATIONS, Fields
from alol_jax.models.families.layouts import AS_IS, Row, affine, layer_norm

READS = SIZES | {"layer_norm_eps", "hidden_act", "type_vocab_size"}
"""The fields of config.json that `read_encoder` uses."""

IMPLEMENTED: dict[str, tuple[Any, ...]] = {"position_embedding_type": ("absolute", None)}


def read_encoder(fields: Fields, family: str, offset: int) -> ModelConfig:
    """Read the config.json of an encoder.

    Args:
        offset: row of the first position's embedding.
    """
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return ModelConfig(
        family=family,
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
        biases=UNGATED,
        residual="post",
        causal=False,
        embedding=EmbeddingConfig(
            position_offset=offset, token_types=fields.size("type_vocab_size", 2)
        ),
    )


def write_encoder(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of config.json that `read_encoder` reads."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions + config.embedding.position_offset,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": hf_activation(config),
        "type_vocab_size": config.embedding.token_types,
    }


def encoder_body(name: str) -> tuple[Row, ...]:
    """Return the tensors of an encoder whose body is called ``name``."""
    embeddings, layer = f"{name}.embeddings", f"{name}.encoder.layer.{{i}}"
    return (
        Row(f"{embeddings}.word_embeddings.weight", ("embed/embedding",), AS_IS),
        Row(f"{embeddings}.position_embeddings.weight", ("positions/embedding",), AS_IS),
        Row(f"{embeddings}.token_type_embeddings.weight", ("token_types/embedding",), AS_IS),
        *layer_norm(f"{embeddings}.LayerNorm", "embed_norm"),
        *affine(f"{layer}.attention.self.query", "layers/q_proj"),
        *affine(f"{layer}.attention.self.key", "layers/k_proj"),
        *affine(f"{layer}.attention.self.value", "layers/v_proj"),
        *affine(f"{layer}.attention.output.dense", "layers/o_proj"),
        *layer_norm(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *affine(f"{layer}.intermediate.dense", "layers/up_proj"),
        *affine(f"{layer}.output.dense", "layers/down_proj"),
        *layer_norm(f"{layer}.output.LayerNorm", "layers/mlp_norm"),
    )


_POOLER = r"(bert\.)?pooler\.dense\.(weight|bias)"

BERT = Family(
    name="bert",
    reads=READS,
    implemented=IMPLEMENTED,
    read=lambda fields: read_encoder(fields, "bert", 0),
    write=write_encoder,
    body=encoder_body("bert"),
    prefix="bert.",
    architectures={
        "BertModel": Architecture("bert", ignored=_POOLER),
        # of sentence encoders, many of which were saved without the head that config.json names
        "BertForMaskedLM": Architecture("bert", ignored=rf"cls\..*|{_POOLER}"),
        "BertForSequenceClassification": Architecture(
            "bert",
            (*affine("bert.pooler.dense", "score/dense"), *affine("classifier", "score/out")),
        ),
    },
)
