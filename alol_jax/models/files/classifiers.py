"""Classifiers and reward models from checkpoints: which head a class has, and reading it."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alol_jax.models.attention import Attention
from alol_jax.models.classifiers import PROBLEMS, Classifier
from alol_jax.models.files.convert import Checkpoint, TokenizerFiles, Where, open_checkpoint
from alol_jax.models.files.hf_fields import Fields
from alol_jax.models.files.hf_reader import CRITIC_HEAD, TensorFiles, refuse_pickle
from alol_jax.models.files.weight_names import CRITIC_ROWS, Row
from alol_jax.models.transformer import Transformer
from alol_jax.types import Params, UserError


class Kind(NamedTuple):
    """What an architecture says about its head; None where config.json says it."""

    head: str  # a key of classifiers.HEADS
    pooling: str | None  # a key of classifiers.POOLINGS
    labels: tuple[str, ...] | None = None
    problem: str | None = None  # a key of classifiers.PROBLEMS
    at_ends: bool = False  # pools over the ends of utterances only
    beside: bool = False  # the head is in a file of its own


KINDS: dict[str, Kind] = {
    "LlamaForSequenceClassification": Kind("linear", "last"),
    "GPTNeoXForSequenceClassification": Kind("linear", "last"),
    "GPT2ForSequenceClassification": Kind("linear", "last"),
    "RobertaForSequenceClassification": Kind("tanh", "first"),
    # OpenAssistant's reward models
    "GPTNeoXRewardModel": Kind("affine", None, ("reward",)),
    # ToxiChat's classifier of utterances (Baheti et al. 2021, arXiv 2108.11830)
    "GPT2ForOC_S_offensive": Kind(
        "affine", "last", ("safe", "offensive"), "single_label_classification", at_ends=True
    ),
    # the critic of symbolic knowledge distillation (West et al. 2022, arXiv 2110.07178)
    "RobertaModel": Kind("critic", "first", ("valid",), "multi_label_classification", beside=True),
}
"""A key of `weight_names.ARCHITECTURES` -> its head."""

_REWARD_POOLINGS = ("last", "mean")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredClassifier:
    """An opened classifier; its weights are read at first use and then kept.

    Attributes:
        classifier: the pure functions.
        checkpoint: where the weights come from; its fingerprint covers a head in a file of its own.
        where: (path, shape) of a parameter -> where it lives.
    """

    classifier: Classifier
    checkpoint: Checkpoint
    where: Where

    @property
    def tokenizer(self) -> TokenizerFiles:
        """What the classifier's tokenizer is made from."""
        return self.checkpoint.tokenizer

    @functools.cached_property
    def params(self) -> Params:
        """The body in its dtype and the head in float32, as stored."""
        rest = tuple(row for row in self.checkpoint.rows if row not in self.head_rows)
        body = dataclasses.replace(self.checkpoint, rows=rest)
        head = dataclasses.replace(self.checkpoint, rows=self.head_rows)
        dtype = self.classifier.body.dtype
        return body.load(dtype, self.where) | head.load(jnp.float32, self.where)

    @property
    def head_rows(self) -> tuple[Row, ...]:
        """The stored tensors of the head."""
        head = self.classifier.head_shapes.keys()
        return tuple(row for row in self.checkpoint.rows if set(row.paths) <= head)


def open_classifier(
    path: str,
    *,
    dtype: jax.typing.DTypeLike,
    where: Where,
    attention: Attention,
) -> StoredClassifier:
    """Opens a classifier or reward model in Hugging Face form; no weight is read yet.

    A RobertaModel is one where its head lies beside it in ``custom_roberta_classification_head
    .safetensors`` (dense.weight [512, D], dense.bias, out_proj.weight [1, 512], out_proj.bias).

    Args:
      path: a directory or a hub name, as `convert.open_checkpoint` takes it.
      dtype: of the body's parameters and activations; the head is float32.
      where: the sharding of each parameter.
      attention: the kernel of the body.

    Raises:
      UserError: not readable exactly, no classifier, a head of another shape than config.json
        says, or a pooling, a problem type or labels that are not implemented.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.architecture not in KINDS:
        raise UserError(
            f"{path}: {checkpoint.architecture} has no classification head "
            f"(only {', '.join(KINDS)} have): choose another checkpoint"
        )
    kind = KINDS[checkpoint.architecture]
    if kind.beside:
        checkpoint = _with_head_beside(checkpoint)
    file = checkpoint.files[0]
    fields = Fields(json.loads(file.read_text(encoding="utf-8")), str(file))
    labels = kind.labels or _labels(fields)
    classifier = Classifier(
        body=Transformer(checkpoint.config, None, jnp.dtype(dtype), False, attention),
        head=kind.head,
        pooling=kind.pooling or _pooling(fields),
        labels=labels,
        problem=kind.problem or _problem(fields, len(labels)),
        end=_end(fields, checkpoint) if kind.at_ends else None,
    )
    stored = StoredClassifier(classifier, checkpoint, where)
    _check_head(stored)
    return stored


def _with_head_beside(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of a body with the head that lies beside it."""
    file = checkpoint.files[0].with_name(CRITIC_HEAD)
    pickled = file.with_suffix(".pt")
    if not file.is_file() and pickled.is_file():
        refuse_pickle(pickled)
    if not file.is_file():
        raise UserError(
            f"{checkpoint.where}: a {checkpoint.architecture} has no classification head of its "
            f"own: put {CRITIC_HEAD} into the directory, or choose another checkpoint"
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
    """The names of the logits, in order; transformers writes none where there are two."""
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
    """A reward model's, under the names that its config.json has for them."""
    pooling = fields.values.get("pooling") or "last"
    if pooling not in _REWARD_POOLINGS:
        raise fields.unimplemented("pooling", pooling, ", ".join(_REWARD_POOLINGS))
    return pooling


def _problem(fields: Fields, labels: int) -> str:
    """How logits become scores: as transformers' pipeline does where the file does not say it."""
    absent = "single_label_classification" if labels > 1 else "multi_label_classification"
    problem = fields.values.get("problem_type") or absent
    if problem not in PROBLEMS:
        raise fields.unimplemented("problem_type", problem, ", ".join(PROBLEMS))
    if problem == "single_label_classification" and labels == 1:
        raise UserError(
            f"{fields.where}: problem_type = {problem!r} has no meaning for one label: remove it"
        )
    return problem


def _end(fields: Fields, checkpoint: Checkpoint) -> int:
    """The token that ends an utterance."""
    end = fields.size("eos_token_id", 50_256)
    if not 0 <= end < checkpoint.config.vocab_size:
        raise UserError(
            f"{fields.where}: eos_token_id = {end} is no token of {checkpoint.config.vocab_size}"
        )
    return end


def _check_head(stored: StoredClassifier) -> None:
    """Raises UserError unless the stored tensors of the head have the shapes it says."""
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
