"""Best of n: the reference's best answer of n, by the reward.

The baseline that trains nothing. Its KL to the reference is at most log n − (n − 1)/n (Beirami et
al. 2024, arXiv:2401.01879), which is what a frontier shows.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Setup, one_per_prompt
from alol_jax.types import Policy, ScoredSplits, Watch

KEY = 8  # of its draws; the stages of a run use smaller numbers


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """Mean rewards over the test prompts.

    Attributes:
        n: how many answers there are to choose from.
        rewards: for each n, the best reward of each test prompt.
        kl: for each n, the bound of the KL in nats.
    """

    n: tuple[int, ...]
    rewards: tuple[tuple[float, ...], ...]
    kl: tuple[float, ...]


def best_of_n(
    setup: Setup,
    options: ConfigDict,
    counts: tuple[int, ...],
    scored: ScoredSplits,
    reference: Policy,
    *,
    watch: Watch,
) -> BestOfN:
    """Sample the largest of ``counts`` answers per test prompt; the first n of them count for n.

    Args:
        options: ``config.generate``, with a temperature above 0.
    """
    asked, most = one_per_prompt(scored.test), max(counts)
    rows = setup.stochastic_sampler(options).answer(
        reference.trained,
        asked.take(np.repeat(np.arange(len(asked)), most)),
        setup.reward(scored),
        key=jax.random.fold_in(jax.random.key(setup.seed), KEY),
        watch=watch,
    )
    each = rows["reward"].reshape(len(asked), most)
    return BestOfN(
        tuple(counts),
        tuple(tuple(map(float, each[:, :n].max(axis=1))) for n in counts),
        tuple(kl_bound(n) for n in counts),
    )


def kl_bound(n: int) -> float:
    """Return log n − (n − 1)/n, in nats."""
    return math.log(n) - (n - 1) / n
