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

from alol_jax.decoding.beam import beam_search
from alol_jax.decoding.sampling import Sampling
from alol_jax.decoding.slots import Slots, advance, begin, refill
from alol_jax.devices.sharding import place_rows
from alol_jax.runs.progress import progress
from alol_jax.text.tokens import Batching, left_padded
from alol_jax.types import Params, Watch

NEWCOMERS = 4  # a new prompt is read as soon as a quarter of the slots can be refilled


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
        room = sampling.max_new_tokens
        slots = begin(model, params, prompt, mask, keys, sampling, room=room)
        slots = advance(model, params, slots, sampling, until=len(prompt))
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

    Without beams, prompts of one width share slots that are refilled as answers end. Beam search
    decodes whole batches.

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
    busy = f", {tokens / work.written:.0%} of the slots busy" if work.written else ""
    rate = tokens / max(seconds, 1e-9)
    watch.say(f"{watch.label}: {len(responses)} in {seconds:.1f} s, {rate:.0f} tokens/s{busy}")
    return tuple(responses)


@dataclasses.dataclass
class Work:
    """What was computed for the answers."""

    written: int = 0  # tokens, in all slots, the idle ones too


class Ended(NamedTuple):
    """Answers that ended, and what was computed since the last ones."""

    answers: list[tuple[int, tuple[int, ...]]]  # (index of the prompt, ids)
    written: int


def _answers(jobs: Iterator[Ended], work: Work) -> Iterator[tuple[int, tuple[int, ...]]]:
    for ended in jobs:
        work.written += ended.written
        yield from ended.answers


def _in_batches(model, params, prompts, sampling, *, batching, key) -> Iterator[Ended]:
    """Decode whole batches, each until its last answer has ended."""
    decoder = make_decoder(model, sampling)
    for width, indices in batching.batches([len(prompt) for prompt in prompts]):
        rows = np.resize(indices, batching.size)
        batch = _read(prompts, rows, width, batching, key)
        ids, lengths = jax.device_get(decoder(params, *batch))
        found = zip(indices, ids, lengths, strict=False)
        yield Ended([(int(index), _cut(row, length)) for index, row, length in found], 0)


def _in_slots(model, params, prompts, sampling, *, batching, key) -> Iterator[Ended]:
    """Decode with slots, one width after the other."""
    everyone = batching._replace(size=len(prompts))
    for width, indices in everyone.batches([len(prompt) for prompt in prompts]):
        table = _Table(model, params, prompts, sampling, batching, key, width, list(indices))
        yield from table.serve()


class _Table:
    """Prompts of one width and the slots in which they are answered."""

    def __init__(self, model, params, prompts, sampling, batching, key, width, waiting):
        self.params, self.prompts, self.batching = params, prompts, batching
        self.key, self.width, self.waiting = key, width, waiting
        groups = batching.mesh.shape["data"] * batching.mesh.shape["fsdp"]
        size = min(batching.size, groups * 2 ** _log2(-(-len(waiting) // groups)))
        self.owners = np.full((groups, size // groups), -1)  # the prompt of each slot; −1: idle
        self.newcomers = max(size // NEWCOMERS, groups)
        self.begin = _beginner(model, sampling, sampling.max_new_tokens)
        self.start = _beginner(model, sampling, 0)
        self.slots = self._filled()
        layout = jax.tree.map(lambda x: x.sharding, self.slots)
        self.refill, self.advance = _steps(model, sampling, layout)

    def serve(self) -> Iterator[Ended]:
        """Yield answers as they end, and refill their slots."""
        steps = 0
        while (self.owners >= 0).any():
            until = self.newcomers if self.waiting else self.owners.size
            self.slots = self.advance(self.params, self.slots, jnp.int32(until))
            done, ids, lengths, now = jax.device_get(
                (self.slots.done, self.slots.ids, self.slots.lengths, self.slots.steps)
            )
            owners = self.owners.reshape(-1)  # a view
            places = np.flatnonzero(done & (owners >= 0))
            found = [(int(owners[n]), _cut(ids[n], lengths[n])) for n in places]
            owners[places] = -1
            written, steps = int(now - steps) * owners.size, now
            while self.waiting and (self.owners < 0).any():
                self._refill()
            yield Ended(found, written)

    def _filled(self) -> Slots:
        """Begin with the first prompts in all slots."""
        groups, size = self.owners.shape
        first, self.waiting = self.waiting[: groups * size], self.waiting[groups * size :]
        self.owners.reshape(-1)[: len(first)] = first
        rows = np.resize(first, groups * size)
        return self.begin(self.params, *self._read(rows), self.owners.reshape(-1) < 0)

    def _refill(self) -> None:
        """Start waiting prompts in idle slots, as many as are read together."""
        groups, each = len(self.owners), self.newcomers // len(self.owners)
        source = np.full(self.owners.shape, -1)
        rows = np.full((groups, each), self.waiting[0])
        for group in range(groups):
            idle = np.flatnonzero(self.owners[group] < 0)[:each]
            for place, slot in enumerate(idle[: len(self.waiting)]):
                rows[group, place] = self.owners[group, slot] = self.waiting.pop(0)
                source[group, slot] = place
        fresh = self.start(self.params, *self._read(rows.reshape(-1)), np.zeros(rows.size, bool))
        self.slots = self.refill(self.slots, fresh, source)

    def _read(self, rows: np.ndarray) -> tuple[jax.Array, ...]:
        return _read(self.prompts, rows, self.width, self.batching, self.key)


def _read(prompts, rows, width, batching, key) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prompts, their mask and their keys, on the mesh."""
    read = left_padded([prompts[row] for row in rows], width, batching.pad_id)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(rows))
    return (*place_rows(read, batching.mesh), keys)


def _cut(ids: np.ndarray, length: int) -> tuple[int, ...]:
    return tuple(ids[:length].tolist())


def _log2(count: int) -> int:
    """The smallest n with 2ⁿ ≥ count."""
    return max(count - 1, 0).bit_length()


@functools.lru_cache(maxsize=32)
def _beginner(model, sampling: Sampling, room: int) -> Callable[..., Slots]:
    """Return a jitted (params, prompt, mask, keys, idle) -> slots with room for answers."""

    @jax.jit
    def beginner(params, prompt, mask, keys, idle):
        slots = begin(model, params, prompt, mask, keys, sampling, room=room)
        return slots._replace(done=idle)

    return beginner


@functools.lru_cache(maxsize=32)
def _steps(model, sampling: Sampling, layout: Slots) -> tuple[Callable[..., Slots], ...]:
    """Return jitted `slots.refill` and `slots.advance`; both donate slots of this sharding."""
    fill = jax.jit(refill, donate_argnums=0, out_shardings=layout)

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=layout)
    def go_on(params, slots, until):
        return advance(model, params, slots, sampling, until=until)

    return fill, go_on
