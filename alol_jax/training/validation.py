"""How a policy is looked at while it is fitted: one number, larger is better."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import answer, one_per_prompt
from alol_jax.decoding.sampling import decoding_of
from alol_jax.models.language_model import LanguageModel
from alol_jax.rewards.reward import Scoring
from alol_jax.training.annotate import annotate
from alol_jax.training.batches import tokenise
from alol_jax.types import Params, ScoredSplits, StageContext, Task, UserError

Validate = Callable[[Params], float]


def make_validation(
    lm: LanguageModel,
    task: Task,
    scoring: Scoring,
    decoding: ConfigDict,
    scored: ScoredSplits,
    batch_size: int,
    context: StageContext,
) -> tuple[str, Validate]:
    """What selects the step, and how it is measured: trained leaves -> a score.

    The mean reward of the likeliest answers to the validation prompts; where nothing can score an
    answer, the reward-weighted likelihood of the validation responses.

    Args:
        scoring: what the reward is; decoding: ``config.decode``.
        batch_size: rows whose likelihood is computed together.

    Raises:
        UserError: nothing can score an answer, and all validation rewards are equal.
    """
    reward = scoring.reward([row.response for row in scored.train])
    if not reward.names:
        measured = "reward-weighted logp of validation responses"
        return measured, _likelihood(lm, task, scored, batch_size, context)
    asked = one_per_prompt(scored.validation)

    def mean_reward(trained: Params) -> float:
        rows = answer(
            lm,
            task,
            trained,
            asked,
            reward,
            decoding_of(decoding),
            batch_size=decoding.batch_size,
            key=jax.random.key(0),
            label="validation answers",
            say=context.say,
            stopping=context.stopping,
        )
        return float(np.mean([row.reward for row in rows]))

    return "mean validation reward", mean_reward


def _likelihood(lm, task, scored, batch_size, context) -> Validate:
    """Σ w logp / Σ w over the validation rows, w = max(reward − mean reward, 0)."""
    rows, cut = tokenise(scored.validation, task.template, lm.tokenizer, lm.shapes)
    context.say(f"validation: {cut.said(len(rows), lm.shapes)}")
    reward = np.array([row.reward for row in rows])
    weight = np.maximum(reward - reward.mean(), 0.0)
    if not weight.any():
        raise UserError("all validation rewards are equal: there is nothing to select a step by")

    def weighted_logp(trained: Params) -> float:
        logps, _ = annotate(
            lm,
            trained,
            rows,
            batch_size=batch_size,
            label="validation rows",
            stopping=context.stopping,
        )
        return float(np.average([logp.sum() for logp in logps], weights=weight))

    return weighted_logp
