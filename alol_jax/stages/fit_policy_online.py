"""fit_policy_online: the policy π, trained with PPO from the reference on its own responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Setup
from alol_jax.devices.sharding import place_like_params, place_params
from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.ppo import Moments
from alol_jax.text.packing import lengths_of
from alol_jax.training import flops
from alol_jax.training.fit import fit_best, init_state, make_update, plan_steps
from alol_jax.training.fit_in_memory import fit_in_memory
from alol_jax.training.grids import SAMPLE_STEPS, Packer, make_packer
from alol_jax.training.online import (
    OnlineState,
    PPOIteration,
    init_values,
    make_forward,
    make_targets,
    ppo_forward,
    ppo_loss,
)
from alol_jax.training.optim import make_optimizer, warmup_warning
from alol_jax.training.rollouts import (
    Rollouts,
    anchor_params,
    check_rollouts,
    make_rollouts,
    steps_per_rollout,
)
from alol_jax.training.validation import make_validator
from alol_jax.types import Policy, ScoredSplits, StageContext, TrainingTable


def fit_policy_online(
    setup: Setup,
    options: ConfigDict,
    hyper: ConfigDict,
    scored: ScoredSplits,
    table: TrainingTable,
    reference: Policy,
    *,
    context: StageContext,
) -> Policy:
    """Train π with PPO and keep the step with the best validation reward.

    One step is one rollout: the policy answers some training prompts, the answers are scored, and
    the policy trains on them with `ppo.ppo` for a few epochs of minibatches. Dropout is off, so
    that ρ = 1 until the first update. An interrupted run stops between rollouts.

    Args:
        setup: its seed plus ``options.seed`` seeds the prompt order, sampling and row order.
        options: ``config.policy``: optimizer, validations and checkpoints, counted in rollouts.
        hyper: ``config.ppo``.
        table: its prompts are used, each once per epoch however many responses it has.

    Raises:
        UserError: nothing can score a response; also see `check_rollouts`.
    """
    lm, seed = setup.lm, setup.seed + options.seed
    check_rollouts(hyper, setup.decoding, lm)
    reward = setup.reward(scored)
    if not reward.names:
        raise UserError(
            "the objective ppo learns from what its policy writes, and nothing can score that: "
            "give one of config.rewards a weight above 0, or name a model in config.reward_models"
        )
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 6), 3)
    rollouts = make_rollouts(setup, reward, hyper, table.rows, seed=seed, key=keys[0])
    per_rollout = steps_per_rollout(hyper)
    context.say(
        f"{hyper.rollouts} rollouts of {hyper.prompts} of {len(rollouts.rows)} prompts, "
        f"{per_rollout} optimizer steps each, anchor: {hyper.anchor}"
    )
    for line in warmup_warning(options.optimizer, hyper.rollouts * per_rollout):
        context.say(line)
    tx = make_optimizer(options.optimizer, steps=hyper.rollouts * per_rollout)
    state = _start(lm, tx, hyper, reference)
    anchor = anchor_params(hyper.anchor, lm, reference.trained)
    packer = _packer(lm, rollouts, hyper.batch_size, setup.decoding.max_new_tokens)
    context.say(packer.summary)
    forward, targets = make_forward(lm), make_targets(hyper, lm.mesh)
    update = make_update(ppo_forward(lm), ppo_loss(hyper), tx, keys[2], state.train)

    measured = reference.trained if options.validation_kl else None

    def fit(packer: Packer) -> Policy:
        iteration = PPOIteration(
            rollouts,
            hyper,
            keys[1],
            anchor,
            packer,
            forward=forward,
            targets=targets,
            update=update,
            decoding_flops=_decoding_flops(lm),
        )
        return fit_best(
            state,
            lm.frozen(),
            rollouts.prompts,
            iteration,
            plan_steps(options, hyper.rollouts),
            make_validator(setup, scored, options.choose_by, context, reference=measured),
            context,
            label="fit_policy_online",
        )

    return fit_in_memory(lm, packer, fit, context, label="fit_policy_online")


def _start(lm: LanguageModel, tx: Any, hyper: ConfigDict, reference: Policy) -> OnlineState:
    """The initial state: the reference's parameters and a value head that outputs 0."""
    trained = place_params(reference.trained, lm.mesh) | init_values(lm)
    kl_coef = jnp.float32(hyper.kl_coef)
    state = OnlineState(jnp.int32(0), init_state(trained, tx), kl_coef, Moments.empty())
    return place_like_params(state, lm.mesh)


def _packer(lm: LanguageModel, rollouts: Rollouts, batch_size: int, new_tokens: int) -> Packer:
    """Grids for the prompts of the first rollouts with responses as long as the data's."""
    prompts, responses = (rollouts.rows[name].lengths for name in ("prompt", "response"))
    expected = lengths_of(prompts, np.minimum(responses, new_tokens)[:, None], share=True)
    longest = (int(prompts.max()) + new_tokens, new_tokens)
    draws = [rollouts.order(rollout)[:batch_size] for rollout in range(SAMPLE_STEPS)]
    return make_packer(lm, expected, draws, longest=longest, length=new_tokens)


def _decoding_flops(lm: LanguageModel) -> Callable[[int, int], float]:
    """(tokens of the prompt, tokens of the response) -> FLOPs of writing it, in a slot."""
    trained, frozen = lm.abstract()
    leaves, config = {**frozen, **trained}, lm.transformer.config
    return lambda prompt, new: flops.decoding(
        leaves, config, rows=1, beams=1, prompt=prompt, new=new
    )
