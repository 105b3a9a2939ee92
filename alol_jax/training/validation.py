"""The validation score that selects the best step of a fit. Larger is better."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from alol_jax.decoding.answers import Setup, one_per_prompt
from alol_jax.errors import UserError
from alol_jax.training.annotate import annotate, sums
from alol_jax.training.fit import Validator
from alol_jax.training.items import tokenise
from alol_jax.types import Params, ScoredSplits, StageContext, silent


def make_validator(
    setup: Setup, scored: ScoredSplits, choose_by: str, context: StageContext
) -> Validator:
    """Make the validator: the mean reward of deterministic answers to the validation prompts.

    Without a scorer for generated answers, it is the reward-weighted log-likelihood of the
    validation responses instead.

    Args:
        choose_by: a component of the reward, to be used alone; "" = the whole reward.

    Raises:
        UserError: there is no scorer, and all validation rewards are equal.
    """
    reward = setup.reward(scored)
    if not reward.names:
        metric = "reward-weighted logp of validation responses"
        return Validator(metric, _likelihood(setup, scored, context))
    rows, sampler = one_per_prompt(scored.validation), setup.deterministic_sampler()

    def mean_reward(trained: Params) -> float:
        watch = context.watch("validation answers")
        answers = sampler.answer(trained, rows, reward, key=jax.random.key(0), watch=watch)
        if not choose_by:
            return float(np.mean(answers["reward"]))
        return float(np.mean(answers["components"].matrix[:, reward.names.index(choose_by)]))

    return Validator(f"mean validation {choose_by or 'reward'}", mean_reward)


def _likelihood(
    setup: Setup, scored: ScoredSplits, context: StageContext
) -> Callable[[Params], float]:
    """Return a score: Σ w logp / Σ w over the validation rows, w = max(reward − mean reward, 0)."""
    lm = setup.lm
    rows, cut = tokenise(scored.validation, setup.task, lm.tokenizer, lm.limits)
    context.say(f"validation: {cut.summary(len(rows), lm.limits)}")
    reward = rows["reward"]
    weight = np.maximum(reward - reward.mean(), 0.0)
    if not weight.any():
        raise UserError("all validation rewards are equal: there is nothing to select a step by")

    def weighted_logp(trained: Params) -> float:
        logps, _ = annotate(
            lm,
            trained,
            rows,
            watch=context.watch("validation rows")._replace(say=silent),
        )
        return float(np.average(sums(logps), weights=weight))

    return weighted_logp
