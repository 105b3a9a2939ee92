"""Numbers made of collected values: intervals over prompts, over rows and over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.reports import statistics
from alol_jax.reports.statistics import bootstrap
from alol_jax.types import Interval

Plain = dict[str, Any]
DRAWS, CONFIDENCE = 10_000, 0.95
BASES = {
    "a_lol_no_clip": ("a_lol",),
    "a_lol_no_priority": ("a_lol",),
    "a_lol_no_filter": ("a_lol_no_priority", "a_lol"),
    "nll_filtered": ("nll",),
    "wbc_filtered": ("wbc",),
    "r_lol_filtered": ("r_lol",),
}
"""Ablation -> what it is compared with."""


def names_of(found: Plain) -> list[str]:
    """The names of all runs, each once."""
    return list(dict.fromkeys(run["name"] for run in found["runs"]))


def objective_of(name: str) -> str:
    """The objective of a variant, whose name begins with it: ``a_lol_seq_rate_0.003``."""
    return max((one for one in OBJECTIVES if f"{name}_".startswith(f"{one}_")), key=len)


def is_dialled(name: str) -> bool:
    """Whether a variant differs from its objective in the learning rate or beta."""
    return name not in OBJECTIVES and name not in BASES


def pareto_front(points: np.ndarray) -> np.ndarray:
    """The points (cost, reward) of f64[n, 2] that no cheaper one reaches, by increasing cost."""
    ordered = points[np.lexsort((-points[:, 1], points[:, 0]))]
    before = np.maximum.accumulate([-np.inf, *ordered[:-1, 1]])
    return ordered[ordered[:, 1] > before]


def difference(gains: np.ndarray) -> Interval:
    """The mean of f64[seeds, prompts] and its interval over prompts, averaged over seeds first."""
    return bootstrap(gains.mean(axis=0), draws=DRAWS, confidence=CONFIDENCE, seed=0)


def over_seeds_and_prompts(gains: np.ndarray) -> Interval:
    """The mean of f64[seeds, prompts] and its interval: seeds and prompts are both resampled.

    The interval is a little too wide (Owen 2007, the pigeonhole bootstrap).
    """
    draws = np.random.default_rng(0)
    seeds, prompts = (draws.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in gains.shape)
    return _interval(gains.mean(), np.sum((seeds @ gains) * prompts, axis=1) / gains.size)


def share(kept: int, rows: int) -> Interval:
    """The share of kept rows and its interval over rows."""
    each = np.arange(rows) < kept
    return bootstrap(each.astype(float), draws=DRAWS, confidence=CONFIDENCE, seed=0)


def over_seeds(means: np.ndarray) -> Interval:
    """The interquartile mean of f64[seeds] and its interval over seeds, NaN for one seed."""
    return statistics.over_seeds(means, draws=DRAWS, confidence=CONFIDENCE, seed=0)


def by_seed(found: Plain, name: str) -> dict[int, float]:
    """Seed -> mean reward on the test prompts."""
    runs = (run for run in found["runs"] if run["name"] == name)
    return {run["seed"]: float(np.mean(run["rewards"])) for run in runs}


class Between(NamedTuple):
    """The share of a variance that lies between rows: all that a function of the row explains."""

    of_one: Interval  # of single elements: ICC(A,1)
    of_mean: Interval  # of the mean of a row: ICC(C,k)


def between(rows: Sequence[Sequence[float]]) -> Between:
    """The intraclass correlations of f64[n, k], by a two-way analysis of variance.

    With the mean squares of rows, columns and the rest, R, C and E (McGraw and Wong 1996)::

        ICC(A,1) = (R − E) / (R + (k − 1) E + (C − E) k / n)
        ICC(C,k) = (R − E) / R

    Both may come out below 0 by chance. The intervals are of a bootstrap over rows; NaN where
    nothing varies.
    """
    table = np.array(rows, float)
    n, k = table.shape
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    found = [_icc(table, part, n, k) for part in (np.ones((1, n)), times)]
    return Between(*(_interval(one[0], draws) for one, draws in zip(*found, strict=True)))


def _interval(found: float, draws: np.ndarray) -> Interval:
    """What was found, with the ends of its resamples; those without a value are left out."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Interval(float(found), math.nan, math.nan)
    ends = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(found), *map(float, ends))


def _icc(table: np.ndarray, times: np.ndarray, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Both correlations of each resample; ``times`` [draws, n] is how often it has each row."""
    mean = (times @ table.mean(axis=1)) / n
    of_rows = k * (times @ table.mean(axis=1) ** 2 - n * mean**2)
    of_columns = n * np.sum((times @ table / n - mean[:, None]) ** 2, axis=1)
    total = times @ np.sum(table**2, axis=1) - n * k * mean**2
    rest = (total - of_rows - of_columns) / ((n - 1) * (k - 1))
    rows, columns = of_rows / (n - 1), of_columns / (k - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        one = (rows - rest) / (rows + (k - 1) * rest + (columns - rest) * k / n)
        return one, (rows - rest) / rows


def explained(errors: np.ndarray) -> Interval:
    """1 − MSE / MSE of the mean, of f64[N, 2], and its interval over the N."""
    count = len(errors)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    sums = (part @ errors for part in (np.ones((1, count)), times))
    mean, draws = (1 - both[:, 0] / both[:, 1] for both in sums)
    return _interval(mean[0], draws)


def ablation_gains(found: Plain) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, base and f64[seeds], ablation − base, of the seeds that both have."""
    for name, base in ((name, base) for name, bases in BASES.items() for base in bases):
        mine, theirs = by_seed(found, name), by_seed(found, base)
        seeds = sorted(mine.keys() & theirs.keys())
        if seeds:
            yield name, base, np.array([mine[seed] - theirs[seed] for seed in seeds])
