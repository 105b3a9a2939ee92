"""Reference and policy by the stored rewards of the test rows: numbers, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alol_jax.reports.statistics import bootstrap, per_cluster, signed
from alol_jax.tables.columns import Ragged
from alol_jax.tables.table import Table
from alol_jax.training.held_out import (
    LIKENESS,
    LIKENESS_GAP,
    LOGP_GAP,
    ORDER,
    ORDER_OF_RATIO,
    PER_TOKEN,
    Column,
)
from alol_jax.types import Agreement, Interval, PromptMeasures, StoredMeasure

DECIDING = (LIKENESS_GAP, ORDER_OF_RATIO, LOGP_GAP)
"""What the verdict reads, where it is there; the last one only without pairs."""
PERCENT = (ORDER, ORDER + PER_TOKEN, ORDER_OF_RATIO, ORDER_OF_RATIO + PER_TOKEN)

EXPLAINED = {
    LIKENESS_GAP: (
        "likeness gap: chrF++ of the generated answer to the best-paid response of its prompt, "
        "minus that to the worst-paid, on prompts whose rewards differ"
    ),
    LIKENESS: "likeness: chrF++ to the best-paid response alone, from 0 to 100",
    ORDER: (
        "order: the share of the pairs of one prompt with different rewards whose better-paid "
        "response is the likelier one"
    ),
    ORDER_OF_RATIO: (
        "order of ratio: the same by log π − log π_ref, which for the reference is one half by "
        "definition"
    ),
    LOGP_GAP: (
        "logp gap: the mean log-likelihood per token of the better-paid half of the test rows, "
        "minus that of the other half"
    ),
}
BLIND = (
    "Likeness cannot see a good answer in other words, and pays for copying; order and likelihood "
    "read the data's responses alone, no generated one, and without “per token” they favour short "
    "ones."
)
"""What the measures cannot see."""


def by_prompt(
    ids: Sequence[str], reference: Mapping[str, Column], policy: Mapping[str, Column]
) -> Table[PromptMeasures]:
    """One number per prompt and measure, for reference and policy: their means are the measures.

    Args:
        ids: of the prompts, in order.
    """

    def numbers(columns: Mapping[str, Column]) -> np.ndarray:
        return np.stack(
            [per_cluster(c.values, c.prompt, clusters=len(ids)) for c in columns.values()], axis=1
        )

    def ragged(columns: Mapping[str, Column]) -> Ragged:
        return Ragged.of(numbers(columns).reshape(-1), np.full(len(ids), len(columns)))

    columns = {"example_id": list(ids), "reference": ragged(reference), "policy": ragged(policy)}
    return Table(PromptMeasures, columns)


def stored_measures(
    numbers: Table[PromptMeasures], columns: Mapping[str, Column], *, draws: int, seed: int
) -> tuple[StoredMeasure, ...]:
    """The measures with their intervals, in the order of the columns."""
    ours, theirs = numbers["policy"].matrix, numbers["reference"].matrix

    def interval(values: np.ndarray) -> Interval:
        return bootstrap(values, draws=draws, confidence=0.95, seed=seed)

    return tuple(
        StoredMeasure(
            name,
            f"{len(column.values):,} {column.unit}",
            interval(theirs[:, place]),
            interval(ours[:, place]),
            interval(ours[:, place] - theirs[:, place]),
        )
        for place, (name, column) in enumerate(columns.items())
    )


def rests_on(agreement: Agreement | None) -> tuple[str, ...]:
    """Say what the rewards of generated answers are worth; () if their scorer gave all rewards."""
    if agreement is None:
        return ()
    return (f"The rewards of the answers rest on a scorer: {agreement.summary()}.",)


def digits_of_stored(name: str) -> int:
    """The number of decimals with which tables print a measure."""
    return 3 if name == LOGP_GAP or name in PERCENT else 1


def explained(names: Sequence[str]) -> tuple[str, ...]:
    """Say what these measures are."""
    return tuple(said for name, said in EXPLAINED.items() if name in names)


def said_of(name: str, change: Interval) -> str:
    """Say in plain words by how much a deciding measure changes."""
    digits, factor = (3, 1) if name == LOGP_GAP else (1, 100 if name in PERCENT else 1)
    mean, low, high = (
        signed(factor * end, digits) for end in (change.mean, change.low, change.high)
    )
    ends = f"{mean} [{low}, {high}]"
    return {
        LIKENESS_GAP: (
            "the likeness of the answers to the best-paid responses, minus that to the worst-paid, "
            f"changes by {ends} chrF++ points"
        ),
        ORDER_OF_RATIO: (
            "the share of pairs in which the better-paid response gained more likelihood over the "
            f"reference than the other changes by {ends} percentage points"
        ),
        LOGP_GAP: (
            "the lead of the better-paid half of the rows in log-likelihood per token changes by "
            f"{ends} nats"
        ),
    }[name]


def deciding(names: Sequence[str]) -> tuple[str, ...]:
    """The measures that the verdict reads."""
    there = [name for name in DECIDING if name in names]
    return tuple(there[:-1] if len(there) > 1 and there[-1] == LOGP_GAP else there)


def judged(changes: Mapping[str, Interval], base: str) -> tuple[str, str, str]:
    """The badge, the tone and the sentence for differences to ``base`` in measures.

    It is better if some deciding measure is reliably above 0 and none reliably below, worse the
    other way round.
    """
    read = {name: changes[name] for name in deciding(tuple(changes))}
    up, down = (any(c.low > 0 for c in read.values()), any(c.high < 0 for c in read.values()))
    said = "; ".join(said_of(name, change) for name, change in read.items())
    badge, tone = {
        (True, False): ("Better by the stored rewards", "better"),
        (False, True): ("Worse by the stored rewards", "worse"),
        (True, True): ("The stored rewards disagree", "open"),
        (False, False): ("No reliable difference", "open"),
    }[up, down]
    return badge, tone, f"against {base}, {said} (95% intervals, paired by prompt)."
