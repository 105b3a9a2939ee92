"""Sequence classifiers and reward models as scorers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.devices.sharding import param_sharding
from alol_jax.errors import UserError
from alol_jax.models.attention import Attention, choose_kernel
from alol_jax.models.classifiers import Classifier
from alol_jax.models.config import ModelConfig
from alol_jax.models.files.classifiers import StoredClassifier, open_classifier
from alol_jax.models.grid_sizes import platform_of
from alol_jax.models.heads import slot_mask
from alol_jax.models.language_model import DTYPES
from alol_jax.models.transformer import Transformer
from alol_jax.rewards.forms import Form, form_of, pair, reader
from alol_jax.rewards.packed import read_texts
from alol_jax.text.long_texts import UNLIMITED
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokenizer_files import from_directory
from alol_jax.types import Exchange, Grid, Params, Watch

LOGIT, SIGMOID = "logit", "sigmoid"
"""``score`` of a model with a single logit; any other is a label, scored by its probability."""


def label_of(labels: Sequence[str], score: str) -> int | None:
    """Return the place of a label, given by name or by number; None if there is none."""
    if score in labels:
        return labels.index(score)
    return int(score) if score.isdecimal() and int(score) < len(labels) else None


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifierScorer:
    """Scores responses with a sequence classifier.

    Attributes:
        path: its path in the config.
        stored: the opened classifier.
        tokenizer: the classifier's tokenizer.
        form: builds the token ids that it reads (`forms`).
        options: ``reads``, ``score``, ``max_tokens``, ``dtype``: what a score depends on.
        read: from the task: prompt, response -> exchange.
        mesh: the device mesh.
    """

    path: str
    stored: StoredClassifier
    tokenizer: Tokenizer
    form: Form
    options: dict[str, Any]
    read: Callable[[str, str], Exchange]
    mesh: Mesh

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the options, weights and tokenizer. Reads all files."""
        return self.options | {
            "weights": self.stored.checkpoint.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint(),
        }

    @property
    def commits(self) -> dict[str, str]:
        """The commit that was read, if the model is on the hub."""
        commit = self.stored.checkpoint.commit
        return {self.path: commit} if commit else {}

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest score; infinite for a logit."""
        return (-np.inf, np.inf) if self.options["score"] == LOGIT else (0.0, 1.0)

    @property
    def _end(self) -> int | None:
        """The id after which a pair's second text begins, if that has a token type of its own."""
        types = self.stored.classifier.body.config.embedding.token_types
        typed = self.form is pair and 0 < self.tokenizer.second_type < types
        return self.tokenizer.eos_id if typed else None

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Score responses: f64[rows] in `bounds`, or NaN where the model gives NaN.

        Raises:
            UserError: the form cannot have a row.
        """
        rows = self._rows(prompts, responses, self.options["max_tokens"])
        score = _scorer(self.stored.classifier, self.options["score"], self._end)
        return read_texts(
            functools.partial(score, self.stored.params),
            rows,
            config=self.stored.classifier.body.config,
            mesh=self.mesh,
            pad_id=self.tokenizer.pad_id,
            watch=Watch(f"reward model {self.path}"),
        )

    def notes(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[str, ...]:
        """Count the texts that are cut: at most one line."""
        limit = self.options["max_tokens"]
        whole = self._rows(prompts, responses, UNLIMITED)
        cut = sum(len(ids) > limit for ids in whole)
        lines = (f"{cut} of {len(whole)} texts have more than {limit} tokens and are cut.",)
        return lines if cut else ()

    def _rows(
        self, prompts: Sequence[str], responses: Sequence[str], limit: int
    ) -> list[tuple[int, ...]]:
        return [
            self.form(self.tokenizer, self.read(prompt, response), limit)
            for prompt, response in zip(prompts, responses, strict=True)
        ]


@functools.lru_cache(maxsize=16)
def _scorer(
    classifier: Classifier, score: str, end: int | None
) -> Callable[[Params, Grid], jax.Array]:
    """Return a jitted (params, grid of texts) -> f32[rows, S]; for ``end`` see `_types`."""

    @jax.jit
    def scorer(params, grid):
        types = None if end is None else _types(grid, end)
        read = (grid.ids, grid.segment, grid.position, slot_mask(grid), types)
        logits = classifier(params, *read)
        if score == LOGIT:
            return logits[..., 0]
        if score == SIGMOID:
            return jax.nn.sigmoid(logits[..., 0])
        return classifier.scores(logits)[..., label_of(classifier.labels, score)]

    return scorer


def _types(grid: Grid, end: int) -> jax.Array:
    """Return i32[rows, T], 1 on the tokens of a text after its first ``end``, else 0."""
    ends = (grid.ids == end).astype(jnp.int32)
    before = jnp.cumsum(ends, axis=1) - ends  # in the row, so minus those of the texts before
    start = jax.lax.cummax(jnp.where(grid.position == 0, before, 0), axis=1)
    return (before > start).astype(jnp.int32)


def open_scorer(
    wanted: ConfigDict,
    where: str,
    read: Callable[[str, str], Exchange],
    mesh: Mesh,
) -> ClassifierScorer:
    """Open the classifier at ``wanted.path`` as a scorer.

    Args:
        wanted: one entry of ``config.reward_models``.
        where: its key in the config, for messages.
        read: prompt, response -> exchange.

    Raises:
        UserError: the classifier cannot be read, or the options do not fit it.
    """
    check_dtype(wanted.dtype, where)
    form = form_of(wanted.reads, f"{where}.reads")
    place = functools.partial(param_sharding, mesh=mesh)
    xla = Attention("xla", mesh)
    stored = open_classifier(wanted.path, dtype=wanted.dtype, sharding=place, attention=xla)
    body = stored.classifier.body
    check_limit(wanted.max_tokens, where, body.config)
    body = dataclasses.replace(
        body,
        config=body.config.for_texts(wanted.max_tokens),
        attention=fused_attention(body, wanted, mesh),
    )
    stored = dataclasses.replace(
        stored, classifier=dataclasses.replace(stored.classifier, body=body)
    )
    _check_score(stored.classifier, wanted, where)
    tokenizer = from_directory(stored.tokenizer.directory).for_vocab_size(body.config.vocab_size)
    tokenizer = reader(tokenizer, form, f"{where}.reads")
    options = {name: wanted[name] for name in ("reads", "score", "max_tokens", "dtype")}
    return ClassifierScorer(wanted.path, stored, tokenizer, form, options, read, mesh)


def check_dtype(dtype: str, where: str) -> None:
    """Raise UserError unless a model of ``config.reward_models`` can have this dtype."""
    if dtype not in DTYPES:
        raise UserError.unknown(f"{where}.dtype: no dtype {dtype!r}", dtype, DTYPES)


def check_limit(max_tokens: int, where: str, config: ModelConfig) -> None:
    """Raise UserError unless the model has a position for each of ``max_tokens`` tokens."""
    if not 1 <= max_tokens <= config.longest:
        raise UserError(
            f"{where}.max_tokens={max_tokens}: the model has {config.longest} positions"
        )


def fused_attention(body: Transformer, wanted: ConfigDict, mesh: Mesh) -> Attention:
    """Return the fused kernel of the platform if it can run, else plain XLA."""
    device = mesh.devices.flat[0]
    kernel, _ = choose_kernel(
        "auto",
        platform=device.platform,
        capability=str(getattr(device, "compute_capability", "")),
        dtype=wanted.dtype,
        head_width=body.config.head_width,
        widths=(platform_of(mesh).least,),
        cap=body.config.attention.cap,
    )
    return Attention(kernel, mesh)


def _check_score(classifier: Classifier, wanted: ConfigDict, where: str) -> None:
    """Check ``score``: a single logit or its sigmoid, or the probability of a label."""
    labels, single = classifier.labels, (SIGMOID, LOGIT)
    if wanted.score in single and len(labels) != 1:
        raise UserError(
            f"{where}.score: the model has the labels {', '.join(labels)}: name the one whose "
            "probability is the reward"
        )
    if wanted.score not in single and label_of(labels, wanted.score) is None:
        raise UserError.unknown(
            f"{where}.score: the model has no label {wanted.score!r}",
            wanted.score,
            (*single, *labels),
        )
    if wanted.score not in single and classifier.problem == "regression":
        raise UserError(
            f"{where}.score={wanted.score!r}: the model is a regression, whose numbers are no "
            f"probabilities: use {LOGIT!r}, or {SIGMOID!r} for a score from 0 to 1"
        )
