"""Batches of the training table, as a pure function of (seed, step).

An *item* is one entry of a batch: a row, or K rows of one prompt. A batch has exactly the items
that its step draws; in which grids they lie is a matter of `grids`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import grain
import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import place_rows, place_whole
from alol_jax.training.grids import Packer
from alol_jax.training.items import Items
from alol_jax.types import Batch, Targets

# sampling items by step


def priority_draw(probability: np.ndarray, *, size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Return step -> i64[size] items, drawn with replacement by ``probability`` f64[I]."""
    possible = np.flatnonzero(probability > 0)
    reached = np.cumsum(probability[possible])
    reached = reached / reached[-1]

    def draw(step: int) -> np.ndarray:
        drawn = np.random.default_rng([seed, step]).random(size)
        return possible[np.searchsorted(reached, drawn, side="right")]

    return draw


def shuffled(keep: np.ndarray, *, size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Return step -> i64[size] items: those in ``keep``, bool[I], in shuffled epochs.

    So at any step, the draws of two items differ by at most one.
    """
    pool = np.flatnonzero(keep)

    @functools.lru_cache(maxsize=2)  # this epoch and the next
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(pool)

    def at(step: int) -> np.ndarray:
        epoch, place = np.divmod(np.arange(step * size, (step + 1) * size), len(pool))
        found = np.empty(size, np.int64)
        for number in np.unique(epoch):
            here = epoch == number
            found[here] = permutation(int(number))[place[here]]
        return found

    return at


# arrays


def targets_of(items: Items, chosen: np.ndarray, length: int) -> Targets:
    """The annotations of the chosen items, on the host; E* = [B] if K = 1, and R is ``length``."""
    table, members = items.rows, items.members[chosen]
    rows = members.reshape(-1)
    lead = members.shape if members.shape[1] > 1 else members.shape[:1]
    mask, ref_logp = np.zeros((2, len(rows), length), np.float32)
    for place, (row, tokens) in enumerate(zip(rows, table["response"].lengths[rows], strict=True)):
        known = table["ref_logp"][row]
        mask[place, :tokens] = 1.0
        ref_logp[place, : len(known)] = known
    return Targets(
        mask=mask.reshape(*lead, length),
        ref_logp=ref_logp.reshape(*lead, length),
        reward=table["reward"][rows].astype(np.float32).reshape(lead),
        advantage=table["advantage"][rows].astype(np.float32).reshape(lead),
    )


def read_ahead(
    items: Items,
    at: Callable[[int], np.ndarray],
    packer: Packer,
    mesh: Mesh,
) -> Callable[[int, int], Iterator[Batch]]:
    """Return (start, stop) -> the batches of these steps, on the mesh, prefetched by a thread.

    Args:
        at: step -> i64[B] items.
    """

    def make(step: int) -> Batch:
        chosen = at(step)
        grids, work = packer(items.examples(chosen))
        return Batch(grids, targets_of(items, chosen, packer.layout.length), work)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        steps = grain.MapDataset.range(start, stop).map(make)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return (place_batch(batch, mesh) for batch in steps.to_iter_dataset(options))

    return batches


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Put a batch on the mesh: the rows of its grids shared out, its targets on every device."""
    return Batch(place_rows(batch.grids, mesh), place_whole(batch.targets, mesh), batch.work)
