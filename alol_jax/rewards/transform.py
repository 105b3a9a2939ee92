"""Transforms of the reward, fitted to the training rows: ``config.score.transform`` and ``clip``.

With r the reward after clipping, and min, max, mean and std those of the training rows::

    as_is        r
    sigmoid      1 / (1 + e^−r)
    minmax       (r − min) / (max − min)
    standardise  (r − mean) / std
    rank         the share of the training rewards below r, with half of those equal to it

All keep the order of the rewards. What is fitted is a `RewardTransform`, stored with the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alol_jax.errors import UserError
from alol_jax.types import RewardTransform

KNOTS = 1001  # of rank; between two of them it is linear
LINE = "line"


def _as_is(reward: np.ndarray) -> RewardTransform:
    return RewardTransform("as_is")


def _sigmoid(reward: np.ndarray) -> RewardTransform:
    return RewardTransform("sigmoid")


def _minmax(reward: np.ndarray) -> RewardTransform:
    low, high = float(reward.min()), float(reward.max())
    return RewardTransform("minmax", shift=low, scale=high - low)


def _standardise(reward: np.ndarray) -> RewardTransform:
    return RewardTransform("standardise", shift=float(reward.mean()), scale=float(reward.std()))


def _rank(reward: np.ndarray) -> RewardTransform:
    knots, counts = np.unique(reward, return_counts=True)
    shares = (np.cumsum(counts) - counts / 2) / len(reward)
    if len(knots) > KNOTS:
        even = np.linspace(shares[0], shares[-1], KNOTS)
        kept = np.unique(np.minimum(np.searchsorted(shares, even), len(knots) - 1))
        knots, shares = knots[kept], shares[kept]
    return RewardTransform("rank", knots=tuple(knots.tolist()), shares=tuple(shares.tolist()))


TRANSFORMS: dict[str, Callable[[np.ndarray], RewardTransform]] = {
    "as_is": _as_is,
    "sigmoid": _sigmoid,
    "minmax": _minmax,
    "standardise": _standardise,
    "rank": _rank,
}
"""``config.score.transform`` -> what fits it to f64[N] training rewards."""


def _linear(fitted: RewardTransform, reward: np.ndarray) -> np.ndarray:
    return (reward - fitted.shift) / fitted.scale


def _logistic(fitted: RewardTransform, reward: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -reward))  # without overflow


def _percentile(fitted: RewardTransform, reward: np.ndarray) -> np.ndarray:
    return np.interp(reward, fitted.knots, fitted.shares)


_APPLIED: dict[str, Callable[[RewardTransform, np.ndarray], np.ndarray]] = {
    "as_is": lambda fitted, reward: reward,
    "sigmoid": _logistic,
    "minmax": _linear,
    "standardise": _linear,
    "rank": _percentile,
    LINE: _linear,
}


def check_transform(name: str, clip: Sequence[float]) -> None:
    """Check ``config.score.transform`` and ``config.score.clip``.

    Raises:
        UserError: there is no such transform, or ``clip`` is not a rising pair of finite numbers.
    """
    if name not in TRANSFORMS:
        raise UserError.unknown(f"config.score.transform: no transform {name!r}", name, TRANSFORMS)
    numbers = all(isinstance(end, int | float) and np.isfinite(end) for end in clip)
    if clip and not (numbers and len(clip) == 2 and clip[0] < clip[1]):
        raise UserError(
            f"config.score.clip={tuple(clip)}: expected two finite numbers, the smaller first, or "
            "() for no clipping"
        )


def fit_transform(name: str, clip: Sequence[float], reward: np.ndarray) -> RewardTransform:
    """Fit a transform to the training rewards f64[N].

    Raises:
        UserError: see `check_transform`; or all rewards are equal and there is no range to scale.
    """
    check_transform(name, clip)
    clipped = np.clip(reward, *clip) if clip else reward
    with np.errstate(over="ignore"):  # a range beyond float64 is infinite, and refused below
        fitted = TRANSFORMS[name](clipped)
    if not (fitted.scale > 0 and np.isfinite(fitted.scale)):
        same = clipped.min() == clipped.max()
        said = f"all {len(reward)} training rewards are {clipped[0]:g}" if same else "they overflow"
        after = f" after config.score.clip={tuple(clip)}" if clip else ""
        raise UserError(
            f"config.score.transform={name!r} has no range to scale: {said}{after}: use rows with "
            "different rewards, or transform=as_is"
        )
    ends = np.percentile(reward, np.arange(101.0))
    return RewardTransform(
        name,
        tuple(map(float, clip)),
        fitted.shift,
        fitted.scale,
        fitted.knots,
        fitted.shares,
        tuple(ends.tolist()),
    )


def transformed(fitted: RewardTransform, reward: np.ndarray) -> np.ndarray:
    """Apply a fitted transform to rewards: f64[N]."""
    clipped = np.clip(reward, *fitted.clip) if fitted.clip else reward
    return _APPLIED[fitted.name](fitted, np.asarray(clipped, np.float64))


def line_to(low: float, high: float, *, slope: float = 1.0, start: float = 0.0) -> RewardTransform:
    """Return reward = start + slope · score, with scores clipped so that it is in [low, high].

    Args:
        slope: above 0.
    """
    ends = ((low - start) / slope, (high - start) / slope)
    return RewardTransform(LINE, ends, shift=-start / slope, scale=1 / slope)
