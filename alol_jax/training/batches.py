"""Batches of the training table, as a pure function of (seed, step).

An *item* is one entry of a batch: a row, or K rows of one prompt. Items are grouped by the smallest
configured shape (P, R) that holds them, and each batch comes from one group, so that short rows are
not padded to the length of long ones. Grouping does not change how often an item is drawn.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import place_rows
from alol_jax.errors import UserError
from alol_jax.tables.columns import CHUNK, Ragged
from alol_jax.tables.files import collect
from alol_jax.tables.table import Table, concatenate
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.text.tokens import shapes_for, to_tokens
from alol_jax.types import Annotated, Batch, Scored, Tokens

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Items:
    """The rows of each item, and the shape that the item needs."""

    rows: Table[Annotated]
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
    rows: Table[Scored],
    template: str,
    tokenizer: Tokenizer,
    shapes: Sequence[Shape],
    *,
    file: Path | None = None,
) -> tuple[Table[Annotated], Cut]:
    """Tokenise rows, without annotations yet, and count how many were truncated.

    Beyond the largest shape, a prompt's text loses its first tokens and a response its last ones.

    Args:
        file: where the tokens of many rows go, to be mapped into memory; None keeps them in memory.
    """
    cuts = []

    def parts() -> Iterator[Table[Annotated]]:
        for start in range(0, max(len(rows), 1), CHUNK):
            part, cut = _tokenised(rows[start : start + CHUNK], template, tokenizer, max(shapes))
            cuts.append(cut)
            yield part

    table = concatenate(list(parts())) if file is None else collect(file, parts(), Annotated)
    return table, Cut(*map(sum, zip(*cuts, strict=True)))


def _tokenised(
    rows: Table[Scored], template: str, tokenizer: Tokenizer, limits: Shape
) -> tuple[Table[Annotated], Cut]:
    count = len(rows)
    prompts, cut_prompts = tokenizer.encode_prompts(template, rows["prompt"], limit=limits[0])
    responses, cut_responses = tokenizer.encode_responses(rows["response"], limit=limits[1])
    columns = {
        "example_id": rows["example_id"],
        "source": rows["source"],
        "prompt_text": rows["prompt"],
        "response_text": rows["response"],
        "prompt": prompts,
        "response": responses,
        "ref_logp": Ragged.empty(count, np.float32),
        "reward": rows["reward"],
        "value": np.zeros(count),
        "advantage": np.zeros(count),
        "kept": np.ones(count, bool),
    }
    return Table(Annotated, columns), Cut(cut_prompts, cut_responses)


def single_items(rows: Table[Annotated], shapes: tuple[Shape, ...]) -> Items:
    """Make one item per row."""
    return _items(rows, np.arange(len(rows))[:, None], shapes)


def first_responses(rows: Table[Scored] | Table[Annotated]) -> np.ndarray:
    """Mark the first response of each prompt, in data order: bool[rows]."""
    first = np.zeros(len(rows), bool)
    first[rows["example_id"].firsts()] = True
    return first


RANKINGS = ("reward", "data")
"""How to rank the responses of a prompt: by reward, the highest first, or as they are in the data,
in which the preferred response comes first."""


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
    rows: Table[Annotated],
    shapes: tuple[Shape, ...],
    responses: int,
    ranking: str,
    objective: str,
) -> Ranked:
    """Make one item per prompt with at least K responses: K of them, best first.

    If a prompt has more, the item has the best, the worst and evenly spaced ones in between. When
    ranking by reward, prompts whose rewards are all equal are left out.

    Args:
        ranking: one of `RANKINGS`.
        objective: its name, for messages.

    Raises:
        UserError: no prompt gives an item.
    """
    codes, reward = rows["example_id"].codes(), rows["reward"]
    rank = -reward if ranking == "reward" else np.zeros(len(rows))
    order = np.lexsort((rank, codes))  # prompt by prompt, best first; stable
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    low, high = (f.reduceat(reward[order], starts) for f in (np.minimum, np.maximum))
    same, short = low == high, counts < responses
    equal = same & ~short
    usable = ~short & (~same | (ranking != "reward"))
    if not usable.any():
        raise UserError(
            f"the objective {objective} needs {responses} responses of a prompt"
            f"{' with different rewards' if ranking == 'reward' else ''}: of {len(counts)} "
            f"prompts {short.sum()} have fewer responses and {equal.sum()} equal rewards; use an "
            "objective that takes one response"
        )
    sizes, which = np.unique(counts[usable], return_inverse=True)
    spaced = np.array([np.linspace(0, n - 1, responses).round().astype(int) for n in sizes])
    members = order[starts[usable][:, None] + spaced[which]]
    return Ranked(_items(rows, members, shapes), int(short.sum()), int(equal.sum()))


def _items(rows: Table[Annotated], members: np.ndarray, shapes: Sequence[Shape]) -> Items:
    shapes = tuple(sorted(tuple(shape) for shape in shapes))
    prompts = rows["prompt"].lengths[members[:, 0]]
    responses = rows["response"].lengths[members].max(axis=1)
    needs = shapes_for(prompts, responses, shapes)
    return Items(rows, members, needs, shapes)


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
    reached = [_cumulative(probability[pool]) for pool in pools]  # once, not in every step

    def draw(step: int) -> np.ndarray:
        rng = np.random.default_rng([seed, step])
        choice = rng.choice(len(pools), p=mass / mass.sum())
        places = np.searchsorted(reached[choice], rng.random(size), side="right")
        return pools[choice][places]

    return draw


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """The cumulative distribution of ``weights``, as `numpy.random.Generator.choice` has it."""
    reached = np.cumsum(weights / weights.sum())
    return reached / reached[-1]


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

    @functools.lru_cache(maxsize=2 * len(pools))  # this epoch and the next of each shape
    def permutation(choice: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, choice, epoch]).permutation(pools[choice])

    def at(step: int) -> np.ndarray:
        choice, turn = turns[step]
        epoch, place = np.divmod(np.arange(turn * size, (turn + 1) * size), len(pools[choice]))
        found = np.empty(size, np.int64)
        for number in np.unique(epoch):
            here = epoch == number
            found[here] = permutation(choice, int(number))[place[here]]
        return found

    return at


def _used(items):
    return range(len(items.shapes))


# arrays


def collate(items: Items, chosen: np.ndarray, *, pad_id: int) -> Batch:
    """Pad the chosen items, all of one shape, to a Batch of numpy arrays; E* = [B] if K = 1."""
    shape, table = items.shapes[int(items.shape[chosen].max())], items.rows
    members = items.members[chosen]
    rows, responses = members.reshape(-1), items.members.shape[1]
    lead = (len(chosen),) if responses == 1 else (len(chosen), responses)
    tokens = to_tokens(
        [table["prompt"][row] for row in members[:, 0]],
        [table["response"][row] for row in rows],
        shape=shape,
        pad_id=pad_id,
    )
    ref_logp = np.zeros((len(rows), shape[1]), np.float32)
    for place, row in enumerate(rows):
        known = table["ref_logp"][row]
        ref_logp[place, : len(known)] = known
    return Batch(
        tokens=Tokens(
            tokens.prompt,
            tokens.prompt_mask,
            tokens.response.reshape(*lead, -1),
            tokens.mask.reshape(*lead, -1),
        ),
        ref_logp=ref_logp.reshape(*lead, -1),
        reward=table["reward"][rows].astype(np.float32).reshape(lead),
        advantage=np.maximum(table["advantage"][rows], 0.0).astype(np.float32).reshape(lead),
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
