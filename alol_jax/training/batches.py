"""Batches of the training table, as a pure function of (seed, step).

An *item* is one entry of a batch: a row, or K rows of one prompt. A batch has exactly the items
that its step draws; in which grids they lie is a matter of `grids`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from alol_jax.devices.sharding import place_rows, place_whole
from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel
from alol_jax.tables.columns import CHUNK, Ragged
from alol_jax.tables.files import collect
from alol_jax.tables.table import Table, concatenate
from alol_jax.text.packing import lengths_of
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.training.grids import SAMPLE_STEPS, Examples, Packer, make_packer
from alol_jax.types import Annotated, Batch, Limits, Scored, Targets


class Items(NamedTuple):
    """The rows of each item."""

    rows: Table[Annotated]
    members: np.ndarray  # i64[I, K], indices into rows

    @property
    def longest(self) -> int:
        """R: tokens of the longest response."""
        return int(self.rows["response"].lengths[self.members].max())

    def examples(self, chosen: np.ndarray) -> Examples:
        """The tokens of the chosen items."""
        prompts, responses, members = self.rows["prompt"], self.rows["response"], self.members
        return Examples(
            [prompts[row] for row in members[chosen, 0]],
            [[responses[row] for row in those] for those in members[chosen]],
        )


class Cut(NamedTuple):
    """How many prompts and responses were truncated to the limits."""

    prompts: int
    responses: int

    def summary(self, rows: int, limits: Limits) -> str:
        """Describe it in one line for the user."""
        return (
            f"{rows} rows; truncated: {self.prompts} prompts to {limits.prompt} tokens (at the "
            f"start), {self.responses} responses to {limits.response} (no end token)"
        )


def tokenise(
    rows: Table[Scored],
    template: str,
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    file: Path | None = None,
) -> tuple[Table[Annotated], Cut]:
    """Tokenise rows, without annotations yet, and count how many were truncated.

    Beyond the limits, a prompt's text loses its first tokens and a response its last ones.

    Args:
        file: where the tokens of many rows go, to be mapped into memory; None keeps them in memory.
    """
    cuts = []

    def parts() -> Iterator[Table[Annotated]]:
        for start in range(0, max(len(rows), 1), CHUNK):
            part, cut = _tokenised(rows[start : start + CHUNK], template, tokenizer, limits)
            cuts.append(cut)
            yield part

    table = concatenate(list(parts())) if file is None else collect(file, parts(), Annotated)
    return table, Cut(*map(sum, zip(*cuts, strict=True)))


def _tokenised(
    rows: Table[Scored], template: str, tokenizer: Tokenizer, limits: Limits
) -> tuple[Table[Annotated], Cut]:
    count = len(rows)
    prompts, cut_prompts = tokenizer.encode_prompts(template, rows["prompt"], limit=limits.prompt)
    responses, cut_responses = tokenizer.encode_responses(rows["response"], limit=limits.response)
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


def single_items(rows: Table[Annotated]) -> Items:
    """Make one item per row."""
    return Items(rows, np.arange(len(rows))[:, None])


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
    return Ranked(Items(rows, members), int(short.sum()), int(equal.sum()))


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
        advantage=np.maximum(table["advantage"][rows], 0.0).astype(np.float32).reshape(lead),
    )


def packer_of(lm: LanguageModel, items: Items, at: Callable[[int], np.ndarray]) -> Packer:
    """Make the packer of a fit whose step n trains on the items ``at(n)``."""
    prompts = items.rows["prompt"].lengths[items.members[:, 0]]
    responses = items.rows["response"].lengths[items.members]
    lengths = lengths_of(prompts, responses, share=lm.transformer.attention.branches)
    draws = [at(step) for step in range(SAMPLE_STEPS)]
    longest = (int(lengths.tokens.max()), int(lengths.answers.max()))
    return make_packer(lm, lengths, draws, longest=longest, length=items.longest)


def read_ahead(
    lm: LanguageModel, items: Items, at: Callable[[int], np.ndarray], packer: Packer
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
        return (place_batch(lm, batch) for batch in steps.to_iter_dataset(options))

    return batches


def place_batch(lm: LanguageModel, batch: Batch) -> Batch:
    """Put a batch on the mesh: the rows of its grids shared out, its targets on every device."""
    return Batch(place_rows(batch.grids, lm.mesh), place_whole(batch.targets, lm.mesh), batch.work)
