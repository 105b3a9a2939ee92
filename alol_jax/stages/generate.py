"""generate: the reference answers the validation prompts, and its answers are scored."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax import rewards
from alol_jax.decode import Sampling, respond
from alol_jax.language_model import LanguageModel
from alol_jax.sharding import place_params
from alol_jax.types import Answers, Policy, ScoredSplits, StageContext, Task


def generate(
    lm: LanguageModel,
    task: Task,
    weights: ConfigDict,
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
        weights: ``config.rewards``.
        options: ``config.generate``; ``decoding``: ``config.decode``.
        seed: of the draws, where the temperature is above 0.
    """
    reward = rewards.build(
        task.rewards,
        rewards.weights_of(task.rewards, weights),
        [row.response for row in scored.train],
    )
    if not reward.names:
        context.say("no scorer: the data's validation responses stand in for the reference's")
        return Answers(scored.validation)
    asked = tuple({row.example_id: row for row in scored.validation}.values())
    asked = tuple(row for row in asked for _ in range(options.samples))
    params = {**lm.frozen(), **place_params(reference.trained, lm.mesh)}
    responses = respond(
        lm.transformer,
        params,
        lm.tokenizer,
        [
            lm.tokenizer.prompt(task.template, row.prompt, limit=lm.prompt_widths[-1])
            for row in asked
        ],
        Sampling(
            decoding.max_new_tokens,
            options.temperature,
            options.top_k,
            options.top_p,
            end=(lm.tokenizer.eos_id,),
        ),
        widths=lm.prompt_widths,
        batch_size=decoding.batch_size,
        key=jax.random.fold_in(jax.random.key(seed), 2),
        mesh=lm.mesh,
        stop_texts=task.stop,
        label="answers",
    )
    rows = reward.rows(asked, responses)
    context.say(
        f"{len(rows)} answers, mean reward {np.mean([row.reward for row in rows]):.3f} "
        f"(the data's: {np.mean([row.reward for row in scored.validation]):.3f})"
    )
    return Answers(rows)
