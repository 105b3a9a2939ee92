"""What a model family is: its config.json, read and written, and the names of its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from alol_jax.models.config import ModelConfig
from alol_jax.models.families.fields import ACTIVATIONS, Fields
from alol_jax.models.families.gguf_form import GGUFForm
from alol_jax.models.families.layouts import Row, rows_of


class Architecture(NamedTuple):
    """A transformers class: a body of ``family`` and the tensors of its head.

    ``head`` tensors are required; ``ignored`` (a regex of whole names) are allowed.
    """

    family: str
    head: tuple[Row, ...] = ()
    ignored: str = ""


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: `ModelConfig.family`, and the ``model_type`` in config.json.
        reads: the fields of config.json that ``read`` uses.
        implemented: other fields that change the computation -> the implemented values.
        read: config.json -> ModelConfig.
        write: ModelConfig -> the fields of config.json.
        body: all tensors below the head.
        prefix: the start of the names in ``body``; the file of a bare body lacks it.
        architectures: ``architectures`` in config.json -> its tensors.
        ignored: further fields of config.json that change nothing in this family.
        gguf: its form in GGUF files; None if they are neither read nor written.
        other_types: further values of ``model_type``.
    """

    name: str
    reads: frozenset[str]
    implemented: dict[str, tuple[Any, ...]]
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    body: tuple[Row, ...]
    prefix: str
    architectures: dict[str, Architecture]
    ignored: frozenset[str] = frozenset()
    gguf: GGUFForm | None = None
    other_types: tuple[str, ...] = ()

    def rows(self, config: ModelConfig) -> tuple[Row, ...]:
        """Return the tensors of ``body`` that a model of ``config`` has: some have no biases."""
        return rows_of(self.body, config)


SIZES = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "max_position_embeddings tie_word_embeddings".split()
)
"""Fields of config.json that most families have."""


def sizes(fields: Fields, width: int, heads: int) -> dict[str, int]:
    return {
        "vocab_size": fields.size("vocab_size"),
        "width": width,
        "heads": heads,
        "kv_heads": heads,
        "head_width": width // max(heads, 1),
    }


def hf_activation(config: ModelConfig) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
