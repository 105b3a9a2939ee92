"""What stored rewards say of a policy on held-out rows: likeness of its answers, order, and logp.

With y+ and y− the best-paid and the worst-paid response to a prompt, and a its generated answer::

    likeness gap              mean chrF++(a, y+) − chrF++(a, y−), over prompts with two rewards
    likeness                  mean chrF++(a, y+), over all prompts
    order                     share of the pairs of one prompt with different rewards of which the
                              better-paid response has the higher log π (a tie counts ½)
    order per token           the same of log π / tokens
    order of ratio            of log π − log π_ref: ½ for the reference itself
    order of ratio per token  of (log π − log π_ref) / tokens
    logp gap                  mean log π per token of the better-paid half of the rows, minus that
                              of the other half

A measure that the rows cannot give (no prompt with two rewards, one reward for all) is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.rewards.likeness import chrf
from alol_jax.tables.columns import Ragged
from alol_jax.tables.table import Table
from alol_jax.training.pairs import best_first, pairs_of
from alol_jax.types import Scored

LIKENESS_GAP, LIKENESS = "likeness gap", "likeness"
ORDER, ORDER_OF_RATIO, LOGP_GAP = "order", "order of ratio", "logp gap"
PER_TOKEN = " per token"
MEASURES = (
    LIKENESS_GAP,
    LIKENESS,
    *(ORDER, ORDER + PER_TOKEN, ORDER_OF_RATIO, ORDER_OF_RATIO + PER_TOKEN),
    LOGP_GAP,
)
"""The names of all measures, in order."""


class Column(NamedTuple):
    """A measure: its values, and the prompt of each. The measure is their mean."""

    values: np.ndarray  # f64[n]
    prompt: np.ndarray  # i64[n]
    unit: str  # what was counted: prompts, pairs or rows


class Likelihoods(NamedTuple):
    """log π and log π_ref of each held-out response, and its tokens."""

    logp: np.ndarray  # f64[rows]
    ref_logp: np.ndarray  # f64[rows]
    tokens: np.ndarray  # i64[rows]

    def take(self, which: np.ndarray) -> Likelihoods:
        """Those of some of the responses."""
        return Likelihoods(*(column[which] for column in self))


def likelihoods(logps: Ragged, ref_logps: Ragged) -> Likelihoods:
    """Sum the log-probabilities of each response, f32[tokens] of each row."""
    return Likelihoods(logps.sums(), ref_logps.sums(), logps.lengths)


class Paid(NamedTuple):
    """The best-paid and the worst-paid response to each prompt, in the order of the prompts."""

    best: tuple[str, ...]
    worst: tuple[str, ...]
    gap: np.ndarray  # bool[prompts], whether their rewards differ


def paid(rows: Table[Scored]) -> Paid:
    """Find them; of responses with equal rewards the first is the best one."""
    prompt, reward, texts = rows["example_id"].codes(), rows["reward"], rows["response"]
    order, first = best_first(prompt, reward)
    last = np.append(first[1:], len(order)) - 1
    best, worst = order[first], order[last]
    return Paid(tuple(texts.take(best)), tuple(texts.take(worst)), reward[best] > reward[worst])


def likeness_columns(answers: Sequence[str], to: Paid) -> dict[str, Column]:
    """The two likenesses of an answer to each prompt."""
    near = np.array(list(map(chrf, to.best, answers)), np.float64)
    found, every = {}, np.arange(len(near))
    if to.gap.any():
        there = every[to.gap]
        far = np.array([chrf(to.worst[place], answers[place]) for place in there])
        found[LIKENESS_GAP] = Column(near[there] - far, there, "prompts")
    return found | {LIKENESS: Column(near, every, "prompts")}


def order_columns(rows: Table[Scored], of: Likelihoods) -> dict[str, Column]:
    """The four orders of the pairs of each prompt."""
    prompt = rows["example_id"].codes()
    pairs = pairs_of(prompt, rows["reward"])
    if not len(pairs):
        return {}
    ratio = of.logp - of.ref_logp
    scores = {
        ORDER: of.logp,
        ORDER + PER_TOKEN: of.logp / of.tokens,
        ORDER_OF_RATIO: ratio,
        ORDER_OF_RATIO + PER_TOKEN: ratio / of.tokens,
    }
    owner = prompt[pairs.better]
    return {name: Column(pairs.ordered(score), owner, "pairs") for name, score in scores.items()}


def logp_gap_column(rows: Table[Scored], of: Likelihoods) -> dict[str, Column]:
    """The gap in log π per token between the halves.

    A value is the gap, moved by how far its row is from the mean of its half, times the number of
    rows over that of its half: the mean of all values is the gap.
    """
    better = better_half(rows["reward"])
    if better is None:
        return {}
    each = of.logp / of.tokens
    gap = each[better].mean() - each[~better].mean()
    off = np.where(better, each - each[better].mean(), each[~better].mean() - each)
    share = np.where(better, better.mean(), 1 - better.mean())
    return {LOGP_GAP: Column(gap + off / share, rows["example_id"].codes(), "rows")}


def better_half(reward: np.ndarray) -> np.ndarray | None:
    """Mark the better-paid half: the split by reward that is nearest to one half. bool[rows].

    Rows of one reward stay together; None if all rewards are equal.
    """
    values, counts = np.unique(reward, return_counts=True)
    if len(values) < 2:
        return None
    above = np.cumsum(counts[::-1])[::-1][1:]  # rows at or above each value but the smallest
    return reward >= values[1:][np.argmin(np.abs(above - len(reward) / 2))]


def columns_of(
    rows: Table[Scored], answers: Sequence[str], of: Likelihoods
) -> Mapping[str, Column]:
    """All measures of a policy that the rows can give.

    Args:
        rows: held-out rows with their stored rewards.
        answers: one generated answer per prompt, in the order of the prompts.
        of: the likelihoods of the rows.
    """
    return {
        **likeness_columns(answers, paid(rows)),
        **order_columns(rows, of),
        **logp_gap_column(rows, of),
    }
