"""The decoding loop: prefill, key-value cache, greedy or sampled tokens, early exit."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.decoding.beam import beam_search
from alol_jax.decoding.sampling import (
    Sampling,
    add_seen,
    ended,
    logits_of,
    next_token,
    penalise_repetition,
    seen_tokens,
)
from alol_jax.devices.sharding import place_rows
from alol_jax.runs.progress import progress
from alol_jax.text.tokens import Batching, to_tokens
from alol_jax.types import Params, Watch


@functools.lru_cache(maxsize=32)
def make_decoder(
    model, sampling: Sampling
) -> Callable[[Params, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Return a jitted decoder: (params, prompt i32[B, P], mask [B, P], keys [B]) -> (ids, lengths).

    ids i32[B, R] are valid up to lengths i32[B], including the token that ends the response. The
    loop exits as soon as every row has ended. Row b depends only on its own prompt and keys[b], not
    on the rest of the batch or on padding.

    Args:
        model: has ``prefill``, ``decode_step`` and ``unembedding`` (`models.transformer`).
        sampling: how tokens are chosen; beam search ignores the keys.
    """

    @jax.jit
    def decoder(params, prompt, mask, keys):
        if sampling.beams > 1:
            return beam_search(model, params, prompt, mask, sampling)
        return _sample(model, params, prompt, mask, keys, sampling)

    return decoder


def _sample(model, params, prompt, mask, keys, sampling):
    """Decode without beams: one token at a time, greedy or sampled."""
    kernel = model.unembedding(params)

    def choose(hidden, seen, step):
        logits = penalise_repetition(logits_of(hidden, kernel), seen, sampling)
        row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return next_token(logits, row_keys, sampling)

    def body(loop):
        step, hidden, cache, seen, out, lengths, done = loop
        token = choose(hidden, seen, step)
        out = jnp.where(done[:, None], out, out.at[:, step].set(token))
        lengths = jnp.where(done, lengths, lengths + 1)
        done = done | ended(out, step, sampling)
        hidden, cache = model.decode_step(params, token, cache)
        return step + 1, hidden, cache, add_seen(seen, token), out, lengths, done

    def unfinished(loop):
        return (loop[0] < sampling.max_new_tokens) & ~jnp.all(loop[-1])

    rows = prompt.shape[0]
    hidden, cache = model.prefill(params, prompt, mask, room=sampling.max_new_tokens)
    seen = seen_tokens(prompt, mask, kernel.shape[-1])
    out = jnp.zeros((rows, sampling.max_new_tokens), jnp.int32)
    start = (jnp.int32(0), hidden, cache, seen, out)
    end = (jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), bool))
    loop = jax.lax.while_loop(unfinished, body, (*start, *end))
    return loop[4], loop[5]


def respond(
    model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batching: Batching,
    key: jax.Array,
    watch: Watch,
) -> tuple[tuple[int, ...], ...]:
    """Decode one response per prompt; return their token ids in order, including end tokens.

    Args:
        prompts: token ids, none longer than the largest width.
        batching: how prompts are batched.
        key: row i samples with fold_in(key, i).
        watch: gets one line at the end: seconds, and tokens per second.
    """
    decoder = make_decoder(model, sampling)
    pieces = batching.batches([len(prompt) for prompt in prompts])
    responses: list[tuple[int, ...]] = [()] * len(prompts)
    batches = []
    for width, indices in progress(pieces, watch, total=len(pieces)):
        start = time.monotonic()
        rows = np.resize(indices, batching.size)
        chosen, empty = [prompts[i] for i in rows], [() for _ in rows]
        tokens = to_tokens(chosen, empty, shape=(width, 1), pad_id=batching.pad_id)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(rows))
        prompt, mask = place_rows((tokens.prompt, tokens.prompt_mask), batching.mesh)
        ids, lengths = jax.device_get(decoder(params, prompt, mask, keys))
        written = int(sum(lengths[: len(indices)]))
        batches.append(_Batch(width, written, time.monotonic() - start))
        for index, row, length in zip(indices, ids, lengths, strict=False):
            responses[index] = tuple(row[:length].tolist())
    watch.say(f"{watch.label}: {len(responses)} in {_speed(batches)}")
    return tuple(responses)


class _Batch(NamedTuple):
    width: int  # of the prompts
    tokens: int  # generated, without the rows repeated to fill the batch
    seconds: float


def _speed(batches: Sequence[_Batch]) -> str:
    """Format seconds and tokens per second, keeping apart the batches that may have compiled."""
    first = {batch.width: batch for batch in reversed(batches)}
    later = [batch for batch in batches if batch is not first[batch.width]]
    seconds = sum(batch.seconds for batch in batches)
    counted = later or batches
    rate = sum(batch.tokens for batch in counted) / max(sum(b.seconds for b in counted), 1e-9)
    if not later:
        return f"{seconds:.1f} s, {rate:.0f} tokens/s with compiling"
    apart = sum(batch.seconds for batch in first.values())
    return (
        f"{seconds:.1f} s, {rate:.0f} tokens/s after the first batch of each prompt width "
        f"({apart:.1f} s with compiling)"
    )
