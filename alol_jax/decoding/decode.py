"""The decoding loop: prefill, key-value cache, greedy or sampled tokens, early exit."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alol_jax.decoding.beam import beam_search
from alol_jax.decoding.prompts import lay_out, one_per_row, take
from alol_jax.decoding.sampling import Sampling
from alol_jax.decoding.slots import Slots, advance, begin, idle, narrow, refill, slot_shardings
from alol_jax.devices.sharding import fetch, place_rows
from alol_jax.runs.progress import progress
from alol_jax.text.tokens import Batching
from alol_jax.types import Params, Prompts, Watch

NEWCOMERS = 4  # new prompts are read as soon as a quarter of the slots can be refilled
MOST = 2  # times as many are read if they are short


@functools.lru_cache(maxsize=32)
def make_decoder(
    model, sampling: Sampling
) -> Callable[[Params, Prompts, jax.Array], tuple[jax.Array, jax.Array]]:
    """Return a jitted decoder: (params, `Prompts`, keys [B]) -> (ids, lengths).

    ids i32[B, R] are valid up to lengths i32[B], including the token that ends the response. The
    loop exits as soon as every row has ended. Row b depends only on its own prompt and keys[b], not
    on the rest of the batch or on padding.

    Args:
        model: has ``prefill``, ``decode_step`` and ``unembedding`` (`models.transformer`).
        sampling: how tokens are chosen; beam search ignores the keys.
    """

    @jax.jit
    def decoder(params, prompts, keys):
        if sampling.beams > 1:
            return beam_search(model, params, prompts, sampling)
        slots = begin(model, params, prompts, keys, sampling, room=sampling.max_new_tokens)
        slots = advance(model, params, slots, sampling, until=len(slots.done))
        return slots.ids, slots.lengths

    return decoder


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

    Without beams, prompts share slots that are refilled as answers end; the newcomers are read side
    by side. Beam search decodes whole batches, of prompts of about one length.

    Args:
        prompts: token ids, none longer than the largest width.
        batching: its ``size`` is the number of slots, or of prompts in a batch.
        key: row i samples with fold_in(key, i).
        watch: gets one line at the end: seconds, tokens per second and the share of busy slots.
    """
    serve = _in_batches if sampling.beams > 1 else _in_slots
    jobs = serve(model, params, prompts, sampling, batching=batching, key=key)
    responses: list[tuple[int, ...]] = [()] * len(prompts)
    began, work = time.monotonic(), Work()
    for index, ids in progress(_answers(jobs, work), watch, total=len(prompts)):
        responses[index] = ids
    seconds, tokens = time.monotonic() - began, sum(map(len, responses))
    busy = f", {work.slots} slots {tokens / work.written:.0%} busy" if work.written else ""
    rate = tokens / max(seconds, 1e-9)
    watch.say(f"{watch.label}: {len(responses)} in {seconds:.1f} s, {rate:.0f} tokens/s{busy}")
    return tuple(responses)


@dataclasses.dataclass
class Work:
    """What was computed for the answers."""

    written: int = 0  # tokens, in all slots, the idle ones too
    slots: int = 0  # at most as many as there are prompts, rounded up to a power of two


class Ended(NamedTuple):
    """Answers that ended, and what was computed since the last ones."""

    answers: list[tuple[int, tuple[int, ...]]]  # (index of the prompt, ids)
    written: int = 0
    slots: int = 0


def _answers(jobs: Iterator[Ended], work: Work) -> Iterator[tuple[int, tuple[int, ...]]]:
    for ended in jobs:
        work.written, work.slots = work.written + ended.written, ended.slots
        yield from ended.answers


def _in_batches(model, params, prompts, sampling, *, batching, key) -> Iterator[Ended]:
    """Decode whole batches, each until its last answer has ended."""
    decoder = make_decoder(model, sampling)
    for width, indices in batching.batches([len(prompt) for prompt in prompts]):
        rows = np.resize(indices, batching.size)
        read = one_per_row([prompts[row] for row in rows], width, batching.pad_id, batching.groups)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(rows))
        ids, lengths = fetch(decoder(params, place_rows(read, batching.mesh), keys))
        found = zip(indices, ids, lengths, strict=False)
        yield Ended([(int(index), _cut(row, length)) for index, row, length in found])


def _in_slots(model, params, prompts, sampling, *, batching, key) -> Iterator[Ended]:
    """Decode with slots."""
    if prompts:
        yield from _Table(model, params, prompts, sampling, batching, key).serve()


class _Table:
    """Prompts and the slots in which they are answered."""

    def __init__(self, model, params, prompts, sampling, batching, key):
        self.params, self.prompts, self.batching, self.key = params, prompts, batching, key
        self.lengths = np.array([len(prompt) for prompt in prompts])
        self.waiting = np.argsort(-self.lengths, kind="stable").tolist()  # the longest first
        groups = batching.groups
        slots = min(batching.size, groups * 2 ** _log2(-(-len(prompts) // groups)))
        self.owners = np.full((groups, slots // groups), -1)  # the prompt of each slot; −1: idle
        self.newcomers = max(slots // NEWCOMERS // groups, 1)  # of each group
        self.size = self._size(int(self.lengths.max()))
        self.slots = _idle(model, sampling, slots, self.size[2], batching.mesh)()
        layout = jax.tree.map(lambda x: x.sharding, self.slots)
        self.refill, self.advance, self.narrow = _steps(model, sampling, layout)

    def serve(self) -> Iterator[Ended]:
        """Yield answers as they end, and refill their slots."""
        steps = 0
        while self.waiting or (self.owners >= 0).any():
            self._narrow()
            while self.waiting and (self.owners < 0).sum() > self._enough() // 2:
                self._refill()
            until = self._enough() if self.waiting else self.owners.size
            self.slots = self.advance(self.params, self.slots, jnp.int32(until))
            done, ids, lengths, now = fetch(
                (self.slots.done, self.slots.ids, self.slots.lengths, self.slots.steps)
            )
            owners = self.owners.reshape(-1)  # a view
            places = np.flatnonzero(done & (owners >= 0))
            found = [(int(owners[n]), _cut(ids[n], lengths[n])) for n in places]
            owners[places] = -1
            written, steps = int(now - steps) * owners.size, now
            yield Ended(found, written, self.owners.size)

    def _size(self, longest: int) -> tuple[int, int, int]:
        """The grid for newcomers of at most so many tokens, and their columns in the cache."""
        return self.batching.grid(self.lengths, longest, self.newcomers)

    def _narrow(self) -> None:
        """Give up columns of the cache that no prompt needs any more: each costs time."""
        asked = [*self.waiting[:1], *self.owners[self.owners >= 0]]  # the longest waits first
        longest = int(self.lengths[asked].max())
        if (columns := self.batching.columns(longest)) < self.size[2]:
            self.size, self.slots = self._size(longest), self.narrow(self.slots, columns)

    def _enough(self) -> int:
        """How many idle slots are worth reading new prompts."""
        return self.newcomers * len(self.owners)

    def _refill(self) -> None:
        """Start waiting prompts in idle slots, as many as are read together."""
        rows, width, _ = self.size
        count = MOST * self.newcomers
        source = np.full(self.owners.shape, -1)
        started = np.zeros((len(self.owners), count), np.int64)
        members = []
        for group, owners in enumerate(self.owners):
            idle = np.flatnonzero(owners < 0)
            taken = take(self.waiting, self.lengths, min(count, len(idle)), rows, width)
            these = [prompt for row in taken for prompt in row]
            started[group, : len(these)] = these
            owners[idle[: len(these)]] = these
            source[group, idle[: len(these)]] = np.arange(len(these))
            members.append(taken)
        read = lay_out(members, self.prompts, count, self.size, self.batching.pad_id)
        read = place_rows(read, self.batching.mesh)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, jnp.array(started.reshape(-1)))
        self.slots = self.refill(self.params, self.slots, read, keys, source)


def _cut(ids: np.ndarray, length: int) -> tuple[int, ...]:
    return tuple(ids[:length].tolist())


def _log2(count: int) -> int:
    """The smallest n with 2ⁿ ≥ count."""
    return max(count - 1, 0).bit_length()


@functools.lru_cache(maxsize=32)
def _idle(model, sampling: Sampling, rows: int, width: int, mesh: Mesh) -> Callable[[], Slots]:
    """Return a jitted function that makes empty slots on the mesh, shared out."""
    make = functools.partial(idle, model, sampling, rows=rows, width=width)
    return jax.jit(make, out_shardings=slot_shardings(jax.eval_shape(make), mesh))


@functools.lru_cache(maxsize=32)
def _steps(model, sampling: Sampling, layout: Slots) -> tuple[Callable[..., Slots], ...]:
    """Return jitted functions that start newcomers, write tokens, and narrow the cache.

    (params, slots, `Prompts`, keys, source), (params, slots, until) and (slots, columns) -> slots.
    The first two donate the slots.
    """

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=layout)
    def admit(params, slots, prompts, keys, source):
        fresh = begin(model, params, prompts, keys, sampling, room=0)
        return refill(slots, fresh, source)

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=layout)
    def go_on(params, slots, until):
        return advance(model, params, slots, sampling, until=until)

    give_up = jax.jit(narrow, static_argnums=1, out_shardings=layout)
    return admit, go_on, give_up
