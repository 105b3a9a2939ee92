"""Rewards that depend only on the response text. Any task can use them."""

from __future__ import annotations

from alol_jax.types import RewardSpec

TEXT_REWARDS = (
    RewardSpec("positivity", "vader_positivity", "{response}", 1.0),
    RewardSpec("diversity", "tfidf_diversity", "{response}", 5.0**-0.5),
    RewardSpec("safety", "nontoxicity", "{response}", 1.0),
)
