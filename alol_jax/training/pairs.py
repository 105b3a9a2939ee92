"""Pairs of rows with different rewards, and how often a score orders them alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MOST = 1000  # rows compared with each other where no prompt has two


class Pairs(NamedTuple):
    """n pairs of rows; the first of each has the higher reward."""

    better: np.ndarray  # i64[n]
    worse: np.ndarray  # i64[n]

    def __len__(self) -> int:
        return len(self.better)

    def ordered(self, score: np.ndarray) -> np.ndarray:
        """Return 1 for each pair that the score f64[rows] orders alike, ½ for a tie, else 0."""
        return (1 + np.sign(score[self.better] - score[self.worse])) / 2


def best_first(prompt: np.ndarray, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort rows by prompt, the best-paid of each first and equal ones in their order.

    Args:
        prompt: i64[rows], the prompt of each row, from 0.
        reward: f64[rows].

    Returns:
        The rows, i64[rows], and where in them each prompt begins.
    """
    order = np.lexsort((-reward, prompt))  # stable
    return order, np.flatnonzero(np.diff(prompt[order], prepend=-1))


def pairs_of(prompt: np.ndarray, reward: np.ndarray) -> Pairs:
    """Return all pairs of rows of one prompt with different rewards.

    Args:
        prompt: i64[rows], the prompt of each row.
        reward: f64[rows].
    """
    order = np.argsort(prompt, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(prompt[order])) + 1)
    return _joined([_among(rows, reward) for rows in parts if len(rows) > 1])


def pairs_across(reward: np.ndarray) -> Pairs:
    """Return all pairs of rows with different rewards, of at most `MOST` evenly spaced rows."""
    rows = np.linspace(0, len(reward) - 1, min(len(reward), MOST)).round().astype(int)
    return _joined([_among(rows, reward)])


def _among(rows: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Return i64[2, n], the better and the worse row of each pair."""
    one, other = (rows[place] for place in np.triu_indices(len(rows), k=1))
    gap = reward[one] - reward[other]
    differ = gap != 0
    swapped = gap[differ] < 0
    both = np.stack([one[differ], other[differ]])
    return np.where(swapped, both[::-1], both)


def _joined(parts: list[np.ndarray]) -> Pairs:
    return Pairs(*np.concatenate([np.zeros((2, 0), np.int64), *parts], axis=1))
