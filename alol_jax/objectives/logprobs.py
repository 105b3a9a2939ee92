"""From hidden states to log-probabilities of responses: the only module that shifts tokens."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from alol_jax.types import Branches, Tokens


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
    rows, length, _ = before.shape
    targets = tokens.response.reshape(rows, length)

    def chunk_logp(states, ids):
        logits = jnp.dot(
            states, unembedding.astype(states.dtype), preferred_element_type=jnp.float32
        )
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    logp = (
        _in_chunks(chunk_logp, before, targets, max(1, chunk // rows))
        if rows * length > chunk
        else chunk_logp(before, targets)
    )
    logp = logp.reshape(tokens.response.shape)
    return jnp.where(tokens.mask > 0, logp, 0.0)


def response_kl(
    hidden: tuple[jax.Array, jax.Array],
    unembedding: tuple[jax.Array, jax.Array],
    tokens: Tokens,
    *,
    chunk: int,
) -> jax.Array:
    """Return Σ_t KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)), each term over the whole vocabulary.

    If y was sampled from π, the mean estimates KL(π(y|x) ‖ π_ref(y|x)) with less variance than the
    log-ratio of the tokens. For greedy answers it is the same sum along the answer.

    Args:
        hidden: [B, P + R, D] hidden states for the sequences of `to_sequences`, of π and of π_ref.
        unembedding: [D, V] of π and of π_ref.
        tokens: the same tokens, one response per prompt.
        chunk: tokens per chunk, as in `response_logp`.

    Returns:
        f32[B], never negative.
    """
    rows, length = tokens.response.shape
    before = [response_states(states, tokens) for states in hidden]
    columns = min(length, max(1, chunk // (2 * rows)))  # the logits of both exist at once

    def chunk_kl(states):
        ours, theirs = (
            jax.nn.log_softmax(
                jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
            )
            for x, kernel in zip(states, unembedding, strict=True)
        )
        return jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)

    missing = -length % columns
    parts = [
        jnp.moveaxis(
            jnp.pad(x, ((0, 0), (0, missing), (0, 0))).reshape(rows, -1, columns, x.shape[-1]), 1, 0
        )
        for x in before
    ]
    found = jnp.moveaxis(jax.lax.map(chunk_kl, tuple(parts)), 0, 1).reshape(rows, -1)[:, :length]
    return jnp.maximum(jnp.sum(jnp.where(tokens.mask > 0, found, 0.0), axis=-1), 0.0)


def _in_chunks(chunk_logp, states, ids, columns):
    """Apply ``chunk_logp`` to ``columns`` columns at a time; the backward pass recomputes it."""
    rows, length = ids.shape
    count = -(-length // columns)
    missing = count * columns - length
    states = jnp.pad(states, ((0, 0), (0, missing), (0, 0))).reshape(rows, count, columns, -1)
    ids = jnp.pad(ids, ((0, 0), (0, missing))).reshape(rows, count, columns)
    chunks = (jnp.moveaxis(states, 1, 0), jnp.moveaxis(ids, 1, 0))
    logp = jax.lax.map(lambda pair: jax.checkpoint(chunk_logp)(*pair), chunks)
    return jnp.moveaxis(logp, 0, 1).reshape(rows, -1)[:, :length]
