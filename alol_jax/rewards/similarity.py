"""The similarity of two texts, by a sentence encoder, as a scorer.

    score = (1 + cos(e(first), e(second))) / 2 in [0, 1]        e(text) = mean of hidden states

The two texts are `Exchange.pair`. The cosine is shifted because a reward has a bound and is not
negative; the difference of two scores is half that of the cosines.
"""

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
from alol_jax.models.attention import Attention
from alol_jax.models.classifiers import pool_mean
from alol_jax.models.files.sentence_encoder import StoredEncoder, open_encoder
from alol_jax.models.heads import slot_mask
from alol_jax.models.language_model import LanguageModel
from alol_jax.models.transformer import Transformer
from alol_jax.rewards.classifier import check_dtype, check_limit, fused_attention
from alol_jax.rewards.packed import embed_texts
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokenizer_files import from_directory
from alol_jax.types import Exchange, Grid, Params, Watch


@dataclasses.dataclass(frozen=True, eq=False)
class SimilarityScorer:
    """Scores responses by their similarity to the first text of `Exchange.pair`.

    Attributes:
        path: its path in the config.
        stored: the opened encoder.
        tokenizer: the encoder's tokenizer.
        limit: the most tokens of a text, whose last ones are dropped.
        dtype: of the encoder.
        read: from the task: prompt, response -> exchange.
        mesh: the device mesh.
    """

    path: str
    stored: StoredEncoder
    tokenizer: Tokenizer
    limit: int
    dtype: str
    read: Callable[[str, str], Exchange]
    mesh: Mesh

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the options, weights and tokenizer. Reads all files."""
        return {
            "reads": "similarity",
            "max_tokens": self.limit,
            "dtype": self.dtype,
            "weights": self.stored.checkpoint.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint(),
        }

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Score responses: f64[rows] in [0, 1], or NaN where the model gives NaN."""
        pairs = [self.read(*row).pair for row in zip(prompts, responses, strict=True)]
        unique = dict.fromkeys(text for pair in pairs for text in pair)
        units = self.embed(tuple(unique))
        place = {text: n for n, text in enumerate(unique)}
        first, second = (
            units[np.array([place[pair[side]] for pair in pairs], np.int64)] for side in (0, 1)
        )
        return (1 + np.sum(first * second, axis=1)) / 2

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return a vector of length 1 for every text: f64[texts, D]."""
        body = self.stored.body
        vectors = embed_texts(
            functools.partial(_encoder(body), self.stored.params),
            [self.tokenizer.encode_single(text, limit=self.limit) for text in texts],
            body.config.width,
            config=body.config,
            mesh=self.mesh,
            pad_id=self.tokenizer.pad_id,
            watch=Watch(f"reward model {self.path}"),
        )
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@functools.lru_cache(maxsize=16)
def _encoder(body: Transformer) -> Callable[[Params, Grid], jax.Array]:
    """Return a jitted (params, grid of texts) -> f32[rows, S, D]."""

    @jax.jit
    def encode(params, grid):
        hidden = body.hidden(params, grid.ids, grid.segment, positions=grid.position)
        return pool_mean(hidden.astype(jnp.float32), slot_mask(grid))

    return encode


def open_similarity(
    wanted: ConfigDict,
    where: str,
    read: Callable[[str, str], Exchange],
    lm: LanguageModel,
) -> SimilarityScorer:
    """Open the sentence encoder at ``wanted.path`` as a scorer. ``wanted.score`` is not used.

    Args:
        wanted: one entry of ``config.reward_models``. Texts have at most ``max_tokens`` tokens, and
            no more than the encoder's own limit.
        where: its key in the config, for messages.

    Raises:
        UserError: the encoder cannot be read, or the options do not fit it.
    """
    check_dtype(wanted.dtype, where)
    place = functools.partial(param_sharding, mesh=lm.mesh)
    xla = Attention("xla", lm.mesh)
    stored = open_encoder(wanted.path, dtype=wanted.dtype, sharding=place, attention=xla)
    body = stored.body
    check_limit(wanted.max_tokens, where, body.config)
    body = dataclasses.replace(body, attention=fused_attention(body, wanted, lm.mesh))
    directory = stored.checkpoint.tokenizer.directory
    return SimilarityScorer(
        wanted.path,
        dataclasses.replace(stored, body=body),
        from_directory(directory).for_vocab_size(body.config.vocab_size),
        min(wanted.max_tokens, stored.limit),
        wanted.dtype,
        read,
        lm.mesh,
    )
