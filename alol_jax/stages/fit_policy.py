"""fit_policy: the policy π, from the reference, on the kept rows with the chosen objective."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax import rewards
from alol_jax.advantage import SAMPLING, sampling_of
from alol_jax.annotate import annotate
from alol_jax.answers import answer, one_per_prompt
from alol_jax.batches import (
    Items,
    priority_draw,
    ranked_items,
    read_ahead,
    shuffled,
    single_items,
    tokenise,
)
from alol_jax.fit import Plan, fit_best, init_state, make_plan, make_update, policy_loss
from alol_jax.language_model import LanguageModel
from alol_jax.objectives import Objective, hyper_parameters
from alol_jax.optim import make_optimizer
from alol_jax.sampling import decoding_of
from alol_jax.sharding import place_like_params, place_params
from alol_jax.types import (
    Params,
    Policy,
    ScoredSplits,
    StageContext,
    Task,
    TrainingTable,
    UserError,
)


def fit_policy(
    lm: LanguageModel,
    task: Task,
    objective: Objective,
    hyper: ConfigDict,
    weights: ConfigDict,
    options: ConfigDict,
    decoding: ConfigDict,
    seed: int,
    scored: ScoredSplits,
    table: TrainingTable,
    reference: Policy,
    *,
    context: StageContext,
) -> Policy:
    """Fits π and keeps the step whose likeliest answers to the validation prompts earn most.

    An epoch is one pass over the items that may be drawn: the kept rows, or pairs of them. Where
    nothing can score an answer, the step is chosen by the reward-weighted likelihood of the
    validation responses.

    Args:
        objective: a row of the table of objectives.
        hyper: ``config.objective``; the objective takes those it names.
        weights: ``config.rewards``; options: ``config.policy``; decoding: ``config.decode``.
        seed: of row order and dropout.
    """
    items, keep, sampling = _drawable(lm, objective, options, table)
    plan = make_plan(options, int(np.count_nonzero(keep > 0)))
    draw = _order(items, keep, sampling, options, seed, plan)
    context.say(f"{np.count_nonzero(keep)} items, {sampling} sampling, {plan.steps} steps")
    tx = make_optimizer(options.optimizer, steps=plan.steps)
    # Not under a name: what the policy starts from need not stay in memory beside it.
    state = place_like_params(init_state(place_params(reference.trained, lm.mesh), tx), lm.mesh)

    batches = read_ahead(items, draw, options.accumulate, lm.tokenizer.pad_id, lm.mesh)
    chosen = {name: hyper[name] for name in hyper_parameters(objective)}
    loss = functools.partial(objective.loss, **chosen)
    metric, validate = _validation(lm, task, weights, decoding, scored, options.batch_size, context)
    return fit_best(
        state,
        lm.frozen(),
        batches,
        make_update(
            policy_loss(lm.transformer, loss, chunk=lm.logprob_chunk),
            tx,
            jax.random.fold_in(jax.random.key(seed), 5),
            state,
        ),
        plan,
        metric=metric,
        validate=validate,
        context=context,
        label="fit_policy",
    )


def _drawable(lm, objective, options, table) -> tuple[Items, np.ndarray, str]:
    """The items of the kept rows, the chance of each, and the sampling that gives it."""
    rows = [row for row in table.rows if row.kept]
    sampling = sampling_of(options.sampling, objective.draw_by)
    if objective.responses > 1:
        items = ranked_items(rows, lm.shapes, objective.responses)
    else:
        items = single_items(rows, lm.shapes)
    drawn_by = [getattr(rows[m[0]], objective.draw_by or "reward") for m in items.members]
    return items, SAMPLING[sampling](np.array(drawn_by)), sampling


def _order(
    items: Items, chance: np.ndarray, sampling: str, options: ConfigDict, seed: int, plan: Plan
) -> Callable[[int], np.ndarray]:
    """Equal chances go in shuffled epochs; unequal ones are drawn with replacement."""
    size = options.batch_size * options.accumulate
    if sampling == "priority":
        return priority_draw(items, chance, size=size, seed=seed)
    return shuffled(items, chance > 0, size=size, seed=seed, steps=plan.steps)


def _validation(
    lm, task, weights, decoding, scored, batch_size, context
) -> tuple[str, Callable[[Params], float]]:
    """What selects the step, and how it is measured."""
    reward = rewards.of_task(task, weights, [row.response for row in scored.train])
    if not reward.names:
        return "reward-weighted logp of validation responses", _likelihood(
            lm, task, scored, batch_size, context
        )
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


def _likelihood(lm, task, scored, batch_size, context) -> Callable[[Params], float]:
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
