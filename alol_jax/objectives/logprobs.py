"""From hidden states to log-probabilities of responses: the only module that shifts tokens."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from alol_jax.types import Branches, Grid, Tokens


class Sequences(NamedTuple):
    """Prompts with their responses as sequences ``[prompt | response 1 | … | response K]``."""

    ids: jax.Array  # i32[B, P + K·R]
    mask: jax.Array  # f32[B, P + K·R]
    branches: Branches | None  # for K > 1: responses must not attend to each other


def to_sequences(tokens: Tokens) -> Sequences:
    """Join each prompt with its responses into the sequence that a model reads.

    Args:
        tokens: prompts [B, P]; responses [E*, R] with E* = [B] or [B, K].
    """
    rows, width = tokens.prompt.shape
    ids = jnp.concatenate([tokens.prompt, tokens.response.reshape(rows, -1)], axis=1)
    mask = jnp.concatenate([tokens.prompt_mask, tokens.mask.reshape(rows, -1)], axis=1)
    branching = tokens.response.ndim == 3
    return Sequences(ids, mask, Branches(width, tokens.response.shape[-1]) if branching else None)


def response_states(hidden: jax.Array, tokens: Tokens) -> jax.Array:
    """Return the hidden states [B·K, R, D] that predict the response tokens.

    These are the last position of the prompt and all positions of the response but the last.

    Args:
        hidden: [B, P + K·R, D], for the sequences of `to_sequences`.
    """
    rows, width = tokens.prompt.shape
    length, size = tokens.response.shape[-1], hidden.shape[-1]
    if tokens.response.ndim == 2:
        return hidden[:, width - 1 : -1]
    each = hidden[:, width:].reshape(rows, -1, length, size)
    last = jnp.broadcast_to(hidden[:, width - 1, None, None], (*each.shape[:2], 1, size))
    return jnp.concatenate([last, each[:, :, :-1]], axis=2).reshape(-1, length, size)


def response_logp(
    hidden: jax.Array, unembedding: jax.Array, tokens: Tokens, *, chunk: int
) -> jax.Array:
    """Return the log-probability of each response token.

    logp[..., t] = log softmax(h · unembedding)[response t], with h from the position before t.

    The head runs on response positions only. Beyond ``chunk`` tokens it runs on a few columns of
    all rows at a time, so that at most [max(chunk, B·K), V] logits exist at once. Rows are neither
    split nor merged with columns, so each device of a mesh computes the logits of its own rows.
    Logits and the log-sum-exp are float32.

    Args:
        hidden: [B, P + K·R, D] hidden states for the sequences of `to_sequences`.
        unembedding: [D, V].
        tokens: the same tokens.
        chunk: tokens per chunk, over all devices. With at most that many response tokens there is
            one chunk, which is kept for the backward pass instead of recomputed.

    Returns:
        f32[E*, R]; 0 on padding.
    """
    width = tokens.prompt.shape[1] + tokens.response[0].size
    chex.assert_shape(hidden, (tokens.prompt.shape[0], width, unembedding.shape[0]))
    before = response_states(hidden, tokens)
    targets = tokens.response.reshape(before.shape[:2])
    logp = _token_logp(before, unembedding, targets, chunk=chunk).reshape(tokens.response.shape)
    return jnp.where(tokens.mask > 0, logp, 0.0)


def grid_logp(hidden: jax.Array, unembedding: jax.Array, grid: Grid, *, chunk: int) -> jax.Array:
    """Return the log-probability of each response token of a grid: f32[rows, M]; 0 on padding.

    As `response_logp`, on response tokens alone.

    Args:
        hidden: [rows, T, D] hidden states of the grid.
        unembedding: [D, V].
        chunk: tokens whose logits exist at once.
    """
    states = jnp.take_along_axis(hidden, grid.before[..., None], axis=1)
    logp = _token_logp(states, unembedding, grid.target, chunk=chunk)
    return jnp.where(grid.real > 0, logp, 0.0)


def _token_logp(
    states: jax.Array, unembedding: jax.Array, ids: jax.Array, *, chunk: int
) -> jax.Array:
    """log softmax(h · unembedding)[id] for states [rows, length, D] and ids i32[rows, length]."""

    def chunk_logp(states, ids):
        logits = jnp.dot(
            states, unembedding.astype(states.dtype), preferred_element_type=jnp.float32
        )
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    rows, length = ids.shape
    if rows * length <= chunk:
        return chunk_logp(states, ids)
    return _in_chunks(chunk_logp, states, ids, columns=max(1, chunk // rows))


def grid_kl(
    hidden: tuple[jax.Array, jax.Array],
    unembedding: tuple[jax.Array, jax.Array],
    grid: Grid,
    *,
    chunk: int,
) -> jax.Array:
    """Return KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)) at each response token, over all the vocabulary.

    If y was sampled from π, the mean of its sum over y estimates KL(π(y|x) ‖ π_ref(y|x)) with less
    variance than the log-ratio of the tokens. For greedy answers it is the same sum along the
    answer.

    Args:
        hidden: [rows, T, D] hidden states of the grid, of π and of π_ref.
        unembedding: [D, V] of π and of π_ref.
        chunk: tokens whose logits exist at once.

    Returns:
        f32[rows, M]; 0 on padding.
    """
    rows, length = grid.target.shape
    columns = min(length, max(1, chunk // (2 * rows)))  # the logits of both exist at once

    def chunk_kl(*states):
        ours, theirs = (
            jax.nn.log_softmax(
                jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
            )
            for x, kernel in zip(states, unembedding, strict=True)
        )
        return jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)

    states = [jnp.take_along_axis(x, grid.before[..., None], axis=1) for x in hidden]
    return jnp.where(grid.real > 0, _in_chunks(chunk_kl, *states, columns=columns), 0.0)


def _in_chunks(function, *arrays, columns):
    """Apply ``function`` to ``columns`` columns of [rows, length, …] at a time: f32[rows, length].

    The backward pass computes each chunk again.
    """
    rows, length = arrays[0].shape[:2]
    count = -(-length // columns)

    def split(x):
        padded = jnp.pad(x, ((0, 0), (0, count * columns - length), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(rows, count, columns, *x.shape[2:]), 1, 0)

    found = jax.lax.map(lambda parts: jax.checkpoint(function)(*parts), tuple(map(split, arrays)))
    return jnp.moveaxis(found, 0, 1).reshape(rows, -1)[:, :length]
