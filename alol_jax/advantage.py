"""A = R − V: how far a response beats what the reference can expect; what is kept and drawn.

These run once per table on the host: columns f64[N] in, columns out. Nothing here is traced.

    advantages(reward, value)   A, one per row
    kept(advantage)             A > 0, the leftover lunch
    SAMPLING[name](values)      how likely each row is drawn, Σ = 1; zeros are never drawn

Leftover Lunch (Baheti et al., ICLR 2024, arXiv:2305.14718), section 2.
"""

from __future__ import annotations

from collections.abc import Callable

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


SAMPLING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform": uniform,
    "priority": priority,
    "positive": positive,
}

AUTO = "auto"


def sampling_of(name: str, draw_by: str | None) -> str:
    """The key of `SAMPLING` that ``name`` means for an objective; "auto" is priority if it can be.

    Args:
        name: a key of `SAMPLING`, or "auto".
        draw_by: the column that the objective's priority draw goes by, or None.

    Raises:
        UserError: an unknown name, or a draw by a column that the objective does not have.
    """
    if name == AUTO:
        return "uniform" if draw_by is None else "priority"
    if name not in SAMPLING:
        raise UserError.unknown(
            f"config.policy.sampling: no sampling {name!r}", name, (AUTO, *SAMPLING)
        )
    if name != "uniform" and draw_by is None:
        raise UserError(
            f"config.policy.sampling={name!r} needs an objective that weighs single rows by a "
            "reward or an advantage: use uniform"
        )
    return name
