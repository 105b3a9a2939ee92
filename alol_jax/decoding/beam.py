"""Beam search: of each row the n likeliest unfinished responses go on side by side.

Which response wins, and when the search is over, is as in transformers' ``generate`` (5.24) with
``num_beams=n, length_penalty=1, early_stopping=False``, read for one row without padding:

* Every token adds its log-probability, the repetition penalty included, to the score of its beam.
* Of all n · V continuations the best ones that do not end a response are the next n beams; those
  that end one are kept only if they are among the first n. At R tokens every one ends.
* A finished response is worth its score / its number of tokens, the ending ones counted, the
  prompt not. The n best stay.
* A row is done as soon as n responses are finished and the best beam's score / its tokens is not
  above the worst of them, and at R tokens.

A stop sequence ends a response where its last token stands, as an end token does: its tokens
belong to the response and count. Rows know nothing of each other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from alol_jax.decoding.sampling import Sampling, also_seen, ended, logits_of, penalised, seen_in
from alol_jax.types import Params

NEVER = -1e9  # the score of a beam that stands for nothing; finite: arithmetic keeps its order


class Running(NamedTuple):
    """The unfinished responses of each row, the best first."""

    ids: jax.Array  # i32[B, n, R]
    scores: jax.Array  # f32[B, n], sums


class Finished(NamedTuple):
    """The finished responses of each row, the best first."""

    ids: jax.Array  # i32[B, n, R]
    scores: jax.Array  # f32[B, n], means
    lengths: jax.Array  # i32[B, n], 0 where there is none yet


class Candidates(NamedTuple):
    """The best K continuations of the beams of each row, the best first."""

    ids: jax.Array  # i32[B, K, R]
    scores: jax.Array  # f32[B, K], sums
    beam: jax.Array  # i32[B, K], which beam is continued
    token: jax.Array  # i32[B, K]
    ends: jax.Array  # bool[B, K]


def beam_search(
    model, params: Params, prompt: jax.Array, mask: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Prompts i32[B, P] with mask [B, P] -> the best response of each: ids i32[B, R], lengths [B].

    The prompt is read once per row, whatever the number of beams. The loop leaves as soon as every
    row is done. To be traced: called inside a jit.
    """
    rows, n, length = prompt.shape[0], sampling.beams, sampling.max_new_tokens
    kernel = model.unembedding(params)
    hidden, cache = model.prefill(params, prompt, mask, room=length)
    seen = seen_in(prompt, mask, kernel.shape[-1])

    def body(loop):
        step, hidden, cache, seen, running, finished, done = loop
        logp = jax.nn.log_softmax(logits_of(hidden, kernel), axis=-1).reshape(seen.shape)
        found = candidates(running, penalised(logp, seen, sampling), step, sampling)
        finished = _with_finished(finished, found, step, done)
        running, beam, token = _unfinished(found, n)
        done = done | ~_can_improve(running, finished, step)
        seen = also_seen(_pick(seen, beam), token)
        hidden, cache = model.decode_step(params, token.reshape(-1), cache.take(beam))
        return step + 1, hidden, cache, seen, running, finished, done

    def unfinished(loop):
        return (loop[0] < length) & ~jnp.all(loop[-1])

    ids = jnp.zeros((rows, n, length), jnp.int32)
    nothing = jnp.full((rows, n), NEVER)
    start = (
        jnp.int32(0),
        jnp.repeat(hidden, n, axis=0),  # the beams of a row lie next to each other
        cache.take(jnp.zeros((rows, n), jnp.int32)),
        jnp.repeat(seen[:, None], n, axis=1),
        Running(ids, nothing.at[:, 0].set(0.0)),  # at first all beams are the prompt: one counts
        Finished(ids, nothing, jnp.zeros((rows, n), jnp.int32)),
        jnp.zeros((rows,), bool),
    )
    finished = jax.lax.while_loop(unfinished, body, start)[-2]
    return finished.ids[:, 0], finished.lengths[:, 0]


def candidates(
    running: Running, logp: jax.Array, step: jax.Array, sampling: Sampling
) -> Candidates:
    """The best continuations by one token, enough that n of them go on.

    A beam has at most one ending continuation per end token and per last token of a stop sequence.

    Args:
        logp: f32[B, n, V].
        step: the column of ids that is written.
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
    finished: Finished, found: Candidates, step: jax.Array, done: jax.Array
) -> Finished:
    """The best n of what was finished and what ends now; nothing new where a row is done."""
    n = finished.scores.shape[1]
    among_first = jnp.arange(found.scores.shape[1]) < n
    now = found.ends & among_first[None] & ~done[:, None]
    means = jnp.where(now, found.scores / (step + 1), NEVER)
    scores, place = jax.lax.top_k(jnp.concatenate([finished.scores, means], axis=1), n)
    ids = jnp.concatenate([finished.ids, found.ids], axis=1)
    lengths = jnp.concatenate([finished.lengths, jnp.where(now, step + 1, 0)], axis=1)
    return Finished(_pick(ids, place), scores, _pick(lengths, place))


def _unfinished(found: Candidates, n: int) -> tuple[Running, jax.Array, jax.Array]:
    """The best n that go on, the beam that each continues i32[B, n], and its token i32[B, n]."""
    scores, place = jax.lax.top_k(jnp.where(found.ends, NEVER, found.scores), n)
    running = Running(_pick(found.ids, place), scores)
    return running, _pick(found.beam, place), _pick(found.token, place)


def _can_improve(running: Running, finished: Finished, step: jax.Array) -> jax.Array:
    """bool[B]: is the best beam, as long as it is, worth more than the worst finished response?"""
    full = jnp.all(finished.lengths > 0, axis=1)
    worst = jnp.where(full, finished.scores[:, -1], NEVER)
    return running.scores[:, 0] / (step + 1) > worst


def _pick(x: jax.Array, place: jax.Array) -> jax.Array:
    """x [B, m, ..] and place i32[B, n] into m -> [B, n, ..]."""
    places = place.reshape(place.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1, mode="clip")
