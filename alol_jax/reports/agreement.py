"""How well a scorer agrees with the stored rewards of rows that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alol_jax.reports.statistics import bootstrap, pearson, per_cluster, spearman
from alol_jax.training.pairs import Pairs, pairs_across, pairs_of
from alol_jax.types import Agreement, Interval

DRAWS, CONFIDENCE = 10_000, 0.95


def agreement(
    scorer: str,
    score: np.ndarray,
    reward: np.ndarray,
    prompt: np.ndarray,
    responses: Sequence[str],
    *,
    on_scale: np.ndarray,
) -> Agreement | None:
    """Compare a scorer with the rewards of rows; None if all rewards are equal.

    A pair is two responses to one prompt with different rewards, or, if no prompt has any, two
    rows with different rewards. It counts ½ if the scores are equal. The interval of the order is
    a bootstrap over prompts, or over rows.

    Args:
        scorer: its name.
        score, reward: f64[rows].
        prompt: i64[rows], the prompt of each row.
        on_scale: f64[rows], the scores brought to the scale of the rewards.
    """
    pairs = pairs_of(prompt, reward)
    within = bool(len(pairs))
    if not within:
        pairs = pairs_across(reward)
    if not len(pairs):
        return None
    owner = prompt[pairs.better] if within else None
    length = np.array([len(text) for text in responses], np.float64)
    return Agreement(
        scorer=scorer,
        rows=len(reward),
        pairs=len(pairs),
        within=within,
        order=_order(pairs, score, owner),
        by_length=float(pairs.ordered(length).mean()),
        pearson=_finite(pearson(score, reward)),
        spearman=_finite(spearman(score, reward)),
        bias=float(np.mean(score - reward)),
        remaining=float(np.mean(on_scale - reward)),
        mse=float(np.mean((on_scale - reward) ** 2)),
        variance=float(np.var(reward)),
    )


def _order(pairs: Pairs, score: np.ndarray, owner: np.ndarray | None) -> Interval:
    """The share of the pairs that are ordered alike.

    Args:
        owner: i64[pairs], the prompt of each pair; None for pairs of any two rows, where each row
            has half of its pairs.
    """
    right = pairs.ordered(score)
    if owner is None:
        owner, right = np.concatenate([pairs.better, pairs.worse]), np.tile(right, 2)
        column = per_cluster(right, owner, scale=2.0)
    else:
        column = per_cluster(right, owner)
    return bootstrap(column, draws=DRAWS, confidence=CONFIDENCE, seed=0)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
