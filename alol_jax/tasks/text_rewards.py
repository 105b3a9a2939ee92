"""Rewards that need no reward model. Any task can use them."""

from __future__ import annotations

from alol_jax.types import RewardSpec

TEXT_REWARDS = (
    RewardSpec("positivity", "vader_positivity", "{response}", 1.0),
    RewardSpec("diversity", "tfidf_diversity", "{response}", 5.0**-0.5),
    RewardSpec("safety", "nontoxicity", "{response}", 1.0),
)
"""What depends on the response alone; every task offers these."""

NOVELTY = RewardSpec("novelty", "novelty", "{prompt}\x1f{response}", 1.0)
"""The share of new words, which punishes echoes of the prompt and repetition."""
