"""Beam search: keep the n most likely unfinished responses of each row.

Scores and stopping follow ``generate`` in transformers 5.24 with ``num_beams=n, length_penalty=1,
early_stopping=False``, applied to each row alone and without padding:

* The score of a beam is the sum of its tokens' log-probabilities after the repetition penalty.
* Of all n · V continuations, the n best that do not end a response become the next beams. Those
  that end one are kept only if they rank among the n best of all. At R tokens every response ends.
* The score of a finished response is its beam's score divided by its number of tokens, including
  end and stop tokens but not the prompt. The n best are kept.
* A row is done once it has n finished responses and the best beam's score divided by its length
  is not above the worst of them, or at R tokens.

A stop sequence ends a response at its last token, like an end token; its tokens are part of the
response. Rows are independent of each other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from alol_jax.decoding.prompts import in_columns
from alol_jax.decoding.sampling import (
    Sampling,
    add_seen,
    ended,
    penalise_repetition,
    seen_tokens,
)
from alol_jax.objectives.logprobs import logits_of
from alol_jax.types import Params, Prompts

NEVER = -1e9  # score of an empty beam; finite, so that sums and quotients stay ordered


class Running(NamedTuple):
    """The unfinished responses of each row, best first."""

    ids: jax.Array  # i32[B, n, R]
    scores: jax.Array  # f32[B, n], sums


class Finished(NamedTuple):
    """The finished responses of each row, best first."""

    ids: jax.Array  # i32[B, n, R]
    scores: jax.Array  # f32[B, n], means
    lengths: jax.Array  # i32[B, n], 0 where there is no response yet


class Candidates(NamedTuple):
    """The best K continuations of the beams of each row, best first."""

    ids: jax.Array  # i32[B, K, R]
    scores: jax.Array  # f32[B, K], sums
    beam: jax.Array  # i32[B, K], the beam that is continued
    token: jax.Array  # i32[B, K]
    ends: jax.Array  # bool[B, K], whether the token ends the response


def beam_search(
    model, params: Params, prompts: Prompts, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Return the best response to each prompt: ids i32[B, R] and lengths i32[B].

    The prompt is prefilled once per row, not once per beam. The loop exits as soon as every row is
    done. Call it inside a jit.
    """
    n, length = sampling.beams, sampling.max_new_tokens
    head = model.unembedding(params)
    hidden, cache = model.prefill(params, prompts, room=length)
    seen, rows = seen_tokens(*in_columns(prompts), head.kernel.shape[-1], sampling), len(hidden)

    def body(loop):
        step, hidden, cache, seen, running, finished, done = loop
        logp = jax.nn.log_softmax(logits_of(hidden, head), axis=-1).reshape(rows, n, -1)
        best = candidates(running, penalise_repetition(logp, seen, sampling), step, sampling)
        finished = _with_finished(finished, best, step, done)
        running, beam, token = _unfinished(best, n)
        done = done | ~_can_improve(running, finished, step)
        seen = add_seen(_pick(seen, beam), token)
        hidden, cache = model.decode_step(params, token.reshape(-1), cache.take(beam))
        return step + 1, hidden, cache, seen, running, finished, done

    def unfinished(loop):
        return (loop[0] < length) & ~jnp.all(loop[-1])

    ids = jnp.zeros((rows, n, length), jnp.int32)
    empty = jnp.full((rows, n), NEVER, jnp.float32)
    start = (
        jnp.int32(0),
        jnp.repeat(hidden, n, axis=0),  # the beams of a row are adjacent
        cache.take(jnp.zeros((rows, n), jnp.int32)),
        jnp.repeat(seen[:, None], n, axis=1),
        Running(ids, empty.at[:, 0].set(0.0)),  # all beams start equal: only the first counts
        Finished(ids, empty, jnp.zeros((rows, n), jnp.int32)),
        jnp.zeros((rows,), bool),
    )
    finished = jax.lax.while_loop(unfinished, body, start)[-2]
    return finished.ids[:, 0], finished.lengths[:, 0]


def candidates(
    running: Running, logp: jax.Array, step: jax.Array, sampling: Sampling
) -> Candidates:
    """Return the best one-token continuations: enough of them that n do not end the response.

    At most one continuation of a beam ends per end token and per last token of a stop sequence.

    Args:
        logp: f32[B, n, V].
        step: the column of ids to write.
    """
    rows, n, vocab_size = logp.shape
    endings = len({*sampling.end, *(sequence[-1] for sequence in sampling.stop)})
    count = min(max(2, 1 + endings), vocab_size) * n
    scores, place = jax.lax.top_k((running.scores[..., None] + logp).reshape(rows, -1), count)
    beam, token = place // vocab_size, place % vocab_size
    ids = _pick(running.ids, beam).at[:, :, step].set(token)
    ends = ended(ids.reshape(rows * count, -1), step, sampling).reshape(rows, count)
    ends = ends | (step + 1 == sampling.max_new_tokens)
    return Candidates(ids, scores, beam, token, ends)


def _with_finished(
    finished: Finished, best: Candidates, step: jax.Array, done: jax.Array
) -> Finished:
    """Add the responses that end at this step and keep the n best. Done rows do not change."""
    n = finished.scores.shape[1]
    among_first = jnp.arange(best.scores.shape[1]) < n
    now = best.ends & among_first[None] & ~done[:, None]
    means = jnp.where(now, best.scores / (step + 1), NEVER)
    scores, place = jax.lax.top_k(jnp.concatenate([finished.scores, means], axis=1), n)
    ids = jnp.concatenate([finished.ids, best.ids], axis=1)
    lengths = jnp.concatenate([finished.lengths, jnp.where(now, step + 1, 0)], axis=1)
    return Finished(_pick(ids, place), scores, _pick(lengths, place))


def _unfinished(best: Candidates, n: int) -> tuple[Running, jax.Array, jax.Array]:
    """Return the n best beams that go on, their parents i32[B, n] and their tokens i32[B, n]."""
    scores, place = jax.lax.top_k(jnp.where(best.ends, NEVER, best.scores), n)
    running = Running(_pick(best.ids, place), scores)
    return running, _pick(best.beam, place), _pick(best.token, place)


def _can_improve(running: Running, finished: Finished, step: jax.Array) -> jax.Array:
    """Whether the best beam, at its length, beats the worst finished response: bool[B]."""
    full = jnp.all(finished.lengths > 0, axis=1)
    worst = jnp.where(full, finished.scores[:, -1], NEVER)
    return running.scores[:, 0] / (step + 1) > worst


def _pick(x: jax.Array, place: jax.Array) -> jax.Array:
    """Index axis 1 of x [B, m, …] with place i32[B, n]; returns [B, n, …]."""
    places = place.reshape(place.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1, mode="clip")
