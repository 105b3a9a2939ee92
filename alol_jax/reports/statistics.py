"""The statistics of the evaluation, on host arrays; and how a difference is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alol_jax.errors import UserError
from alol_jax.types import Interval


def bootstrap(values: np.ndarray, *, draws: int, confidence: float, seed: int) -> Interval:
    """The mean of ``values`` and its percentile bootstrap interval (Efron 1979).

    For a paired difference, pass the differences: resampling them resamples pairs.

    Args:
        values: f64[N], one per prompt.
        draws: number of resamples, each of N values with replacement.
        confidence: in (0, 1), for example 0.95.
    """
    _check_bootstrap(draws, confidence)
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    rows = max(1, 2_000_000 // len(values))  # resamples held in memory at once
    for first in range(0, draws, rows):
        count = min(rows, draws - first)
        means[first : first + count] = values[
            rng.integers(len(values), size=(count, len(values)))
        ].mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def per_cluster(
    values: np.ndarray, cluster: np.ndarray, *, clusters: int | None = None, scale: float = 1.0
) -> np.ndarray:
    """Return one number per cluster, whose mean is the mean of ``values``, for `bootstrap`.

    The mean m is a ratio of sums over clusters, Σ s_c / Σ n_c. With C clusters, cluster c gets ::

        m + C · (s_c − m · n_c) / Σ n

    so that a resample of clusters moves the mean by what it moves the ratio, to first order (the
    linearised ratio of cluster sampling: Cochran, Sampling Techniques, 1977, section 6.3). Where
    all clusters have the same size, that is exact.

    Args:
        values: f64[N], N ≥ 1.
        cluster: i64[N], the cluster of each; from 0 to ``clusters`` − 1, if that is given.
        clusters: C, with those that have no value; None: those that have one.
        scale: factor on the deviations: 2 for pairs of two clusters that are given to both.
    """
    if clusters is None:
        cluster = np.unique(cluster, return_inverse=True)[1]
        clusters = int(cluster.max()) + 1
    mean = float(values.mean())
    off = np.bincount(cluster, values - mean, minlength=clusters)
    return mean + scale * clusters * off / len(values)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half along the last axis: a quarter, rounded down, is cut at each end.

    So it equals the mean of fewer than four values. Agarwal et al. 2021, arXiv:2108.13264.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def over_seeds(scores: np.ndarray, *, draws: int, confidence: float, seed: int) -> Interval:
    """The interquartile mean of the seeds' scores, and its bootstrap interval over the seeds.

    Whole seeds are drawn: a seed is one policy, whatever it is tested on. (Agarwal et al. 2021,
    arXiv:2108.13264, section 4, draw those of each task on their own, as their runs are.)

    Args:
        scores: f64[seeds], one mean per seed. One seed has no interval: its ends are NaN.
        draws, confidence, seed: as in `bootstrap`.
    """
    _check_bootstrap(draws, confidence)
    scores = np.asarray(scores, np.float64)
    if len(scores) == 1:
        return Interval(float(scores[0]), math.nan, math.nan)
    chosen = np.random.default_rng(seed).integers(len(scores), size=(draws, len(scores)))
    means = interquartile_mean(scores[chosen])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(interquartile_mean(scores)), float(low), float(high))


def _check_bootstrap(draws: int, confidence: float) -> None:
    if draws < 1 or not 0.0 < confidence < 1.0:
        raise UserError(f"bootstrap={draws} must be ≥ 1 and confidence={confidence} in (0, 1)")


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of f64[N] and f64[N]; nan where one of them does not vary."""
    return _correlation("pearsonr", x, y)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of f64[N] and f64[N]; nan where one of them does not vary."""
    return _correlation("spearmanr", x, y)


def _correlation(name: str, x: np.ndarray, y: np.ndarray) -> float:
    from scipy import stats  # half a second that most runs do not need

    varies = np.ptp(x) > 0 and np.ptp(y) > 0
    return float(getattr(stats, name)(x, y).statistic) if varies else float("nan")


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams / all n-grams of lower-cased, whitespace-separated words; 0 if none."""
    grams = _grams(texts, n)
    total = sum(map(len, grams))
    return len(set().union(*map(set, grams))) / total if total else 0.0


def distinct_interval(
    texts: Sequence[str], n: int, *, draws: int, confidence: float, seed: int
) -> Interval:
    """`distinct` with a bias-corrected bootstrap interval over the texts.

    A resample has some texts twice, which alone lowers its diversity. So the quantiles are shifted
    by the difference between the estimate and the mean of the resamples.

    Args:
        draws, confidence, seed: as in `bootstrap`.
    """
    estimate, grams = distinct(texts, n), _grams(texts, n)
    numbers: dict[tuple[str, ...], int] = {}
    rows = [
        np.array([numbers.setdefault(gram, len(numbers)) for gram in mine], int) for mine in grams
    ]
    counts, rng = np.array([len(row) for row in rows]), np.random.default_rng(seed)
    shares = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(len(rows), size=len(rows))
        seen = np.zeros(len(numbers), bool)
        seen[np.concatenate([rows[index] for index in np.unique(chosen)])] = True
        shares[draw] = seen.sum() / max(counts[chosen].sum(), 1)
    ends = np.quantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.clip(estimate + ends - shares.mean(), 0.0, 1.0)
    return Interval(estimate, float(low), float(high))


def _grams(texts: Sequence[str], n: int) -> list[list[tuple[str, ...]]]:
    """The n-grams of each text."""
    split = [text.lower().split() for text in texts]
    return [
        [tuple(words[start : start + n]) for start in range(len(words) - n + 1)] for words in split
    ]


def word_counts(texts: Sequence[str]) -> np.ndarray:
    """f64[texts]: the number of whitespace-separated words of each."""
    return np.array([len(text.split()) for text in texts], np.float64)


def signed(value: float, digits: int) -> str:
    """Format a difference with its sign; the minus is U+2212."""
    return f"{value:+.{digits}f}".replace("-", "−")
