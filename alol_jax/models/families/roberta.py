"""RoBERTa, as a classifier or a sentence encoder: BERT with other positions and heads."""

from __future__ import annotations

from typing import Any

from alol_jax.models.config import ModelConfig
from alol_jax.models.families import bert
from alol_jax.models.families.family import Architecture, Family
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.layouts import affine


def _read(fields: Fields) -> ModelConfig:
    offset = fields.size("pad_token_id", 1) + 1  # positions start after the padding id
    return bert.read_encoder(fields, "roberta", offset)


def _write(config: ModelConfig) -> dict[str, Any]:
    return bert.write_encoder(config) | {"pad_token_id": config.embedding.position_offset - 1}


CRITIC_ROWS = (*affine("dense", "score/dense"), *affine("out_proj", "score/out"))
"""The tensors of a critic's head, which is stored in a file beside its RobertaModel."""


ROBERTA = Family(
    name="roberta",
    reads=bert.READS,
    implemented=bert.IMPLEMENTED,
    read=_read,
    write=_write,
    body=bert.encoder_body("roberta"),
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
