"""Checks of an objective against the scored rows, before anything is trained on them."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.objectives.registry import Objective, columns_read, num_responses
from alol_jax.training.items import ranked_items
from alol_jax.training.validation import CHOSEN_BY, likelihood_weights
from alol_jax.types import ScoredSplits


def check_scored(config: ConfigDict, objective: Objective, scored: ScoredSplits) -> None:
    """Check that the rewards of the rows are what the objective needs.

    Raises:
        UserError: all training rewards are equal and the objective, or the scorer that is to be
            fitted, learns from their differences; it weighs rows by rewards below 0; no prompt has
            the responses that it compares; or no difference among the validation rewards can
            choose a step. The message names the way out.
    """
    name, reward = config.objective.name, scored.train["reward"]
    learning = {
        f"the objective {name}": {"reward", "advantage"}
        & columns_read(objective, config.policy.filter),
        "the value head (config.select.columns)": "advantage" in config.select.columns,
        "config.score.distil": config.score.distil,
    }
    what = next((what for what, learns in learning.items() if learns), None)
    if what is not None and reward.min() == reward.max():
        raise UserError(
            f"all {len(reward)} training rewards are {reward[0]:g}, and {what} learns from their "
            "differences: use rows with different rewards, a scorer in config.rewards, or the "
            "objective nll"
        )
    if objective.positive:
        _check_positive(name, reward)
    count = num_responses(objective, config.objective)
    if count > 1:
        texts = scored.train["response"]
        ranked_items(scored.train, texts, count, config.policy.ranking, name)
    scores = any(config.rewards.values()) or config.score.distil
    if not scores and config.policy.choose_by not in CHOSEN_BY:
        likelihood_weights(scored)


def _check_positive(name: str, reward: np.ndarray) -> None:
    below = reward < 0
    if below.any() or not (reward > 0).any():
        said = f"{below.sum()} of {len(reward)} training rewards are below 0"
        if not below.any():
            said = f"all {len(reward)} training rewards are 0"
        raise UserError(
            f"the objective {name} weighs each row by its reward, and {said} (the least is "
            f"{reward.min():g}): choose config.score.transform=minmax, sigmoid or rank, or an "
            "objective of the A-LoL family, which needs no positive rewards"
        )
