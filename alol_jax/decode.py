"""Prompts -> responses: prefill, KV cache, greedy or sampled tokens, early exit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alol_jax.progress import never, progress
from alol_jax.sharding import place_rows
from alol_jax.tokens import Tokenizer, to_tokens
from alol_jax.types import Params, UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when a response ends.

    Attributes:
        max_new_tokens: R.
        temperature: logits are divided by it; 0 is greedy and ignores the other two.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the smallest set of tokens whose probability reaches p (Holtzman et al. 2020).
        end: ids of which any ends a response.
        stop: token sequences of which any ends a response.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    end: tuple[int, ...] = ()
    stop: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self):
        counts = self.max_new_tokens >= 1 and self.top_k >= 0
        if not (counts and self.temperature >= 0 and 0 < self.top_p <= 1):
            raise UserError(
                "sampling needs max_new_tokens ≥ 1, temperature ≥ 0, top_k ≥ 0 and top_p in "
                f"(0, 1]; got {self.max_new_tokens}, {self.temperature}, {self.top_k}, {self.top_p}"
            )


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
    """i32[B] from logits f32[B, V] and one key per row."""
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


@functools.lru_cache(maxsize=32)
def make_decoder(
    model, sampling: Sampling
) -> Callable[[Params, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """A jitted decoder: (params, prompt i32[B, P], mask [B, P], keys [B]) -> (ids, lengths).

    ids i32[B, R] are valid up to lengths i32[B], the ending token included. The loop leaves as soon
    as every row has ended. Row b's draws depend on keys[b] alone, not on the batch around it.

    Args:
        model: has ``prefill``, ``decode_step`` and ``unembedding`` (`models.transformer`).
        sampling: how tokens are chosen.
    """

    @jax.jit
    def decoder(params, prompt, mask, keys):
        kernel = model.unembedding(params)

        def choose(hidden, step):
            logits = jnp.dot(
                hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
            )
            row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
            return next_token(logits, row_keys, sampling)

        def body(loop):
            step, hidden, cache, out, lengths, done = loop
            token = choose(hidden, step)
            out = jnp.where(done[:, None], out, out.at[:, step].set(token))
            lengths = jnp.where(done, lengths, lengths + 1)
            done = done | ended(out, step, sampling)
            hidden, cache = model.decode_step(params, token, cache)
            return step + 1, hidden, cache, out, lengths, done

        def unfinished(loop):
            return (loop[0] < sampling.max_new_tokens) & ~jnp.all(loop[-1])

        rows = prompt.shape[0]
        hidden, cache = model.prefill(params, prompt, mask, room=sampling.max_new_tokens)
        out = jnp.zeros((rows, sampling.max_new_tokens), jnp.int32)
        start = (jnp.int32(0), hidden, cache, out)
        end = (jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), bool))
        loop = jax.lax.while_loop(unfinished, body, (*start, *end))
        return loop[3], loop[4]

    return decoder


def respond(
    model,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    widths: Sequence[int],
    batch_size: int,
    key: jax.Array,
    mesh: Mesh,
    stop_texts: Sequence[str],
    label: str,
    stopping: Callable[[], bool] = never,
) -> tuple[str, ...]:
    """One response text per prompt, in the order of ``prompts``.

    Args:
        prompts: token ids, none longer than the largest of ``widths``.
        widths: the prompt lengths P that are compiled for; each prompt uses the smallest that fits.
        batch_size: rows decoded together; a last, smaller batch is filled up with repeats.
        key: row i draws from fold_in(key, i).
        stop_texts: a response ends before the first of these.
        label, stopping: see `progress`.
    """
    decoder = make_decoder(model, sampling)
    by_width: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        fitting = [width for width in sorted(widths) if width >= len(prompt)]
        by_width.setdefault(fitting[0], []).append(index)
    pieces = [
        (width, indices[first : first + batch_size])
        for width, indices in sorted(by_width.items())
        for first in range(0, len(indices), batch_size)
    ]
    texts = [""] * len(prompts)
    for width, indices in progress(pieces, total=len(pieces), label=label, stopping=stopping):
        rows = (indices * batch_size)[:batch_size]
        tokens = to_tokens(
            [prompts[i] for i in rows],
            [() for _ in rows],
            shape=(width, 1),
            pad_id=tokenizer.pad_id,
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(rows))
        prompt, mask = place_rows((tokens.prompt, tokens.prompt_mask), mesh)
        ids, lengths = jax.device_get(decoder(params, prompt, mask, keys))
        for index, row, length in zip(indices, ids, lengths, strict=False):
            texts[index] = cut(tokenizer.decode(row[:length].tolist()), stop_texts)
    return tuple(texts)


def cut(text: str, stop_texts: Sequence[str]) -> str:
    """``text`` before the first of ``stop_texts``, stripped."""
    ends = [text.find(stop) for stop in stop_texts if stop in text]
    return text[: min(ends, default=len(text))].strip()
