"""fit_policy: the policy π, trained from the reference on the kept rows with an objective."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Setup
from alol_jax.devices.sharding import place_like_params, place_params
from alol_jax.errors import UserError
from alol_jax.objectives.advantage import SAMPLING, priority, resolve_sampling
from alol_jax.objectives.registry import (
    Objective,
    drops_rows,
    hyper_parameters,
    num_responses,
)
from alol_jax.tables.table import Table
from alol_jax.training.batches import priority_draw, read_ahead, shuffled
from alol_jax.training.fit import (
    fit_best,
    init_state,
    make_update,
    plan_epochs,
    policy_forward,
)
from alol_jax.training.fit_in_memory import fit_in_memory
from alol_jax.training.grids import Packer, packer_of
from alol_jax.training.items import Items, first_responses, ranked_items, single_items
from alol_jax.training.optim import make_optimizer, warmup_warning
from alol_jax.training.validation import make_validator
from alol_jax.types import Annotated, Policy, ScoredSplits, StageContext, TrainingTable


def fit_policy(
    setup: Setup,
    objective: Objective,
    hyper: ConfigDict,
    options: ConfigDict,
    scored: ScoredSplits,
    table: TrainingTable,
    reference: Policy,
    *,
    context: StageContext,
) -> Policy:
    """Train π and keep the step whose likeliest validation answers have the highest mean reward.

    An epoch is one pass over the items that can be sampled: the rows that ``options.filter``
    leaves, or pairs of them. If nothing can score an answer, the step is chosen by the
    reward-weighted likelihood of the validation responses.

    Args:
        setup: its seed plus ``options.seed`` seeds row order and dropout.
        objective: a row of `registry.OBJECTIVES`.
        hyper: ``config.objective``; the objective takes the hyper-parameters that it names.
        options: ``config.policy``.

    Raises:
        UserError: rows with A ≤ 0 are dropped and no row is left, or the objective needs several
            responses per prompt and no prompt has them.
    """
    lm, seed = setup.lm, setup.seed + options.seed
    items, weight, sampling = _sampling_items(lm, objective, hyper, options, table, context.say)
    plan = plan_epochs(options, int(np.count_nonzero(weight)))
    draw = _draw_order(weight, sampling, options.batch_size, seed)
    packer = packer_of(lm, items, draw)
    context.say(f"{np.count_nonzero(weight)} items, {sampling} sampling, {plan.steps} steps")
    context.say(packer.summary)
    for line in warmup_warning(options.optimizer, plan.steps):
        context.say(line)
    tx = make_optimizer(options.optimizer, steps=plan.steps)
    # No name for the copy on the mesh, so that its memory is freed before training.
    state = place_like_params(init_state(place_params(reference.trained, lm.mesh), tx), lm.mesh)

    chosen = {name: hyper[name] for name in hyper_parameters(objective)}
    branches = packer.layout.share and items.members.shape[1] > 1

    measured = reference.trained if options.validation_kl else None

    def fit(packer: Packer) -> Policy:
        return fit_best(
            state,
            lm.frozen(),
            read_ahead(items, draw, packer, lm.mesh),
            make_update(
                policy_forward(lm.transformer, chunk=lm.logprob_chunk, branches=branches),
                functools.partial(objective.loss, **chosen),
                tx,
                jax.random.fold_in(jax.random.key(seed), 5),
                state,
            ),
            plan,
            make_validator(setup, scored, options.choose_by, context, reference=measured),
            context,
            label="fit_policy",
        )

    return fit_in_memory(lm, packer, fit, context, label="fit_policy")


def _sampling_items(lm, objective, hyper, options, table, say) -> tuple[Items, np.ndarray, str]:
    """The items to sample from, their sampling weights, and the name of the sampling."""
    sampling = resolve_sampling(options.sampling, objective.draw_by)
    drops = drops_rows(objective, options.filter)
    kept = table.rows["kept"] | (not drops)
    candidate = first_responses(table.rows) | (not SAMPLING[sampling].good)
    if drops:
        _check_some_kept(table.rows, kept, candidate, sampling)
    rows = table.rows.where(kept & candidate)
    count = num_responses(objective, hyper)
    if count > 1:
        texts = rows["response_text"]
        ranked = ranked_items(rows, texts, count, options.ranking, hyper.name)
        say(f"{hyper.name}: {ranked.summary(count, options.ranking)}")
        items = ranked.items
    else:
        items = single_items(rows)
    drawn_by = rows[objective.draw_by or "reward"][items.members[:, 0]]
    return items, SAMPLING[sampling].weigh(drawn_by), sampling


def _check_some_kept(
    rows: Table[Annotated], kept: np.ndarray, candidate: np.ndarray, sampling: str
) -> None:
    if kept.any() and not (kept & candidate).any():
        raise UserError(
            f"config.policy.sampling={sampling}: none of the {candidate.sum()} first responses has "
            f"a positive advantage, but {kept.sum()} others have: sample from all responses "
            "(all_priority, all_random or uniform)"
        )
    if not kept.any():
        best = rows["advantage"].max()
        raise UserError(
            f"none of {len(rows)} training rows has a positive advantage (the best is {best:.4f}): "
            "the reference already earns more than the data: add better rows, or train the value "
            "head for longer (config.value.epochs), or use an objective that reads the reward "
            "(r_lol)"
        )


def _draw_order(
    weight: np.ndarray, sampling: str, size: int, seed: int
) -> Callable[[int], np.ndarray]:
    """step -> the items of its batch: shuffled epochs, or weighted draws with replacement."""
    if SAMPLING[sampling].weigh is priority:
        return priority_draw(weight, size=size, seed=seed)
    return shuffled(weight > 0, size=size, seed=seed)
