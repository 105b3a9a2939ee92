"""Batches of the training table, as a pure function of (seed, step).

An *item* is one entry of a batch: a row, or K rows of one prompt. Items are grouped by the smallest
configured shape (P, R) that holds them, and each batch comes from one group, so that short rows are
not padded to the length of long ones. Grouping does not change how often an item is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import place_rows
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokens import shape_for, to_tokens
from alol_jax.types import Annotated, Batch, Scored, Tokens, UserError

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Items:
    """The rows of each item, and the shape that the item needs."""

    rows: Sequence[Annotated]
    members: np.ndarray  # i64[I, K], indices into rows
    shape: np.ndarray  # i64[I], index into shapes
    shapes: tuple[Shape, ...]


class Cut(NamedTuple):
    """How many prompts and responses were truncated to the largest shape."""

    prompts: int
    responses: int

    def summary(self, rows: int, shapes: Sequence[Shape]) -> str:
        """Describe it in one line for the user."""
        limits = max(shapes)
        return (
            f"{rows} rows; truncated: {self.prompts} prompts to {limits[0]} tokens (at the start), "
            f"{self.responses} responses to {limits[1]} (no end token)"
        )


def tokenise(
    rows: Sequence[Scored], template: str, tokenizer: Tokenizer, shapes: Sequence[Shape]
) -> tuple[tuple[Annotated, ...], Cut]:
    """Tokenise rows, without annotations yet, and count how many were truncated.

    Beyond the largest shape, a prompt's text loses its first tokens and a response its last ones.
    """
    limits, rows = max(shapes), tuple(rows)
    prompts, cut_prompts = tokenizer.encode_prompts(
        template, [row.prompt for row in rows], limit=limits[0]
    )
    responses, cut_responses = tokenizer.encode_responses(
        [row.response for row in rows], limit=limits[1]
    )
    ready = tuple(
        Annotated(
            example_id=row.example_id,
            source=row.source,
            prompt_text=row.prompt,
            response_text=row.response,
            prompt=prompt,
            response=response,
            ref_logp=(),
            reward=row.reward,
            value=0.0,
            advantage=0.0,
            kept=True,
        )
        for row, prompt, response in zip(rows, prompts, responses, strict=True)
    )
    return ready, Cut(cut_prompts, cut_responses)


def single_items(rows: Sequence[Annotated], shapes: tuple[Shape, ...]) -> Items:
    """Make one item per row."""
    return _items(rows, np.arange(len(rows))[:, None], shapes)


def first_responses(rows: Sequence[Annotated]) -> np.ndarray:
    """Mark the first response of each prompt, in data order: bool[rows]."""
    seen: set[str] = set()
    return np.array([not (row.example_id in seen or seen.add(row.example_id)) for row in rows])


def by_reward(rows: Sequence[Annotated], indices: Sequence[int]) -> list[int]:
    """Order by reward, highest first."""
    return sorted(indices, key=lambda index: -rows[index].reward)


def by_data_order(rows: Sequence[Annotated], indices: Sequence[int]) -> list[int]:
    """Keep the order of the data, in which the preferred response comes first."""
    return list(indices)


RANKINGS: dict[str, Callable[[Sequence[Annotated], Sequence[int]], list[int]]] = {
    "reward": by_reward,
    "data": by_data_order,
}
"""How to rank the responses of a prompt: (rows, indices) -> indices, best first."""


class Ranked(NamedTuple):
    """Items of K responses, and counts of the prompts that gave none."""

    items: Items
    short: int  # prompts with fewer than K responses
    equal: int  # prompts whose responses all have the same reward

    def summary(self, responses: int, ranking: str) -> str:
        """Describe it in one line for the user."""
        kept = "kept" if ranking == "data" else "left out"
        return (
            f"{len(self.items.members)} prompts with {responses} responses ranked by {ranking}; "
            f"left out: {self.short} with fewer responses; equal rewards: {self.equal} ({kept})"
        )


def ranked_items(
    rows: Sequence[Annotated],
    shapes: tuple[Shape, ...],
    responses: int,
    ranking: str,
    objective: str,
) -> Ranked:
    """Make one item per prompt with at least K responses: K of them, best first.

    If a prompt has more, the item has the best, the worst and evenly spaced ones in between. When
    ranking by reward, prompts whose rewards are all equal are left out.

    Args:
        ranking: a key of `RANKINGS`.
        objective: its name, for messages.

    Raises:
        UserError: no prompt gives an item.
    """
    prompts: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        prompts.setdefault(row.example_id, []).append(index)
    members, short, equal = [], 0, 0
    for indices in prompts.values():
        ranked = RANKINGS[ranking](rows, indices)
        same = len({rows[index].reward for index in ranked}) == 1
        short += len(ranked) < responses
        equal += len(ranked) >= responses and same
        if len(ranked) < responses or (same and ranking == "reward"):
            continue
        places = np.linspace(0, len(ranked) - 1, responses).round().astype(int)
        members.append([ranked[place] for place in places])
    if not members:
        raise UserError(
            f"the objective {objective} needs {responses} responses of a prompt"
            f"{' with different rewards' if ranking == 'reward' else ''}: of {len(prompts)} "
            f"prompts {short} have fewer responses and {equal} equal rewards; use an objective "
            "that takes one response"
        )
    return Ranked(_items(rows, np.array(members), shapes), short, equal)


def _items(rows, members, shapes):
    shapes = tuple(sorted(tuple(shape) for shape in shapes))
    needs = []
    for member in members:
        prompt = len(rows[member[0]].prompt)
        response = max(len(rows[index].response) for index in member)
        needs.append(shapes.index(shape_for(prompt, response, shapes)))
    return Items(rows, members, np.array(needs), shapes)


def pieces_of(items: Items, size: int) -> list[np.ndarray]:
    """Split all items, in order, into pieces of one shape and at most ``size`` items."""
    groups = (np.flatnonzero(items.shape == s) for s in range(len(items.shapes)))
    return [group[first : first + size] for group in groups for first in range(0, len(group), size)]


# sampling items by step


def priority_draw(
    items: Items, probability: np.ndarray, *, size: int, seed: int
) -> Callable[[int], np.ndarray]:
    """Return step -> i64[size] items, drawn with replacement by ``probability``.

    A step draws a shape by its total probability, then items of that shape, so each item is drawn
    with exactly its own probability.
    """
    pools = [np.flatnonzero((items.shape == s) & (probability > 0)) for s in _used(items)]
    pools = [pool for pool in pools if len(pool)]
    mass = np.array([probability[pool].sum() for pool in pools])

    def draw(step: int) -> np.ndarray:
        rng = np.random.default_rng([seed, step])
        pool = pools[rng.choice(len(pools), p=mass / mass.sum())]
        weights = probability[pool]
        return rng.choice(pool, size=size, p=weights / weights.sum())

    return draw


def shuffled(
    items: Items, keep: np.ndarray, *, size: int, seed: int, steps: int
) -> Callable[[int], np.ndarray]:
    """Return step -> i64[size] items: the items in ``keep``, in shuffled epochs.

    Each shape has an endless stream of permutations of its items. Steps go to the shapes in
    proportion to their numbers of items, to the shape furthest behind first. So at any step, the
    draws of two items of one shape differ by at most one, and a shape is off its share by at most
    about one batch. Valid for step < ``steps``.
    """
    pools = [np.flatnonzero((items.shape == s) & keep) for s in _used(items)]
    pools = [pool for pool in pools if len(pool)]
    share = np.array([len(pool) for pool in pools]) / sum(len(pool) for pool in pools)
    turns, taken = [], np.zeros(len(pools), int)
    for step in range(steps):
        choice = int(np.argmax(share * (step + 1) - taken))
        turns.append((choice, taken[choice]))
        taken[choice] += 1

    def at(step: int) -> np.ndarray:
        choice, turn = turns[step]
        pool = pools[choice]
        places = np.arange(turn * size, (turn + 1) * size)
        epochs = {e: _permutation(seed, choice, e, pool) for e in set(places // len(pool))}
        return np.array([epochs[place // len(pool)][place % len(pool)] for place in places])

    return at


def _permutation(seed, choice, epoch, pool):
    return np.random.default_rng([seed, choice, int(epoch)]).permutation(pool)


def _used(items):
    return range(len(items.shapes))


# arrays


def collate(items: Items, chosen: np.ndarray, *, pad_id: int) -> Batch:
    """Pad the chosen items, all of one shape, to a Batch of numpy arrays; E* = [B] if K = 1."""
    shape = items.shapes[int(items.shape[chosen].max())]
    rows = [items.rows[index] for index in items.members[chosen].reshape(-1)]
    responses = items.members.shape[1]
    lead = (len(chosen),) if responses == 1 else (len(chosen), responses)
    tokens = to_tokens(
        [row.prompt for row in rows[::responses]],
        [row.response for row in rows],
        shape=shape,
        pad_id=pad_id,
    )
    ref_logp = np.zeros((len(rows), shape[1]), np.float32)
    for place, row in enumerate(rows):
        ref_logp[place, : len(row.ref_logp)] = row.ref_logp
    return Batch(
        tokens=Tokens(
            tokens.prompt,
            tokens.prompt_mask,
            tokens.response.reshape(*lead, -1),
            tokens.mask.reshape(*lead, -1),
        ),
        ref_logp=ref_logp.reshape(*lead, -1),
        reward=np.array([row.reward for row in rows], np.float32).reshape(lead),
        advantage=np.array([max(row.advantage, 0.0) for row in rows], np.float32).reshape(lead),
    )


def read_ahead(
    items: Items, at: Callable[[int], np.ndarray], accumulate: int, pad_id: int, mesh: Mesh
) -> Callable[[int, int], Iterator[Batch]]:
    """Return (start, stop) -> the batches of these steps, on the mesh, prefetched by a thread.

    Args:
        at: step -> accumulate · B items.
        accumulate: A, micro-batches per step; every leaf of a batch is [A, B, …].
        pad_id: the padding token.
        mesh: the rows of a batch are sharded over it.
    """

    def make(step: int) -> Batch:
        batch = collate(items, at(step), pad_id=pad_id)
        return jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)

    def batches(start: int, stop: int) -> Iterator[Batch]:
        steps = grain.MapDataset.range(start, stop).map(make)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return (place_rows(batch, mesh, axis=1) for batch in steps.to_iter_dataset(options))

    return batches
