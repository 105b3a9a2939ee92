"""Loading classifiers and reward models from checkpoints, with the head of each architecture."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alol_jax.errors import UserError
from alol_jax.models.attention import Attention
from alol_jax.models.classifiers import PROBLEMS, Classifier
from alol_jax.models.families.fields import Fields
from alol_jax.models.families.layouts import Row
from alol_jax.models.families.roberta import CRITIC_ROWS
from alol_jax.models.files.convert import Checkpoint, ShardingFn, TokenizerFiles, open_checkpoint
from alol_jax.models.files.hf_reader import CRITIC_HEADS, TensorFiles, first_file
from alol_jax.models.transformer import Transformer
from alol_jax.types import Params


class Kind(NamedTuple):
    """The head of an architecture; None where config.json decides."""

    head: str  # a key of classifiers.HEADS
    pooling: str | None  # a key of classifiers.POOLINGS
    labels: tuple[str, ...] | None = None
    problem: str | None = None  # a key of classifiers.PROBLEMS
    at_ends: bool = False  # pool only over the ends of utterances
    own_file: bool = False  # the head is stored in a separate file


KINDS: dict[str, Kind] = {
    "LlamaForSequenceClassification": Kind("linear", "last"),
    "MistralForSequenceClassification": Kind("linear", "last"),
    "Qwen2ForSequenceClassification": Kind("linear", "last"),
    "Qwen3ForSequenceClassification": Kind("linear", "last"),
    "Gemma2ForSequenceClassification": Kind("linear", "last"),
    "Gemma3TextForSequenceClassification": Kind("linear", "last"),
    "Phi3ForSequenceClassification": Kind("linear", "last"),
    "GPTNeoXForSequenceClassification": Kind("linear", "last"),
    "GPT2ForSequenceClassification": Kind("linear", "last"),
    "BertForSequenceClassification": Kind("tanh", "first"),
    "RobertaForSequenceClassification": Kind("tanh", "first"),
    # OpenAssistant's reward models
    "GPTNeoXRewardModel": Kind("affine", None, ("reward",)),
    # the utterance classifier of ToxiChat (Baheti et al. 2021, arXiv 2108.11830)
    "GPT2ForOC_S_offensive": Kind(
        "affine", "last", ("safe", "offensive"), "single_label_classification", at_ends=True
    ),
    # the critic of symbolic knowledge distillation (West et al. 2022, arXiv 2110.07178)
    "RobertaModel": Kind(
        "critic", "first", ("valid",), "multi_label_classification", own_file=True
    ),
}
"""A key of `families.registry.ARCHITECTURES` -> its head."""

_REWARD_POOLINGS = ("last", "mean")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredClassifier:
    """An opened classifier; its weights are loaded at first use and then kept.

    Attributes:
        classifier: the pure functions.
        checkpoint: the source of the weights; its fingerprint covers a head in a separate file.
        sharding: (path, shape) of a parameter -> its sharding.
    """

    classifier: Classifier
    checkpoint: Checkpoint
    sharding: ShardingFn

    @property
    def tokenizer(self) -> TokenizerFiles:
        """The files of the classifier's tokenizer."""
        return self.checkpoint.tokenizer

    @functools.cached_property
    def params(self) -> Params:
        """The parameters: the body in its dtype, the head in float32."""
        rest = tuple(row for row in self.checkpoint.rows if row not in self.head_rows)
        body = dataclasses.replace(self.checkpoint, rows=rest)
        head = dataclasses.replace(self.checkpoint, rows=self.head_rows)
        model = self.classifier.body
        leaves = body.load(model.dtype, self.sharding, model.nf4)
        return leaves | head.load(jnp.float32, self.sharding, model.nf4)

    @property
    def head_rows(self) -> tuple[Row, ...]:
        """The stored tensors of the head."""
        head = self.classifier.head_shapes.keys()
        return tuple(row for row in self.checkpoint.rows if set(row.paths) <= head)


def open_classifier(
    path: str,
    *,
    dtype: jax.typing.DTypeLike,
    sharding: ShardingFn,
    attention: Attention,
) -> StoredClassifier:
    """Open a classifier or reward model in Hugging Face format, without reading weights.

    A RobertaModel is a classifier if its directory has its head in
    ``custom_roberta_classification_head.safetensors`` or ``.pt``: dense.weight [512, D],
    dense.bias, out_proj.weight [1, 512], out_proj.bias.

    Args:
      path: a directory or a hub name, as for `convert.open_checkpoint`.
      dtype: dtype of the body's parameters and activations; the head is float32.
      sharding: the sharding of each parameter.
      attention: the attention of the body.

    Raises:
      UserError: the checkpoint cannot be read exactly or is not a classifier, the head has another
        shape than config.json says, or the pooling, problem type or labels are not implemented.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.architecture not in KINDS:
        raise UserError(
            f"{path}: {checkpoint.architecture} has no classification head "
            f"(only {', '.join(KINDS)} have): choose another checkpoint"
        )
    kind = KINDS[checkpoint.architecture]
    if kind.own_file:
        checkpoint = _with_head_file(checkpoint)
    file = checkpoint.files[0]
    fields = Fields(json.loads(file.read_text(encoding="utf-8")), str(file))
    labels = kind.labels or _labels(fields)
    classifier = Classifier(
        body=Transformer(
            checkpoint.config, None, jnp.dtype(dtype), "none", attention, checkpoint.stored_nf4
        ),
        head=kind.head,
        pooling=kind.pooling or _pooling(fields),
        labels=labels,
        problem=kind.problem or _problem(fields, len(labels)),
        end=_end(fields, checkpoint) if kind.at_ends else None,
    )
    stored = StoredClassifier(classifier, checkpoint, sharding)
    _check_head(stored)
    return stored


def _with_head_file(checkpoint: Checkpoint) -> Checkpoint:
    """Add the head in its separate file to the checkpoint of a body."""
    file = first_file(checkpoint.files[0].parent, CRITIC_HEADS)
    if file is None:
        raise UserError(
            f"{checkpoint.where}: a {checkpoint.architecture} has no classification head of its "
            f"own: put {' or '.join(CRITIC_HEADS)} into the directory, or choose another checkpoint"
        )
    found, expected = set(TensorFiles((file,)).shapes), {row.name for row in CRITIC_ROWS}
    if found != expected:
        raise UserError(
            f"{file} holds {', '.join(sorted(found)) or 'nothing'}, "
            f"expected {', '.join(sorted(expected))}"
        )
    return dataclasses.replace(
        checkpoint,
        files=(*checkpoint.files, file),
        weights=TensorFiles((*checkpoint.files[1:], file)),
        rows=(*checkpoint.rows, *CRITIC_ROWS),
    )


def _labels(fields: Fields) -> tuple[str, ...]:
    """Return the names of the logits, in order; transformers writes none if there are two."""
    named = fields.values.get("id2label")
    if named is None:
        return tuple(f"LABEL_{i}" for i in range(fields.size("num_labels", 2)))
    count = len(named) if isinstance(named, dict) else 0
    if not count or set(named) != {str(i) for i in range(count)}:
        raise UserError(f"{fields.where}: id2label must name labels 0, 1, …, found {named!r}")
    if fields.size("num_labels", count) != count:
        raise UserError(
            f"{fields.where}: num_labels = {fields.values['num_labels']}, but id2label has {count} "
            "labels: remove the wrong one"
        )
    return tuple(str(named[str(i)]) for i in range(count))


def _pooling(fields: Fields) -> str:
    """Return the pooling of a reward model, which config.json calls by the same names."""
    pooling = fields.values.get("pooling") or "last"
    if pooling not in _REWARD_POOLINGS:
        raise fields.unimplemented("pooling", pooling, ", ".join(_REWARD_POOLINGS))
    return pooling


def _problem(fields: Fields, labels: int) -> str:
    """Return how logits become scores; the default is that of the transformers pipeline."""
    default = "single_label_classification" if labels > 1 else "multi_label_classification"
    problem = fields.values.get("problem_type") or default
    if problem not in PROBLEMS:
        raise fields.unimplemented("problem_type", problem, ", ".join(PROBLEMS))
    if problem == "single_label_classification" and labels == 1:
        raise UserError(
            f"{fields.where}: problem_type = {problem!r} has no meaning for one label: remove it"
        )
    return problem


def _end(fields: Fields, checkpoint: Checkpoint) -> int:
    """Return the token that ends an utterance."""
    end = fields.size("eos_token_id", 50_256)
    if not 0 <= end < checkpoint.config.vocab_size:
        raise UserError(
            f"{fields.where}: eos_token_id = {end} is not one of the "
            f"{checkpoint.config.vocab_size} tokens"
        )
    return end


def _check_head(stored: StoredClassifier) -> None:
    """Raise UserError unless the stored tensors of the head have the expected shapes."""
    checkpoint, classifier = stored.checkpoint, stored.classifier
    for row in stored.head_rows:
        expected = row.stored_shape(checkpoint.config, classifier.head_shapes)
        found = checkpoint.weights.shapes[row.name]
        if found != expected:
            raise UserError(
                f"{checkpoint.where}: {row.name} has the shape {found}, expected {expected} for "
                f"{len(classifier.labels)} labels ({', '.join(classifier.labels[:4])}) and a width "
                f"of {checkpoint.config.width}"
            )
