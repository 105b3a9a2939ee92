"""generate: the reference's scored answers to the validation prompts."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Setup, one_per_prompt
from alol_jax.types import Answers, Policy, ScoredSplits, StageContext


def generate(
    setup: Setup,
    options: ConfigDict,
    scored: ScoredSplits,
    reference: Policy,
    *,
    context: StageContext,
) -> Answers:
    """Generate and score the reference's answers, the targets of the value head.

    If nothing can score an answer, the data's validation responses are used instead: the reference
    was trained to imitate them.

    Args:
        setup: its seed seeds the sampling if the temperature is above 0.
        options: ``config.generate``.
    """
    reward = setup.reward(scored)
    if not reward.names:
        context.say(
            "no scorer: the data's validation responses stand in for the reference's "
            "(config.score.distil fits a scorer to the stored rewards)"
        )
        return Answers(scored.validation)
    asked = one_per_prompt(scored.validation)
    rows = setup.stochastic_sampler(options).answer(
        reference.trained,
        asked.take(np.repeat(np.arange(len(asked)), options.samples)),
        reward,
        key=jax.random.fold_in(jax.random.key(setup.seed), 2),
        watch=context.watch("answers"),
    )
    context.say(
        f"{len(rows)} answers, mean reward {np.mean(rows['reward']):.3f} "
        f"(the data's: {np.mean(scored.validation['reward']):.3f})"
    )
    return Answers(rows)
