"""Choosing the next token, and deciding where a response ends."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from alol_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


PIECE = 256  # tokens of the vocabulary whose probabilities are summed first


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when a response ends.

    Attributes:
        max_new_tokens: R.
        temperature: divides the logits; 0 is greedy and ignores ``top_k`` and ``top_p``.
        top_k: sample from the k most likely tokens; 0 for all.
        top_p: sample from the smallest set of tokens with total probability p or more (Holtzman et
            al. 2020).
        end: token ids, each of which ends a response.
        stop: token sequences, each of which ends a response.
        repetition_penalty: lowers the probability of tokens already in the prompt or the response
            (`penalise_repetition`); 1 for none.
        beams: number of beams in beam search (`beam`); 1 for none.

    Raises:
        UserError: a number is out of its range, or beams are combined with a temperature.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    end: tuple[int, ...] = ()
    stop: tuple[tuple[int, ...], ...] = ()
    repetition_penalty: float = 1.0
    beams: int = 1

    def __post_init__(self):
        ranges = (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 is none"),
            ("beams", self.beams >= 1, "1 or more; 1 is none"),
        )
        for field, good, expected in ranges:
            if not good:
                raise UserError(f"decoding: {field}={getattr(self, field)} must be {expected}")
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                f"decoding: beams={self.beams} find the most likely response and cannot be "
                f"combined with temperature={self.temperature}: set beams to 1 or temperature to 0"
            )


def deterministic_decoding(options: ConfigDict) -> Sampling:
    """Return greedy decoding or beam search, as set by ``config.decode``."""
    return Sampling(
        max_new_tokens=options.max_new_tokens,
        end=tuple(options.end),
        repetition_penalty=options.repetition_penalty,
        beams=options.beams,
    )


def stochastic_decoding(options: ConfigDict, sampling: ConfigDict) -> Sampling:
    """Return `deterministic_decoding` with the temperature, top-k and top-p of ``sampling``.

    Above temperature 0 there are no beams.

    Args:
        options: ``config.decode``.
        sampling: ``config.generate`` or ``config.ppo``.
    """
    return dataclasses.replace(
        deterministic_decoding(options),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        beams=1 if sampling.temperature > 0 else options.beams,
    )


def seen_tokens(
    prompt: jax.Array, mask: jax.Array, vocab_size: int, sampling: Sampling
) -> jax.Array:
    """Mark the tokens in the prompt i32[B, P], padding (mask 0) excluded: bool[B, V].

    Without a repetition penalty, which alone asks for them: bool[B, 0].
    """
    if sampling.repetition_penalty == 1.0:
        return jnp.zeros((prompt.shape[0], 0), bool)
    rows = jnp.arange(prompt.shape[0])[:, None]
    real = jnp.where(mask > 0, prompt, vocab_size)
    return jnp.zeros((prompt.shape[0], vocab_size), bool).at[rows, real].set(True, mode="drop")


def add_seen(seen: jax.Array, token: jax.Array) -> jax.Array:
    """Mark one more token i32[...] per row in ``seen`` bool[..., V]."""
    return seen | jax.nn.one_hot(token, seen.shape[-1], dtype=bool)


def penalise_repetition(scores: jax.Array, seen: jax.Array, sampling: Sampling) -> jax.Array:
    """Apply the repetition penalty p to seen tokens: s / p where s ≥ 0, s · p where s < 0.

    Keskar et al. 2019 (CTRL), with the meaning of transformers' ``repetition_penalty``. Scores are
    logits without beams. With beams they are log-probabilities: all negative, so each seen token's
    is multiplied by p.

    Args:
        scores: f32[..., V].
        seen: bool[..., V].
        sampling: has the repetition penalty p.
    """
    if sampling.repetition_penalty == 1.0:
        return scores
    p = sampling.repetition_penalty
    return jnp.where(seen, jnp.where(scores < 0, scores * p, scores / p), scores)


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Apply the temperature, then top-k, then top-p.

    Args:
        logits: f32[B, V].
        sampling: with temperature > 0.

    Returns:
        f32[B, V], −inf for tokens that are filtered out. The most likely token is always kept, and
        equally likely tokens are kept or dropped together.
    """
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        least = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def next_token(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """Choose tokens i32[B] from penalised logits f32[B, V], with one key per row."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return draw(
        filter_logits(logits, sampling),
        jax.vmap(functools.partial(jax.random.uniform, dtype=jnp.float32))(keys),
    )


def draw(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draw tokens i32[B] with probabilities softmax(logits), by inverting their sums.

    One random number per row, where adding Gumbel noise would take one per token of the
    vocabulary. The sums are built in two levels: of pieces of the vocabulary, then inside one.

    Args:
        logits: f32[B, V]; a token with −inf is never drawn.
        uniform: f32[B] in [0, 1).
    """
    rows, size = logits.shape
    weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    pieces = jnp.pad(weight, ((0, 0), (0, -size % PIECE))).reshape(rows, -1, PIECE)
    piece, left = _first_beyond(jnp.sum(pieces, axis=-1), lambda total: uniform * total)
    inside = jnp.take_along_axis(pieces, piece[:, None, None], axis=1)[:, 0]
    place, _ = _first_beyond(inside, lambda total: left)
    return (piece * PIECE + place).astype(jnp.int32)


def _first_beyond(weight: jax.Array, aim) -> tuple[jax.Array, jax.Array]:
    """Return where the running sum of f32[B, n] first exceeds the aim, and what is left there.

    Rounding may put the aim at or beyond the last sum; it is then taken as just below it, so that
    a weight of 0 is never chosen.
    """
    reached = jnp.cumsum(weight, axis=-1)
    total = reached[:, -1]
    wanted = jnp.minimum(aim(total), jnp.nextafter(total, 0.0))
    place = jnp.sum(reached <= wanted[:, None], axis=-1)
    before = jnp.where(place > 0, jnp.take_along_axis(reached, place[:, None] - 1, 1)[:, 0], 0.0)
    return place, wanted - before


def ended(out: jax.Array, step: jax.Array, sampling: Sampling) -> jax.Array:
    """Whether the responses out i32[B, R], filled up to column ``step``, end there: bool[B].

    Args:
        step: i32[] or i32[B].
    """
    step = jnp.broadcast_to(step, out.shape[:1])[:, None]
    last = jnp.take_along_axis(out, step, axis=1)
    done = jnp.any(last == jnp.array(sampling.end, jnp.int32)[None], axis=1)
    for sequence in sampling.stop:
        places = step - len(sequence) + 1 + jnp.arange(len(sequence))[None]
        tail = jnp.take_along_axis(out, jnp.maximum(places, 0), axis=1)
        same = jnp.all(tail == jnp.array(sequence, jnp.int32)[None], axis=1)
        done = done | (same & (places[:, 0] >= 0))
    return done
