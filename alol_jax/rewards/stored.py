"""Rewards that are stored with the data: whether they can be used, and what is odd about them."""

from __future__ import annotations

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.columns import pair_codes
from alol_jax.tables.table import Table
from alol_jax.types import Example, Scored

LABELS = "labels"
WHOSE = ("scorer", LABELS)
"""``config.score.rows``: whose reward the data's rows have."""
FAR = 10  # interquartile ranges from the nearer quartile
NAMED = 3  # rows named in a note
LARGEST = float(np.finfo(np.float32).max)  # losses are computed in float32


def stored_rewards(split: str, examples: Table[Example]) -> np.ndarray:
    """Return the stored reward of each response, f64[rows]; NaN if there is none.

    Raises:
        UserError: a stored reward is NaN itself.
    """
    rewards, lengths = examples["rewards"], examples["responses"].lengths
    has = np.repeat(rewards.lengths > 0, lengths)
    stored = np.full(len(has), np.nan)
    stored[has] = rewards.flat
    broken = has & np.isnan(stored)
    if broken.any():
        owner = np.repeat(np.arange(len(examples)), lengths)[int(np.argmax(broken))]
        raise _unusable(split, examples[int(owner)].id, np.nan)
    return stored


def check_all_stored(split: str, rows: Table[Scored], stored: np.ndarray, way_out: str) -> None:
    """Check that every row has a finite stored reward.

    Raises:
        UserError: one has not; ``way_out`` says what to do about a missing one.
    """
    wrong = ~np.isfinite(stored)
    if not wrong.any():
        return
    place = int(np.argmax(wrong))
    if not np.isnan(stored[place]):
        raise _unusable(split, rows[place].example_id, stored[place])
    raise UserError(
        f"{split} example {rows[place].example_id!r} has no stored reward ({wrong.sum()} of "
        f"{len(rows)} rows have none) {way_out}"
    )


def _unusable(split: str, example_id: str, reward: float) -> UserError:
    return UserError(
        f"{split} example {example_id!r}: the stored reward is {reward}: expected a finite number"
    )


def check_in_float32(rows: Table[Scored]) -> None:
    """Check that no reward overflows in the losses.

    Raises:
        UserError: one does.
    """
    large = np.abs(rows["reward"]) > LARGEST
    if large.any():
        row = rows[int(np.argmax(large))]
        raise UserError(
            f"{row.example_id}: the reward {row.reward:g} is beyond float32: set config.score.clip"
        )


def far_notes(split: str, rows: Table[Scored], stored: np.ndarray, train: np.ndarray) -> list[str]:
    """Name the rows whose reward is far from those of the training rows: at most one note.

    Far is more than 10 interquartile ranges beyond a quartile; without a range (half of the
    rewards are equal), that many times the median size of the rewards that are not 0.

    Args:
        stored, train: f64, the rewards of ``rows`` and of the training rows.
    """
    first, third = np.quantile(train, (0.25, 0.75))
    spread = third - first
    if spread == 0 and train.any():
        spread = np.median(np.abs(train[train != 0]))
    beyond = np.maximum(first - stored, stored - third)
    places = np.flatnonzero(beyond > FAR * spread)
    if not len(places):
        return []
    places = places[np.argsort(-beyond[places], kind="stable")]
    shown = "; ".join(
        f"{rows[place].example_id} {rows[place].response[:40]!r}: {stored[place]:g}"
        for place in map(int, places[:NAMED])
    )
    return [
        f"{split}: the reward of {len(places)} of {len(rows)} rows is more than {FAR} "
        f"interquartile ranges from the quartiles {first:g} and {third:g} of the training rows "
        f"({shown}): config.score.clip or transform=rank bounds it."
    ]


def same_text_notes(split: str, rows: Table[Scored], stored: np.ndarray) -> list[str]:
    """Count the responses that a prompt has twice with different rewards: at most one note."""
    texts = pair_codes(rows["example_id"].codes(), rows["response"].codes())
    _, first, same = np.unique(texts, return_index=True, return_inverse=True)
    odd = np.count_nonzero(stored != stored[first][same])
    if not odd:
        return []
    return [
        f"{split}: {odd} of {len(rows)} rows have the prompt and the text of an earlier row, and "
        "another reward; of one text, dpo and pro keep the best-paid."
    ]
