"""From hidden states to log-probabilities of responses: the only module that shifts tokens."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

from alol_jax.types import Grid, Unembedding


def logits_of(states: jax.Array, unembedding: Unembedding) -> jax.Array:
    """Return the logits f32[…, V] of states [..., D], capped if the model caps them."""
    kernel, cap = unembedding
    logits = jnp.dot(states, kernel.astype(states.dtype), preferred_element_type=jnp.float32)
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def sequence_logp(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Return log π(y_t | y_<t) of every token of a sequence, for a training loop of one's own.

    Args:
        logits: [..., T, V], those at t predict the token at t + 1.
        ids: i32[..., T].

    Returns:
        f32[..., T]; 0 for the first token, which nothing predicts. An objective's ``mask`` says
        which tokens are the response.
    """
    chex.assert_shape(logits, (*ids.shape, None))
    logits = logits[..., :-1, :].astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, ids[..., 1:, None], axis=-1)[..., 0]
    logp = chosen - jax.nn.logsumexp(logits, axis=-1)
    return jnp.pad(logp, [(0, 0)] * (logp.ndim - 1) + [(1, 0)])


def grid_states(hidden: jax.Array, grid: Grid) -> jax.Array:
    """Return the states [rows, M, D] that predict the response tokens; hidden is [rows, T, D]."""
    chex.assert_shape(hidden, (*grid.ids.shape, None))
    return jnp.take_along_axis(hidden, grid.before[..., None], axis=1)


def grid_logp(hidden: jax.Array, unembedding: Unembedding, grid: Grid, *, chunk: int) -> jax.Array:
    """Return the log-probability of each response token of a grid.

    logp[..., m] = log softmax(logits h)[target m], with h from the position before it.

    The head runs on response tokens alone. Beyond ``chunk`` tokens it runs on a few columns of all
    rows at a time, so that at most [max(chunk, rows), V] logits exist at once. Rows are neither
    split nor merged with columns, so each device of a mesh computes the logits of its own rows.
    Logits and the log-sum-exp are float32.

    Args:
        hidden: [rows, T, D] hidden states of the grid.
        unembedding: the head.
        chunk: tokens per chunk, over all devices. With at most that many response tokens there is
            one chunk, which is kept for the backward pass instead of recomputed.

    Returns:
        f32[rows, M]; 0 on padding.
    """
    chex.assert_shape(unembedding.kernel, (hidden.shape[-1], None))
    logp = _token_logp(grid_states(hidden, grid), unembedding, grid.target, chunk=chunk)
    return jnp.where(grid.real > 0, logp, 0.0)


def grid_lead(hidden: jax.Array, unembedding: Unembedding, grid: Grid, *, chunk: int) -> jax.Array:
    """Return how far each response token is behind the likeliest one in its place.

    lead[..., m] = (W h)[target m] − max_v (W h)[v], in nats; 0 where decoding would choose it.

    Args:
        hidden, unembedding, chunk: as in `grid_logp`.

    Returns:
        f32[rows, M], at most 0; 0 on padding.
    """
    rows, length = grid.target.shape

    def chunk_lead(states, ids):
        logits = logits_of(states, unembedding)
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        return chosen - jnp.max(logits, axis=-1)

    columns = min(length, max(1, chunk // rows))
    states = grid_states(hidden, grid)
    lead = _in_chunks(chunk_lead, states, grid.target, columns=columns)
    return jnp.where(grid.real > 0, lead, 0.0)


def to_batch(found: jax.Array, grid: Grid, shape: tuple[int, ...]) -> jax.Array:
    """Put a number per response token, f32[rows, M], at its place in ``shape`` = [E*, R].

    0 elsewhere, so the arrays of all grids of a batch add up to the whole.
    """
    real = jnp.where(grid.real > 0, found, 0.0)
    flat = jnp.zeros(math.prod(shape), found.dtype)
    return flat.at[grid.place].add(real, mode="drop").reshape(shape)


def _token_logp(
    states: jax.Array, unembedding: Unembedding, ids: jax.Array, *, chunk: int
) -> jax.Array:
    """log softmax(logits h)[id] for states [rows, length, D] and ids i32[rows, length]."""

    def chunk_logp(states, ids):
        logits = logits_of(states, unembedding)
        chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    rows, length = ids.shape
    if rows * length <= chunk:
        return chunk_logp(states, ids)
    return _in_chunks(chunk_logp, states, ids, columns=max(1, chunk // rows))


def grid_kl(
    hidden: tuple[jax.Array, jax.Array],
    unembedding: tuple[Unembedding, Unembedding],
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
        unembedding: the heads of π and of π_ref.
        chunk: tokens whose logits exist at once.

    Returns:
        f32[rows, M]; 0 on padding.
    """
    rows, length = grid.target.shape
    columns = min(length, max(1, chunk // (2 * rows)))  # the logits of both exist at once

    def chunk_kl(*states):
        ours, theirs = (
            jax.nn.log_softmax(logits_of(x, head))
            for x, head in zip(states, unembedding, strict=True)
        )
        return jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)

    states = [grid_states(x, grid) for x in hidden]
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
