"""generate: the reference answers the validation prompts, and its answers are scored."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import answer, one_per_prompt
from alol_jax.decoding.sampling import drawing_of
from alol_jax.models.language_model import LanguageModel
from alol_jax.rewards import reward as rewards
from alol_jax.types import Answers, Policy, ScoredSplits, StageContext, Task


def generate(
    lm: LanguageModel,
    task: Task,
    scoring: rewards.Scoring,
    options: ConfigDict,
    decoding: ConfigDict,
    seed: int,
    scored: ScoredSplits,
    reference: Policy,
    *,
    context: StageContext,
) -> Answers:
    """What the reference can expect for a prompt shows in what its own answers earn.

    Where nothing can score an answer, the data's own validation responses stand in: the reference
    was fitted to imitate them.

    Args:
        scoring: what the reward is.
        options: ``config.generate``; ``decoding``: ``config.decode``.
        seed: of the draws, where the temperature is above 0.
    """
    reward = scoring.reward([row.response for row in scored.train])
    if not reward.names:
        context.say("no scorer: the data's validation responses stand in for the reference's")
        return Answers(scored.validation)
    rows = answer(
        lm,
        task,
        reference.trained,
        [row for row in one_per_prompt(scored.validation) for _ in range(options.samples)],
        reward,
        drawing_of(decoding, options),
        batch_size=decoding.batch_size,
        key=jax.random.fold_in(jax.random.key(seed), 2),
        label="answers",
        say=context.say,
        stopping=context.stopping,
    )
    context.say(
        f"{len(rows)} answers, mean reward {np.mean([row.reward for row in rows]):.3f} "
        f"(the data's: {np.mean([row.reward for row in scored.validation]):.3f})"
    )
    return Answers(rows)
