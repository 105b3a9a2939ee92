"""Tokens that a model never learned, told by their rows in the embedding and in the head.

Rows of tokens that never occurred in training all look alike (Land and Bartolo, 2024,
https://arxiv.org/abs/2405.05417). Surely unused are those behind the tokenizer's vocabulary, those
of reserved names, and added tokens with almost the same row. A row that was added afterwards is
near the mean of all rows, or near zero.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.devices.sharding import fetch
from alol_jax.models.language_model import LanguageModel
from alol_jax.types import Params

UNUSED = re.compile(
    r"reserved|unused", re.IGNORECASE
)  # names of tokens that nothing was trained on
NEAR = 1.2  # times the radius of the unused rows
RARE = 0.01  # share of the vocabulary that may lie as near, or the test tells nothing apart
FEW = 2  # unused rows that are needed
SAME = 0.05  # of the usual distance to the mean: rows that are no further apart are the same


def warning_of_untrained(lm: LanguageModel, params: Params, asked: Collection[int]) -> str | None:
    """Return a line that names the tokens that look untrained; None if all look trained.

    The end token is looked up in the head, those of the template in the embedding.

    Args:
      params: base and trained leaves.
      asked: ids of the tokens of a prompt.
    """
    tokenizer, added = lm.tokenizer, lm.tokenizer.added
    marks = sorted({i for i in asked if i in added} - {tokenizer.eos_id})
    names = [added[i] for i in _untrained(lm, params["embed/embedding"], 0, marks)]
    tied = lm.transformer.config.tied_embeddings
    head = ("embed/embedding", 0) if tied else ("head/kernel", 1)
    if _untrained(lm, params[head[0]], head[1], [tokenizer.eos_id]):
        names = [f"{tokenizer.eos} (which ends a response)", *names]
    if not names:
        return None
    way_out = (
        "training the embedding and the head can teach them (config.model.lora.rank=0), or choose "
        "a config.task.template of tokens that it knows"
    )
    return (
        f"warning: the model looks as if it never learned {', '.join(names)}: answers may not "
        f"end; {way_out if lm.transformer.lora is not None else 'this run trains all weights'}"
    )


def _untrained(lm: LanguageModel, rows: jax.Array, axis: int, tokens: Collection[int]) -> list[int]:
    """Return those of the tokens whose row is like unused ones; ``axis`` of ``rows`` has V."""
    size, added = rows.shape[axis], lm.tokenizer.added
    named = {i for i, name in added.items() if UNUSED.search(name)}
    unused = np.isin(np.arange(size), list(named - {*tokens}))
    unused |= np.arange(size) >= lm.tokenizer.vocab_size
    usual = ~unused & ~np.isin(np.arange(size), list(added))
    spread = fetch(_distances(rows, usual, axis))
    found, same = _near_mean(spread, usual), SAME * float(np.median(spread[usual]))
    others = np.array(sorted(added.keys() - {*tokens}), np.int32)
    unused[others[_twins(fetch(_taken(rows, others, axis)), same)]] = True
    if unused.sum() >= FEW:
        found |= _near_unused(fetch(_distances(rows, unused, axis)), usual, unused, same)
    return [token for token in tokens if found[token]]


def _near_mean(distance: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Which rows are much nearer to the mean of the usual rows than these are."""
    return distance < np.quantile(distance[usual], RARE) / 2


def _twins(rows: np.ndarray, same: float) -> np.ndarray:
    """Which of the rows [A, D] have another one no further away than ``same``."""
    rows = rows.astype(np.float64)
    square = np.sum(rows**2, axis=1)
    apart = square[:, None] + square[None] - 2 * rows @ rows.T
    np.fill_diagonal(apart, np.inf)
    return (apart <= same**2).any(axis=1)


def _near_unused(
    distance: np.ndarray, usual: np.ndarray, unused: np.ndarray, same: float
) -> np.ndarray:
    """Which rows lie among the unused ones, if hardly any usual row does.

    The mean is nearer to the n rows that it is of than to another one of their kind, whose squared
    distance is (n + 1) / (n − 1) times theirs.
    """
    count = int(unused.sum())
    radius = distance[unused].max() * ((count + 1) / (count - 1)) ** 0.5
    near = distance <= max(NEAR * radius, same)
    return near & (near[usual].mean() <= RARE)


@functools.partial(jax.jit, static_argnums=2)
def _distances(rows: jax.Array, chosen: jax.Array, axis: int) -> jax.Array:
    """f32[V]: the distance of each row to the mean of the chosen ones."""
    rows = jnp.moveaxis(rows, axis, 0)
    mean = jnp.sum(jnp.where(chosen[:, None], rows, 0), axis=0, dtype=jnp.float32) / chosen.sum()
    return jnp.sqrt(jnp.sum(jnp.square(rows.astype(jnp.float32) - mean[None]), axis=1))


@functools.partial(jax.jit, static_argnums=2)
def _taken(rows: jax.Array, chosen: jax.Array, axis: int) -> jax.Array:
    """f32[A, D]: the chosen rows."""
    return jnp.moveaxis(jnp.take(rows, chosen, axis=axis), axis, 0).astype(jnp.float32)
