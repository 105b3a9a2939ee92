"""How a response is decoded: which tokens are likely, which is taken, where a response ends."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from alol_jax.types import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when a response ends.

    Attributes:
        max_new_tokens: R.
        temperature: logits are divided by it; 0 takes the likeliest and ignores the next two.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the smallest set of tokens whose probability reaches p (Holtzman et al. 2020).
        end: ids of which any ends a response.
        stop: token sequences of which any ends a response.
        repetition_penalty: makes tokens of the prompt and of the response so far less likely
            (`penalised`); 1 for none.
        beams: unfinished responses that are kept at a time (`beam`); 1 for none.

    Raises:
        UserError: a number is out of its range, or beams are to be drawn.
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
                f"decoding: beams={self.beams} look for the likeliest response and cannot be drawn "
                f"at temperature={self.temperature}: set beams to 1 or temperature to 0"
            )


def decoding_of(options: ConfigDict) -> Sampling:
    """The likeliest answers as ``config.decode`` describes them: greedy, or by beams."""
    return Sampling(
        max_new_tokens=options.max_new_tokens,
        end=tuple(options.end),
        repetition_penalty=options.repetition_penalty,
        beams=options.beams,
    )


def drawing_of(options: ConfigDict, drawing: ConfigDict) -> Sampling:
    """`decoding_of`; above temperature 0 drawn as ``config.generate`` says, without beams."""
    return dataclasses.replace(
        decoding_of(options),
        temperature=drawing.temperature,
        top_k=drawing.top_k,
        top_p=drawing.top_p,
        beams=1 if drawing.temperature > 0 else options.beams,
    )


def logits_of(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """f32[B, V] from hidden states [B, D] and the head's kernel [D, V]."""
    return jnp.dot(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)


def seen_in(prompt: jax.Array, mask: jax.Array, vocab_size: int) -> jax.Array:
    """bool[B, V]: is the token among the real tokens (mask 1) of the prompt i32[B, P]?"""
    rows = jnp.arange(prompt.shape[0])[:, None]
    real = jnp.where(mask > 0, prompt, vocab_size)
    return jnp.zeros((prompt.shape[0], vocab_size), bool).at[rows, real].set(True, mode="drop")


def also_seen(seen: jax.Array, token: jax.Array) -> jax.Array:
    """``seen`` bool[..., V] with one more token i32[...] each."""
    return seen | jax.nn.one_hot(token, seen.shape[-1], dtype=bool)


def penalised(scores: jax.Array, seen: jax.Array, sampling: Sampling) -> jax.Array:
    """Tokens that were seen become less likely: s / p where s ≥ 0, s · p where s < 0.

    Keskar et al. 2019 (CTRL), as transformers' ``repetition_penalty`` reads it. The numbers are
    logits where one token is chosen at a time and log-probabilities under beams, where all of
    them are negative: there p acts on the surprise of a token alone.

    Args:
        scores: f32[..., V].
        seen: bool[..., V].
        sampling: with the repetition penalty p.
    """
    if sampling.repetition_penalty == 1.0:
        return scores
    p = sampling.repetition_penalty
    return jnp.where(seen, jnp.where(scores < 0, scores * p, scores / p), scores)


def narrowed(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits of the distribution that is sampled: temperature, then top-k, then top-p.

    Args:
        logits: f32[B, V].
        sampling: with temperature > 0.

    Returns:
        f32[B, V], −inf on tokens that cannot be drawn; the most likely token always can, and
        equally likely tokens stay together.
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
    """i32[B] from logits f32[B, V], the penalty included, and one key per row."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    draw = jax.vmap(jax.random.categorical)(keys, narrowed(logits, sampling))
    return draw.astype(jnp.int32)


def ended(out: jax.Array, step: jax.Array, sampling: Sampling) -> jax.Array:
    """bool[B]: does the response written up to column ``step`` of out i32[B, R] end there?"""
    last = jnp.take_along_axis(out, jnp.broadcast_to(step, (out.shape[0], 1)), axis=1)
    done = jnp.any(last == jnp.array(sampling.end, jnp.int32)[None], axis=1)
    for sequence in sampling.stop:
        places = step - len(sequence) + 1 + jnp.arange(len(sequence))
        tail = jnp.take(out, jnp.maximum(places, 0), axis=1)
        same = jnp.all(tail == jnp.array(sequence, jnp.int32)[None], axis=1)
        done = done | (same & (places[0] >= 0))
    return done
