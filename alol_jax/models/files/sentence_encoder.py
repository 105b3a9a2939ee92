"""Loading sentence encoders: directories of sentence-transformers with a BERT or RoBERTa.

Beside the model, such a directory has

* ``modules.json``: Transformer, Pooling and, possibly, Normalize;
* ``<path of Pooling>/config.json``: which tokens are pooled, and how;
* ``sentence_bert_config.json``: the most tokens that are read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from alol_jax.errors import UserError
from alol_jax.models.attention import Attention
from alol_jax.models.families.fields import Fields
from alol_jax.models.files.convert import Checkpoint, ShardingFn, open_checkpoint
from alol_jax.models.files.hf_reader import json_object
from alol_jax.models.transformer import Transformer, param_shapes
from alol_jax.types import Params

# the body is read, the rest is not
CLASSES = ("BertModel", "BertForMaskedLM", "RobertaModel", "RobertaForMaskedLM")
MODULES = (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))
MEAN = "pooling_mode_mean_tokens"


@dataclasses.dataclass(frozen=True, eq=False)
class StoredEncoder:
    """An opened sentence encoder; its weights are loaded at first use and then kept.

    A sentence is the mean of its tokens' hidden states, over all real tokens, special ones too.

    Attributes:
        body: the transformer.
        checkpoint: the source of its weights.
        sharding: (path, shape) of a parameter -> its sharding.
        limit: the most tokens of a text.
    """

    body: Transformer
    checkpoint: Checkpoint
    sharding: ShardingFn
    limit: int

    @functools.cached_property
    def params(self) -> Params:
        """The parameters, in the dtype of the body."""
        return self.checkpoint.load(self.body.dtype, self.sharding)


def open_encoder(
    path: str,
    *,
    dtype: jax.typing.DTypeLike,
    sharding: ShardingFn,
    attention: Attention,
) -> StoredEncoder:
    """Open a sentence encoder, without reading weights.

    Args:
      path: a directory or a hub name, as for `convert.open_checkpoint`.
      dtype: dtype of the parameters and activations.
      sharding: the sharding of each parameter.
      attention: the attention of the body.

    Raises:
      UserError: the checkpoint cannot be read exactly, is no BERT or RoBERTa, or
        something else than the mean over tokens.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.architecture not in CLASSES:
        raise UserError(
            f"{path}: {checkpoint.architecture} is not implemented as a sentence encoder "
            f"(only {', '.join(CLASSES)} are): choose another checkpoint"
        )
    config, folder = checkpoint.config, checkpoint.files[0].parent
    _check_pooling(folder / _pooling_path(folder / "modules.json"), config.width)
    ours = param_shapes(config)
    body = tuple(row for row in checkpoint.rows if set(row.paths) <= ours.keys())
    return StoredEncoder(
        Transformer(config, None, jnp.dtype(dtype), "none", attention),
        dataclasses.replace(checkpoint, rows=body),
        sharding,
        _limit(folder / "sentence_bert_config.json", config.max_positions),
    )


def _pooling_path(file: Path) -> str:
    """Check the modules, and return the path of the pooling's config."""
    if not file.is_file():
        raise UserError(
            f"{file} is missing: a sentence encoder is a directory of sentence-transformers"
        )
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
        found = [(str(one["type"]).rpartition(".")[2], str(one["path"])) for one in modules]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is not a list of modules: download it again") from error
    if tuple(kind for kind, _ in found) not in MODULES or found[0][1]:
        shown = ", ".join(f"{kind} in {path!r}" for kind, path in found) or "none"
        raise UserError(
            f"{file}: modules {shown} are not implemented (only Transformer in '', Pooling and "
            "Normalize are): choose another checkpoint"
        )
    return f"{found[1][1]}/config.json"


def _check_pooling(file: Path, width: int) -> None:
    """Check that a text is the mean over its tokens."""
    fields = Fields(json_object(file), str(file))
    modes: dict[str, Any] = {
        name: value for name, value in fields.values.items() if name.startswith("pooling_mode_")
    }
    chosen = [name for name, value in modes.items() if value is not False]
    if chosen != [MEAN] or modes[MEAN] is not True:
        raise UserError(
            f"{file}: {', '.join(chosen) or 'no pooling'} is not implemented (only {MEAN} is): "
            "choose another checkpoint"
        )
    found = fields.size("word_embedding_dimension")
    if found != width:
        raise UserError(
            f"{file}: word_embedding_dimension = {found}, but the model's width is {width}: "
            "download it again"
        )


def _limit(file: Path, positions: int) -> int:
    """Return the most tokens of a text."""
    fields = Fields(json_object(file), str(file))
    if fields.flag("do_lower_case", False):
        raise fields.unimplemented("do_lower_case", True, "false")
    limit = fields.size("max_seq_length", positions)
    if not 1 <= limit <= positions:
        raise UserError(
            f"{file}: max_seq_length = {limit}, but the model has {positions} positions"
        )
    return limit
