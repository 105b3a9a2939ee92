"""Advantages A = R − V of the training rows, which rows are kept, and how rows are sampled.

These functions run once per table, on the host: columns f64[N] in, columns out. None is traced.

    advantages(reward, value)   A, one per row
    kept(advantage)             A > 0, the leftover lunch
    SAMPLING[name].weigh(x)     sampling probability of each row, Σ = 1; 0: never drawn

Leftover Lunch (Baheti et al., ICLR 2024, arXiv:2305.14718), section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import numpy as np

from alol_jax.errors import UserError


def _column(values: np.ndarray, name: str) -> np.ndarray:
    """Return ``values`` as f64[N] after checking that it is finite and not empty."""
    column = np.asarray(values, dtype=np.float64)
    chex.assert_rank(column, 1)
    if not column.size:
        raise UserError(f"the {name} column has no rows: check the filters and the data files")
    broken = np.flatnonzero(~np.isfinite(column))
    if broken.size:
        first = int(broken[0])
        raise UserError(
            f"{name} of row {first} is {column[first]} ({broken.size} of {column.size} rows are "
            "not finite): fix or drop them before training"
        )
    return column


def advantages(reward: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return A = R − V, not clamped.

    Args:
        reward: f64[N], R(x, y) of each row.
        value: f64[N], V(x) of each row's prompt.

    Returns:
        f64[N].

    Raises:
        UserError: a reward or a value is not finite, or there are no rows.
    """
    reward, value = _column(reward, "reward"), _column(value, "value")
    chex.assert_equal_shape([reward, value])
    return reward - value


def kept(advantage: np.ndarray) -> np.ndarray:
    """Return A > 0, bool[N]: the rows that the reference does not already match.

    A row with A = 0 is dropped.

    Raises:
        UserError: an advantage is not finite, or there are no rows.
    """
    return _column(advantage, "advantage") > 0


def uniform(values: np.ndarray) -> np.ndarray:
    """Return 1/N for every row, f64[N]."""
    return _normalise(np.ones_like(_column(values, "value to sample by")))


def priority(values: np.ndarray) -> np.ndarray:
    """Return max(x, 0) / Σ max(x, 0), f64[N], with x the reward or the advantage.

    The weight then counts twice, in the sampling and in the loss, as in the published code.
    """
    return _normalise(np.maximum(_checked_positive(values), 0.0))


def positive(values: np.ndarray) -> np.ndarray:
    """Return equal probabilities where x > 0 and 0 elsewhere, f64[N]."""
    return _normalise((_checked_positive(values) > 0).astype(np.float64))


def _checked_positive(values: np.ndarray) -> np.ndarray:
    column = _column(values, "value to sample by")
    best = column.max()
    if best <= 0:
        raise UserError(
            f"none of the {column.size} rows has a positive reward or advantage to sample by (the "
            f"best is {best:.4g}): raise the rewards, lower the value head, or use "
            "--config.policy.sampling=uniform"
        )
    return column


def _normalise(weights: np.ndarray) -> np.ndarray:
    scaled = weights / weights.max()  # first, so that the sum cannot overflow
    return scaled / scaled.sum()


class Sampling(NamedTuple):
    """A row of `SAMPLING`."""

    weigh: Callable[[np.ndarray], np.ndarray]  # reward or advantage -> probabilities f64[N]
    good: bool  # draw only the first response of each prompt, the one that the data prefers


SAMPLING: dict[str, Sampling] = {
    "uniform": Sampling(uniform, good=False),
    "all_priority": Sampling(priority, good=False),
    "all_random": Sampling(positive, good=False),
    "good_uniform": Sampling(uniform, good=True),
    "good_priority": Sampling(priority, good=True),
    "good_random": Sampling(positive, good=True),
}

FILTERS: dict[str, Callable[[bool], bool]] = {
    "auto": lambda reads_advantage: reads_advantage,
    "kept": lambda reads_advantage: True,
    "none": lambda reads_advantage: False,
}
"""``config.policy.filter`` -> whether rows with A ≤ 0 are dropped; the argument says whether the
loss reads the advantage."""

AUTO = "auto"


def resolve_sampling(name: str, draw_by: str | None, *, field: str = "policy") -> str:
    """Return the key of `SAMPLING` that ``name`` means for an objective.

    "auto" means all_priority where the objective has a column for it, else uniform.

    Args:
        name: a key of `SAMPLING`, or "auto".
        draw_by: the objective's column for priority sampling, or None.
        field: the config section, for messages.

    Raises:
        UserError: the name is unknown, or the objective has no column to sample by.
    """
    if name == AUTO:
        return "uniform" if draw_by is None else "all_priority"
    if name not in SAMPLING:
        raise UserError.unknown(
            f"config.{field}.sampling: no sampling {name!r}", name, (AUTO, *SAMPLING)
        )
    if SAMPLING[name].weigh is not uniform and draw_by is None:
        raise UserError(
            f"config.{field}.sampling={name!r} needs an objective that weighs single rows by a "
            "reward or an advantage: use uniform, or good_uniform for first responses only"
        )
    return name
