"""Answers in progress: a fixed number of slots that are refilled as answers end.

A slot holds one answer: its keys and values, its tokens so far, its key for sampling. `advance`
writes tokens in all slots until enough answers have ended, and `refill` starts new ones in their
place. An answer depends on its prompt and key alone, whatever the other slots hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.decoding.prompts import in_columns
from alol_jax.decoding.sampling import (
    Sampling,
    add_seen,
    ended,
    next_token,
    penalise_repetition,
    seen_tokens,
)
from alol_jax.devices.sharding import ROWS, replicated
from alol_jax.objectives.logprobs import logits_of
from alol_jax.types import Params, Prompts


class Slots(NamedTuple):
    """B answers in progress, of at most R tokens."""

    cache: Any  # what the model keeps of each; see `models.transformer.Cache`
    hidden: jax.Array  # [B, D], the state that predicts the next token
    seen: jax.Array  # bool[B, V], or bool[B, 0] without a repetition penalty
    keys: jax.Array  # [B], for sampling
    ids: jax.Array  # i32[B, R]
    lengths: jax.Array  # i32[B], tokens so far
    done: jax.Array  # bool[B], the answer has ended, or the slot is empty
    steps: jax.Array  # i32[], tokens written in every slot since the beginning


def begin(
    model, params: Params, prompts: Prompts, keys: jax.Array, sampling: Sampling, *, room: int
) -> Slots:
    """Read B prompts, one per slot; the cache has P + ``room`` columns."""
    hidden, cache = model.prefill(params, prompts, room=room)
    seen = seen_tokens(*in_columns(prompts), model.unembedding(params).kernel.shape[-1], sampling)
    rows = len(hidden)
    return Slots(
        cache=cache,
        hidden=hidden,
        seen=seen,
        keys=keys,
        ids=jnp.zeros((rows, sampling.max_new_tokens), jnp.int32),
        lengths=jnp.zeros((rows,), jnp.int32),
        done=jnp.zeros((rows,), bool),
        steps=jnp.int32(0),
    )


def idle(model, sampling: Sampling, *, rows: int, width: int) -> Slots:
    """Return B empty slots for prompts of at most P tokens."""
    penalised = sampling.repetition_penalty != 1.0
    return Slots(
        cache=model.empty_cache(rows, width, sampling.max_new_tokens),
        hidden=jnp.zeros((rows, model.config.width), model.dtype),
        seen=jnp.zeros((rows, model.config.vocab_size if penalised else 0), bool),
        keys=jax.random.split(jax.random.key(0), rows),
        ids=jnp.zeros((rows, sampling.max_new_tokens), jnp.int32),
        lengths=jnp.zeros((rows,), jnp.int32),
        done=jnp.ones((rows,), bool),
        steps=jnp.int32(0),
    )


def slot_shardings(slots: Slots, mesh: Mesh) -> Slots:
    """Return where each array of slots lies: shared out by slot."""
    rows, whole = NamedSharding(mesh, P(ROWS)), replicated(mesh)
    return Slots(slots.cache.shardings(mesh), rows, rows, rows, rows, rows, rows, whole)


def narrow(slots: Slots, columns: int) -> Slots:
    """Keep only the last P = ``columns`` columns of prompts, none of which is longer."""
    return slots._replace(cache=slots.cache.narrow(columns, room=slots.ids.shape[1]))


def refill(slots: Slots, fresh: Slots, source: jax.Array) -> Slots:
    """Start the answers of ``fresh`` in slots.

    Slots and newcomers are in D groups, one per device of a mesh, and stay in their group.

    Args:
        fresh: n newcomers, from `begin` without room.
        source: i32[D, B/D], which newcomer of its group a slot gets; −1 leaves the slot alone.
    """
    groups, starts = source.shape[0], source.reshape(-1) >= 0

    def chosen(old, new):
        each = new.reshape(groups, len(new) // groups, *new.shape[1:])
        place = jnp.maximum(source, 0).reshape(*source.shape, *[1] * (new.ndim - 1))
        picked = jnp.take_along_axis(each, place, axis=1, mode="clip").reshape(old.shape)
        return jnp.where(starts.reshape(-1, *[1] * (old.ndim - 1)), picked, old)

    names = ("hidden", "seen", "ids", "lengths", "done")
    merged = {name: chosen(getattr(slots, name), getattr(fresh, name)) for name in names}
    data = chosen(jax.random.key_data(slots.keys), jax.random.key_data(fresh.keys))
    keys = jax.random.wrap_key_data(data, impl=jax.random.key_impl(slots.keys))
    return slots._replace(cache=slots.cache.refill(fresh.cache, source), keys=keys, **merged)


def advance(
    model, params: Params, slots: Slots, sampling: Sampling, *, until: jax.Array | int
) -> Slots:
    """Write one token after the other in all slots until ``until`` of them are done."""
    head = model.unembedding(params)
    rows = jnp.arange(slots.done.shape[0])

    def unfinished(slots):
        return jnp.sum(slots.done) < until

    def body(slots):
        logits = penalise_repetition(logits_of(slots.hidden, head), slots.seen, sampling)
        keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.lengths)
        token = next_token(logits, keys, sampling)
        ids = slots.ids.at[rows, jnp.where(slots.done, sampling.max_new_tokens, slots.lengths)].set(
            token, mode="drop"
        )
        lengths = slots.lengths + ~slots.done
        done = slots.done | ended(ids, lengths - 1, sampling)
        done = done | (lengths == sampling.max_new_tokens)
        hidden, cache = model.decode_step(params, token, slots.cache)
        seen = add_seen(slots.seen, token)
        return Slots(cache, hidden, seen, slots.keys, ids, lengths, done, slots.steps + 1)

    return jax.lax.while_loop(unfinished, body, slots)
