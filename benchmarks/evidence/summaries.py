"""Numbers made of collected values: intervals over prompts, over rows and over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alol_jax.reports.statistics import bootstrap, stratified_bootstrap
from alol_jax.types import Interval

Plain = dict[str, Any]
DRAWS, CONFIDENCE = 10_000, 0.95
BASES = {
    "a_lol_no_clip": "a_lol",
    "a_lol_no_priority": "a_lol",
    "a_lol_no_filter": "a_lol_no_priority",
    "nll_filtered": "nll",
    "wbc_filtered": "wbc",
    "r_lol_filtered": "r_lol",
}
"""Ablation -> what it is compared with."""


def names_of(found: Plain) -> list[str]:
    """The names of all runs, each once."""
    return list(dict.fromkeys(run["name"] for run in found["runs"]))


def difference(gains: np.ndarray) -> Interval:
    """The mean of f64[seeds, prompts] and its interval over prompts, averaged over seeds first."""
    return bootstrap(gains.mean(axis=0), draws=DRAWS, confidence=CONFIDENCE, seed=0)


def share(kept: int, rows: int) -> Interval:
    """The share of kept rows and its interval over rows."""
    each = np.arange(rows) < kept
    return bootstrap(each.astype(float), draws=DRAWS, confidence=CONFIDENCE, seed=0)


def over_seeds(means: np.ndarray) -> Interval:
    """The interquartile mean of f64[seeds] and its interval over seeds, NaN for one seed."""
    if len(means) == 1:
        return Interval(float(means[0]), math.nan, math.nan)
    return stratified_bootstrap(means[:, None], draws=DRAWS, confidence=CONFIDENCE, seed=0)


def by_seed(found: Plain, name: str) -> dict[int, float]:
    """Seed -> mean reward on the test prompts."""
    runs = (run for run in found["runs"] if run["name"] == name)
    return {run["seed"]: float(np.mean(run["rewards"])) for run in runs}


def between(groups: Sequence[Sequence[float]]) -> Interval:
    """The share of a variance that lies between groups: what their mean, if known, explains.

    The intraclass correlation of a one-way analysis of variance, ICC(1) of Shrout and Fleiss 1979:
    (MSB − MSW) / (MSB + (k₀ − 1) MSW), where k₀ is the mean size of a group, corrected for unequal
    sizes. It may come out below 0 by chance. The interval is of a bootstrap over groups. Groups of
    one element are left out.
    """
    columns = [(len(g), sum(g), sum(x * x for x in g)) for g in groups if len(g) > 1]
    size, total, squares = np.array(columns, float).T
    count = len(size)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    shares = []
    for times in (np.ones((1, count)), drawn):
        n, n_squared = times @ size, times @ size**2
        within = times @ (squares - total**2 / size) / (n - count)
        means = times @ (total**2 / size) - (times @ total) ** 2 / n
        k0 = (n - n_squared / n) / (count - 1)
        above = means / (count - 1) - within
        shares.append(above / (above + k0 * within))
    low, high = np.quantile(shares[1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(shares[0][0]), float(low), float(high))


def explained(errors: np.ndarray) -> Interval:
    """1 − MSE / MSE of the mean, of f64[N, 2], and its interval over the N."""
    count = len(errors)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    mean, draws = (
        1 - (part @ errors)[:, 0] / (part @ errors)[:, 1] for part in (np.ones((1, count)), times)
    )
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(mean[0]), float(low), float(high))


def systems_read(found: Plain) -> list[str]:
    """The systems whose answers were labelled anew; the reference first."""
    names = dict.fromkeys(name for one in found["readings"] for name in one["systems"])
    return ["reference", *(name for name in names if name != "reference")]


def read_by(found: Plain, name: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A system's ``labels`` or ``fit``, and the reference's of the same readings.

    Returns:
        both i64[readings, prompts].
    """
    both = [one["systems"] for one in found["readings"] if name in one["systems"]]
    mine, theirs = ([one[of][column] for one in both] for of in (name, "reference"))
    return np.array(mine), np.array(theirs)


def agreement(pairs: np.ndarray) -> tuple[float, float]:
    """The share of equal judgements in i64[n, 2], and Cohen's κ.

    κ = (agreed − by chance) / (1 − by chance), where by chance is what two judges with the same
    shares of each judgement would agree if they drew at random (Cohen 1960).
    """
    agreed = float(np.mean(pairs[:, 0] == pairs[:, 1]))
    kinds = np.unique(pairs)
    shares = (pairs[:, :, None] == kinds).mean(axis=0)
    chance = float(np.sum(shares[0] * shares[1]))
    return agreed, (agreed - chance) / (1 - chance) if chance < 1 else math.nan


def ablation_gains(found: Plain) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, base and f64[seeds], ablation − base, of the seeds that both have."""
    for name, base in BASES.items():
        mine, theirs = by_seed(found, name), by_seed(found, base)
        seeds = sorted(mine.keys() & theirs.keys())
        if seeds:
            yield name, base, np.array([mine[seed] - theirs[seed] for seed in seeds])
