"""Cosines of texts, by a sentence encoder, as scorers.

    score = max(0, cos(e(a), e(b))) in [0, 1]        e(text) = mean of hidden states

* relevance: the prompt and the response, as `Exchange.pair` has them;
* similarity: the response and the gold responses of its prompt, of which the nearest counts.

An empty response scores 0. A scorer's component lies in [0, bound], so texts that point away from
each other score as unrelated ones do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.devices.sharding import param_sharding
from alol_jax.errors import UserError
from alol_jax.models.attention import Attention
from alol_jax.models.classifiers import pool_mean
from alol_jax.models.files.sentence_encoder import StoredEncoder, open_encoder
from alol_jax.models.heads import slot_mask
from alol_jax.models.transformer import Transformer
from alol_jax.rewards.classifier import check_dtype, check_limit, fused_attention
from alol_jax.rewards.forms import RELEVANCE
from alol_jax.rewards.gold import by_prompt
from alol_jax.rewards.packed import read_texts
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokenizer_files import from_directory
from alol_jax.types import Exchange, Gold, Grid, Params, Watch


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A sentence encoder: texts -> vectors.

    Attributes:
        path: its path in the config.
        stored: the opened encoder.
        tokenizer: the encoder's tokenizer.
        limit: the most tokens of a text, whose last ones are dropped.
        dtype: of the encoder.
        mesh: the device mesh.
    """

    path: str
    stored: StoredEncoder
    tokenizer: Tokenizer
    limit: int
    dtype: str
    mesh: Mesh

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the options, weights and tokenizer. Reads all files."""
        return {
            "max_tokens": self.limit,
            "dtype": self.dtype,
            "weights": self.stored.checkpoint.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint(),
        }

    def is_cut(self, text: str) -> bool:
        """Whether a text has more than ``limit`` tokens."""
        return len(self.tokenizer.encode_single(text, limit=self.limit + 1)) > self.limit

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return a vector of length 1 for every text: f64[texts, D]."""
        body = self.stored.body
        vectors = read_texts(
            functools.partial(_pooled(body), self.stored.params),
            [self.tokenizer.encode_single(text, limit=self.limit) for text in texts],
            shape=(body.config.width,),
            config=body.config,
            mesh=self.mesh,
            pad_id=self.tokenizer.pad_id,
            watch=Watch(f"reward model {self.path}"),
        )
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True, eq=False)
class CosineScorer:
    """Scores responses by their cosine with other texts.

    Attributes:
        encoder: embeds the texts.
        reads: relevance or similarity.
        where: its key in the config, for messages.
        read: from the task: prompt, response -> exchange.
        gold: prompt -> its gold responses; for similarity.
    """

    encoder: Encoder
    reads: str
    where: str
    read: Callable[[str, str], Exchange]
    gold: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def path(self) -> str:
        """The encoder's path in the config."""
        return self.encoder.path

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the options, weights and tokenizer. Reads all files."""
        return {"reads": self.reads} | self.encoder.fingerprint

    @property
    def commits(self) -> dict[str, str]:
        """The commit that was read, if the encoder is on the hub."""
        commit = self.encoder.stored.checkpoint.commit
        return {self.path: commit} if commit else {}

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest score."""
        return 0.0, 1.0

    @property
    def compares(self) -> bool:
        """Whether it reads gold responses."""
        return self.reads != RELEVANCE

    def with_gold(self, gold: Iterable[Gold]) -> CosineScorer:
        """Return the scorer with the gold responses that it compares with."""
        return dataclasses.replace(self, gold=by_prompt(gold)) if self.compares else self

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Score responses: f64[rows] in [0, 1], or NaN where the model gives NaN.

        Raises:
            UserError: similarity is asked for a prompt without a gold response.
        """
        rows = self._texts(prompts, responses)
        unique = dict.fromkeys(text for row in rows for text in row)
        units = self.encoder.embed(tuple(unique))
        place = {text: n for n, text in enumerate(unique)}
        owner = np.repeat(np.arange(len(rows)), [max(len(row) - 1, 0) for row in rows])
        own, others = (
            units[np.array([place[text] for text in texts], np.int64)]
            for texts in (
                [row[0] for row in rows for _ in row[1:]],
                [other for row in rows for other in row[1:]],
            )
        )
        scores = np.zeros(len(rows))
        np.maximum.at(scores, owner, np.sum(own * others, axis=1))
        return scores

    def notes(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[str, ...]:
        """Count the texts that are cut and the empty responses, a line each."""
        rows = self._texts(prompts, responses)
        unique = dict.fromkeys(text for row in rows for text in row)
        cut, empty = sum(map(self.encoder.is_cut, unique)), sum(not row for row in rows)
        lines = []
        if cut:
            limit = self.encoder.limit
            lines.append(f"{cut} of {len(unique)} texts have more than {limit} tokens and are cut.")
        if empty:
            lines.append(f"{empty} of {len(rows)} responses are empty and score 0.")
        return tuple(lines)

    def _texts(self, prompts: Sequence[str], responses: Sequence[str]) -> list[tuple[str, ...]]:
        """Return each response and what it is compared with; nothing for an empty response."""
        return [
            self._compared(prompt, response) if response.strip() else ()
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def _compared(self, prompt: str, response: str) -> tuple[str, ...]:
        if not self.compares:
            about, text = self.read(prompt, response).pair
            return text, about
        if not self.gold.get(prompt):
            raise UserError(
                f"{self.where}: the data has no response to {prompt[:80]!r} to compare with: add "
                "one, or use reads='relevance', which needs none"
            )
        return response, *self.gold[prompt]


@functools.lru_cache(maxsize=16)
def _pooled(body: Transformer) -> Callable[[Params, Grid], jax.Array]:
    """Return a jitted (params, grid of texts) -> f32[rows, S, D]."""

    @jax.jit
    def encode(params, grid):
        hidden = body.hidden(params, grid.ids, grid.segment, positions=grid.position)
        return pool_mean(hidden.astype(jnp.float32), slot_mask(grid))

    return encode


def open_cosine(
    wanted: ConfigDict,
    where: str,
    read: Callable[[str, str], Exchange],
    mesh: Mesh,
    opened: dict[tuple[str, int, str], Encoder],
) -> CosineScorer:
    """Open the sentence encoder at ``wanted.path`` as a scorer. ``wanted.score`` is not used.

    Args:
        wanted: one entry of ``config.reward_models``. Texts have at most ``max_tokens`` tokens, and
            no more than the encoder's own limit.
        where: its key in the config, for messages.
        opened: encoders that are open already, for scorers to share.

    Raises:
        UserError: the encoder cannot be read, or the options do not fit it.
    """
    key = (wanted.path, wanted.max_tokens, wanted.dtype)
    if key not in opened:
        opened[key] = _open_encoder(wanted, where, mesh)
    return CosineScorer(opened[key], wanted.reads, where, read)


def _open_encoder(wanted: ConfigDict, where: str, mesh: Mesh) -> Encoder:
    check_dtype(wanted.dtype, where)
    place = functools.partial(param_sharding, mesh=mesh)
    xla = Attention("xla", mesh)
    stored = open_encoder(wanted.path, dtype=wanted.dtype, sharding=place, attention=xla)
    body = stored.body
    check_limit(wanted.max_tokens, where, body.config)
    body = dataclasses.replace(body, attention=fused_attention(body, wanted, mesh))
    directory = stored.checkpoint.tokenizer.directory
    return Encoder(
        wanted.path,
        dataclasses.replace(stored, body=body),
        from_directory(directory).for_vocab_size(body.config.vocab_size),
        min(wanted.max_tokens, stored.limit),
        wanted.dtype,
        mesh,
    )
