"""The table of model families, and what follows from it."""

from __future__ import annotations

import re

from alol_jax.models.families.bert import BERT
from alol_jax.models.families.family import Architecture, Family
from alol_jax.models.families.gemma import GEMMA2, GEMMA3
from alol_jax.models.families.gguf_form import GGUFForm
from alol_jax.models.families.gpt2 import GPT2
from alol_jax.models.families.gpt_neox import GPT_NEOX
from alol_jax.models.families.llama import LLAMA
from alol_jax.models.families.mistral import MISTRAL
from alol_jax.models.families.olmo2 import OLMO2
from alol_jax.models.families.phi3 import PHI3
from alol_jax.models.families.qwen import QWEN2, QWEN3
from alol_jax.models.families.roberta import ROBERTA

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, OLMO2),
        *(GPT_NEOX, GPT2, BERT, ROBERTA),
    )
}
"""`ModelConfig.family` -> the family."""

MODEL_TYPES: dict[str, Family] = {
    kind: family for family in FAMILIES.values() for kind in (family.name, *family.other_types)
}
"""``model_type`` in config.json -> the family."""

ARCHITECTURES: dict[str, Architecture] = {
    name: architecture
    for family in FAMILIES.values()
    for name, architecture in family.architectures.items()
}
"""``architectures`` in config.json -> its tensors."""

GGUF_FORMS: dict[str, GGUFForm] = {
    family.gguf.arch: family.gguf for family in FAMILIES.values() if family.gguf
}
"""``general.architecture`` of a GGUF file -> its form."""


def causal_lm(family: str) -> str:
    """Return the class of transformers that is a family's language model."""
    return next(
        name
        for name, kind in FAMILIES[family].architectures.items()
        if [row.paths for row in kind.head] == [("head/kernel",)]
    )


BUFFERS = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|attn\.(bias|masked_bias)|attention\.(bias|masked_bias)"
    r"|embeddings\.position_ids)"
)
"""Tensors of old exports that the config determines; they are not loaded."""
