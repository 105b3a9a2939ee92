"""Items: what a batch is made of, a row or K rows of one prompt, with their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.devices import processes
from alol_jax.errors import UserError
from alol_jax.paths import AnyPath
from alol_jax.runs.progress import progress
from alol_jax.tables.columns import CHUNK, Ragged, Texts, pair_codes
from alol_jax.tables.files import collect, read
from alol_jax.tables.table import Table, concatenate
from alol_jax.text.packing import Lengths, lengths_of
from alol_jax.text.prompts import encoder_of
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.training.pairs import best_first
from alol_jax.types import Annotated, Limits, Scored, Task, Watch


class Examples(NamedTuple):
    """Prompts with K responses each."""

    prompts: Sequence[np.ndarray]  # i32[P], B of them
    responses: Sequence[Sequence[np.ndarray]]  # i32[length], B times K

    def take(self, chosen: np.ndarray) -> Examples:
        """The chosen ones."""
        return Examples([self.prompts[n] for n in chosen], [self.responses[n] for n in chosen])

    def lengths(self, *, share: bool) -> Lengths:
        """The lengths of the examples."""
        return lengths_of(*self.sizes, share=share)

    @property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of the prompts, i64[B], and of their responses, i64[B, K]."""
        prompts = np.array([len(prompt) for prompt in self.prompts])
        return prompts, np.array([[len(one) for one in each] for each in self.responses])


class Items(NamedTuple):
    """The rows of each item."""

    rows: Table[Annotated]
    members: np.ndarray  # i64[I, K], indices into rows

    @property
    def longest(self) -> int:
        """R: tokens of the longest response."""
        return int(self.rows["response"].lengths[self.members].max())

    def lengths(self, *, share: bool) -> Lengths:
        """The lengths of all items."""
        prompts = self.rows["prompt"].lengths[self.members[:, 0]]
        return lengths_of(prompts, self.rows["response"].lengths[self.members], share=share)

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
    task: Task,
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    file: AnyPath | None = None,
) -> tuple[Table[Annotated], Cut]:
    """Tokenise rows, without annotations yet, and count how many were truncated.

    Beyond the limits, a prompt's text loses its first tokens and a response its last ones.

    Args:
        file: where the tokens of many rows go, to be mapped into memory; None keeps them in memory.
    """
    cuts: list[Cut] = []

    def parts() -> Iterator[Table[Annotated]]:
        starts = range(0, max(len(rows), 1), CHUNK)
        for start in progress(starts, Watch("tokens"), total=len(starts)):
            part, cut = _tokenised(rows[start : start + CHUNK], task, tokenizer, limits)
            cuts.append(cut)
            yield part

    def collected() -> list[Cut]:
        collect(file, parts(), Annotated)
        return cuts

    if file is None:
        table = concatenate(list(parts()))
    else:  # one process tokenises
        cuts = processes.from_first("tokens", collected)
        table = read(file, Annotated)
        processes.meet("reading the tokens")
    return table, Cut(*map(sum, zip(*cuts, strict=True)))


def _tokenised(
    rows: Table[Scored], task: Task, tokenizer: Tokenizer, limits: Limits
) -> tuple[Table[Annotated], Cut]:
    count = len(rows)
    encode = encoder_of(tokenizer, task, task.conversation)
    prompts, cut_prompts = encode(rows["prompt"], limit=limits.prompt)
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
    short: int  # prompts with fewer than K responses of different texts
    equal: int  # prompts whose responses all have the same reward
    again: int  # rows left out because an earlier one has their prompt and text

    def summary(self, responses: int, ranking: str) -> str:
        """Describe it in one line for the user."""
        kept = "kept" if ranking == "data" else "left out"
        line = (
            f"{len(self.items.members)} prompts with {responses} responses ranked by {ranking}; "
            f"left out: {self.short} with fewer responses; equal rewards: {self.equal} ({kept})"
        )
        if self.again:
            line += f"; {self.again} responses have the text of a better one of their prompt"
        return line


def ranked_items(
    rows: Table[Annotated] | Table[Scored],
    texts: Texts,
    responses: int,
    ranking: str,
    objective: str,
) -> Ranked:
    """Make one item per prompt with at least K responses: K of them, best first.

    If a prompt has more, the item has the best, the worst and evenly spaced ones in between. When
    ranking by reward, prompts whose rewards are all equal are left out. Of the rows of a prompt
    with the same text only the best stays: a pair of one text has no gradient.

    Args:
        texts: the response of each row.
        ranking: one of `RANKINGS`.
        objective: its name, for messages.

    Raises:
        UserError: no prompt gives an item.
    """
    codes, reward = rows["example_id"].codes(), rows["reward"]
    order, _ = best_first(codes, reward if ranking == "reward" else np.zeros(len(rows)))
    new = np.zeros(len(order), bool)  # the first of its prompt with its text
    new[np.unique(pair_codes(codes, texts.codes())[order], return_index=True)[1]] = True
    order = order[new]
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
            f"prompts {short.sum()} have fewer responses and {equal.sum()} equal rewards (a text "
            "counts once per prompt); use an objective that takes one response"
        )
    sizes, which = np.unique(counts[usable], return_inverse=True)
    spaced = np.array([np.linspace(0, n - 1, responses).round().astype(int) for n in sizes])
    members = order[starts[usable][:, None] + spaced[which]]
    again = int(np.count_nonzero(~new))
    return Ranked(Items(rows, members), int(short.sum()), int(equal.sum()), again)
