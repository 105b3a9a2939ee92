"""A = R − V: how far a response beats what the reference can expect; what is kept and drawn.

These run once per table on the host: columns f64[N] in, columns out. Nothing here is traced.

    advantages(reward, value)   A, one per row
    kept(advantage)             A > 0, the leftover lunch
    SAMPLING[name].weigh(x)     how likely each row is drawn, Σ = 1; zeros are never drawn

Leftover Lunch (Baheti et al., ICLR 2024, arXiv:2305.14718), section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import numpy as np

from alol_jax.types import UserError


def _column(values: np.ndarray, name: str) -> np.ndarray:
    """``values`` as a finite, non-empty f64[N]."""
    column = np.asarray(values, dtype=np.float64)
    chex.assert_rank(column, 1)
    if not column.size:
        raise UserError(f"the {name} column has no rows: check the filters and the data files")
    broken = np.flatnonzero(~np.isfinite(column))
    if broken.size:
        first = int(broken[0])
        raise UserError(
            f"{name} of row {first} is {column[first]} ({broken.size} of {column.size} rows are "
            "not finite): mend or drop them before training"
        )
    return column


def advantages(reward: np.ndarray, value: np.ndarray) -> np.ndarray:
    """A = R − V, not clamped.

    Args:
        reward: f64[N], R(x, y) of every row.
        value: f64[N], V(x) of every row's prompt.

    Returns:
        f64[N].

    Raises:
        UserError: a reward or a value is not finite, or there are no rows.
    """
    reward, value = _column(reward, "reward"), _column(value, "value")
    chex.assert_equal_shape([reward, value])
    return reward - value


def kept(advantage: np.ndarray) -> np.ndarray:
    """A > 0: bool[N], the rows the reference cannot already match. A row at exactly 0 goes.

    Raises:
        UserError: an advantage is not finite, or there are no rows.
    """
    return _column(advantage, "advantage") > 0


def uniform(values: np.ndarray) -> np.ndarray:
    """1/N for every row, whatever its value: f64[N]."""
    return _normalised(np.ones_like(_column(values, "value to draw by")))


def priority(values: np.ndarray) -> np.ndarray:
    """max(x, 0) / Σ max(x, 0), with x the reward or the advantage: f64[N].

    The weight then acts twice, once in the draw and once in the loss; so it is published.
    """
    return _normalised(np.maximum(_some_positive(values), 0.0))


def positive(values: np.ndarray) -> np.ndarray:
    """Equally likely where x > 0, never elsewhere: f64[N]."""
    return _normalised((_some_positive(values) > 0).astype(np.float64))


def _some_positive(values: np.ndarray) -> np.ndarray:
    column = _column(values, "value to draw by")
    best = column.max()
    if best <= 0:
        raise UserError(
            f"none of the {column.size} rows has a positive reward or advantage to draw by (the "
            f"best is {best:.4g}): raise the rewards, lower the value head, or use "
            "--config.policy.sampling=uniform"
        )
    return column


def _normalised(weights: np.ndarray) -> np.ndarray:
    scaled = weights / weights.max()  # first, so that the sum cannot overflow
    return scaled / scaled.sum()


class Draw(NamedTuple):
    """A row of ``SAMPLING``."""

    weigh: Callable[[np.ndarray], np.ndarray]  # the column drawn by -> chances f64[N]
    good: bool  # only the first response of each prompt, which the data prefers, is drawn


SAMPLING: dict[str, Draw] = {
    "uniform": Draw(uniform, good=False),
    "all_priority": Draw(priority, good=False),
    "all_random": Draw(positive, good=False),
    "good_uniform": Draw(uniform, good=True),
    "good_priority": Draw(priority, good=True),
    "good_random": Draw(positive, good=True),
}

AUTO = "auto"


def sampling_of(name: str, draw_by: str | None, *, field: str = "policy") -> str:
    """The key of `SAMPLING` that ``name`` means for an objective; "auto" is all_priority if it can
    be.

    Args:
        name: a key of `SAMPLING`, or "auto".
        draw_by: the column that the objective's priority draw goes by, or None.
        field: of the config, for messages.

    Raises:
        UserError: an unknown name, or a draw by a column that the objective does not have.
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
