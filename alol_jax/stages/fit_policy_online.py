"""fit_policy_online: the policy π by PPO, from the reference, on what it writes itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Setup
from alol_jax.devices.sharding import place_like_params, place_params, place_rows, replicated
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.logprobs import joined, response_logp, response_states
from alol_jax.objectives.ppo import (
    Moments,
    PPOTargets,
    adaptive_kl,
    explained_variance,
    ppo,
    ppo_advantages,
    ppo_token_rewards,
)
from alol_jax.training import flops
from alol_jax.training.costs import step_flops
from alol_jax.training.fit import (
    LossFn,
    TrainState,
    Update,
    fit,
    fit_best,
    init_state,
    make_update,
    plan_steps,
)
from alol_jax.training.optim import make_optimizer, warmup_warning
from alol_jax.training.rollouts import (
    RolloutPrompts,
    Rollouts,
    anchor_params,
    check_rollouts,
    make_rollouts,
    steps_per_rollout,
)
from alol_jax.training.validation import make_validator
from alol_jax.types import (
    Cost,
    Params,
    Policy,
    ScoredSplits,
    StageContext,
    Tokens,
    TrainingTable,
    UserError,
)

VALUE = ("value/kernel", "value/bias")
"""Paths of the token values' leaves: they train with the policy and are no part of it."""


class OnlineState(NamedTuple):
    """Everything that a run needs to go on as if nothing had happened."""

    step: jax.Array  # i32[], rollouts learned from
    train: TrainState  # of the policy's leaves and those of its values
    kl_coef: jax.Array  # f32[], of the next rollout
    moments: Moments  # of all scores so far

    @property
    def trained(self) -> Params:
        """The policy's leaves."""
        return {path: leaf for path, leaf in self.train.trained.items() if path not in VALUE}


class Minibatch(NamedTuple):
    """Responses with what is known of them; leaves [A, B, …] for A micro-batches."""

    tokens: Tokens
    targets: PPOTargets


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
    """Fits π on rollouts and keeps the one after which its likeliest validation answers earn most.

    A step of this stage is a rollout: the policy answers some training prompts, its answers are
    scored, and it learns from them by `ppo.ppo`, a few passes in minibatches. Dropout is off
    throughout: ρ is 1 until the policy has moved. Interrupted, it stops after a whole rollout.

    Args:
        setup: its seed plus ``options.seed`` is that of prompts, draws and row order.
        options: ``config.policy``: optimizer, validations and checkpoints, counted in rollouts.
        hyper: ``config.ppo``.
        table: whose prompts are asked, each once an epoch however many responses it has.

    Raises:
        UserError: nothing can score a response; see `check_rollouts` besides.
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
    loss, plan = online_loss(lm, hyper), plan_steps(options, hyper.rollouts)
    phase = Phase(
        rollouts,
        hyper,
        keys[1],
        anchor,
        read=_reader(lm),
        judge=_judge(hyper, lm.mesh),
        update=make_update(loss, tx, keys[2], state.train),
        bill=_bill(lm, hyper, rollouts.sampler.batch_size),
    )
    policy = fit_best(
        state,
        lm.frozen(),
        rollouts.prompts,
        phase,
        plan,
        make_validator(setup, scored, options.batch_size, context),
        context,
        label="fit_policy_online",
    )
    return dataclasses.replace(policy, cost=_cost(policy))


def _start(lm: LanguageModel, tx: Any, hyper: ConfigDict, reference: Policy) -> OnlineState:
    """The reference, with values of 0 for every token."""
    trained = place_params(reference.trained, lm.mesh) | value_leaves(lm)
    kl_coef = jnp.float32(hyper.kl_coef)
    state = OnlineState(jnp.int32(0), init_state(trained, tx), kl_coef, Moments.none())
    return place_like_params(state, lm.mesh)


def value_leaves(lm: LanguageModel) -> Params:
    """The leaves of `VALUE`: 0 for every token."""
    return {"value/kernel": jnp.zeros((lm.transformer.config.width,)), "value/bias": jnp.zeros(())}


# ------------------------------------------------------------------ one rollout


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """The update of this stage: a rollout, and what is learned from it.

    Attributes:
        key: of the order of the responses.
        anchor: leaves of what the KL is measured from.
        read: `_reader`; judge: `_judge`; update: of the minibatches; bill: `_bill`.
    """

    rollouts: Rollouts
    hyper: ConfigDict
    key: jax.Array
    anchor: Params
    read: Callable[..., tuple[jax.Array, ...]]
    judge: Callable[..., tuple]
    update: Update
    bill: Callable[[Tokens], dict[str, float]]

    def __call__(
        self, state: OnlineState, frozen: Params, asked: RolloutPrompts
    ) -> tuple[OnlineState, dict[str, Any]]:
        """(state, frozen, prompts) -> (state, metrics); the training state is donated."""
        rollout, mesh = int(state.step), self.rollouts.sampler.lm.mesh
        written = self.rollouts.generate(state.trained, asked, rollout)
        rows = jax.tree.map(
            lambda x: x.reshape(-1, self.hyper.batch_size, *x.shape[1:]), written.tokens
        )
        found = self.read(state.train.trained, self.anchor, frozen, place_rows(rows, mesh, axis=1))
        found = jax.device_get(found)
        targets, moments, kl_coef, metrics = self.judge(
            state.kl_coef, state.moments, written.score, written.tokens.mask, *found
        )
        train, learned = self._learn(state.train, frozen, written.tokens, targets, rollout)
        step = jax.device_put(state.step + 1, state.step.sharding)
        metrics |= learned | self.bill(written.tokens)
        return OnlineState(step, train, kl_coef, moments), metrics

    def _learn(self, train, frozen, tokens, targets, rollout) -> tuple[TrainState, dict[str, Any]]:
        """The state after all epochs, and the mean of each metric over their steps."""
        whole = Minibatch(tokens, jax.device_get(targets))
        minibatches, logged = self._minibatches(whole, rollout), []
        for _, reached, metrics in fit(train, frozen, minibatches, self.update):
            train = reached
            logged.append(metrics)
        logged = jax.device_get(logged)
        return train, {name: np.mean([line[name] for line in logged]) for name in logged[0]}

    def _minibatches(self, whole: Minibatch, rollout: int) -> Iterator[Minibatch]:
        """Each response once an epoch, in an order that depends on (key, rollout, epoch) alone."""
        lead = (self.hyper.accumulate, self.hyper.batch_size)
        for epoch in range(self.hyper.epochs):
            key = jax.random.fold_in(jax.random.fold_in(self.key, rollout), epoch)
            order = np.asarray(jax.random.permutation(key, self.hyper.prompts))
            for chosen in order.reshape(-1, lead[0] * lead[1]):
                rows = jax.tree.map(lambda x, c=chosen: x[c].reshape(*lead, *x.shape[1:]), whole)
                yield place_rows(rows, self.rollouts.sampler.lm.mesh, axis=1)

    def _cache_size(self) -> int:
        """Programs that were compiled for minibatches: as many as there were shapes."""
        return self.update._cache_size()


# ------------------------------------------------------------------ what it takes


def _bill(lm: LanguageModel, hyper: ConfigDict, decoded: int) -> Callable[[Tokens], dict]:
    """Tokens of a rollout -> its metrics "tokens" and "flops".

    A batch of ``decoded`` rows is written until its longest response has ended.
    """
    trained, frozen = lm.abstract()
    leaves, config = {**frozen, **trained}, lm.transformer.config

    @functools.cache
    def read_and_learn(prompt: int, response: int) -> float:
        rows = hyper.prompts
        one = flops.forward(
            leaves, config, rows=rows, width=prompt + response, head_tokens=rows * response
        )
        learn = step_flops(lm, (prompt, response), hyper.epochs * rows, hyper.batch_size)
        return 2 * one.total + learn

    def bill(tokens: Tokens) -> dict[str, float]:
        prompt, lengths = tokens.prompt.shape[1], tokens.mask.sum(axis=1)
        batches = (lengths[first : first + decoded] for first in range(0, len(lengths), decoded))
        written = sum(
            flops.decoding(
                leaves, config, rows=decoded, beams=1, prompt=prompt, new=int(batch.max())
            )
            for batch in batches
        )
        return {
            "tokens": hyper.epochs * float(tokens.prompt_mask.sum() + tokens.mask.sum()),
            "flops": written + read_and_learn(prompt, tokens.response.shape[1]),
        }

    return bill


def _cost(policy: Policy) -> Cost:
    """The sums over the rollouts, as they were logged."""
    logged = {curve.name: sum(curve.values) for curve in policy.curves}
    return Cost(int(logged["tokens"]), logged["flops"], policy.cost.seconds)


# ------------------------------------------------------------------ what is compiled


def _logp_and_values(lm: LanguageModel, params: Params, tokens: Tokens):
    """log π of each response token f32[B, R], and V of the position that produces it f32[B, R].

    V = w · h + b, on the hidden states of the policy itself, in float32.
    """
    hidden = lm.transformer.hidden(params, *joined(tokens)[:2])
    unembedding = lm.transformer.unembedding(params)
    logp = response_logp(hidden, unembedding, tokens, chunk=lm.logprob_chunk)
    before = response_states(hidden, tokens).astype(jnp.float32)
    with jax.default_matmul_precision("float32"):
        return logp, before @ params["value/kernel"] + params["value/bias"]


def _reader(lm: LanguageModel) -> Callable[..., tuple[jax.Array, ...]]:
    """(trained, anchor, frozen, Tokens [A, B, …]) -> logp, values, logp of the anchor [A, B, R]."""

    @jax.jit
    def read(trained, anchor, frozen, tokens):
        def rows(tokens):
            logp, values = _logp_and_values(lm, {**frozen, **trained}, tokens)
            unvalued = {path: trained[path] for path in VALUE}
            ref_logp, _ = _logp_and_values(lm, {**frozen, **anchor, **unvalued}, tokens)
            return logp, values, ref_logp

        return jax.lax.map(rows, tokens)

    return read


def _judge(hyper: ConfigDict, mesh: Mesh) -> Callable[..., tuple]:
    """(kl_coef, moments, score f32[B], mask f32[B, R], what `_reader` found) -> `PPOTargets`,
    moments and kl_coef of the next rollout, metrics."""

    def judge(kl_coef, moments, score, mask, *found):
        logp, values, ref_logp = (x.reshape(mask.shape) for x in found)
        moments = moments.update(score)
        shown = moments.normalised(score) if hyper.normalise_scores else score
        rewards = ppo_token_rewards(shown, logp, ref_logp, mask, kl_coef=kl_coef)
        advantages, returns = ppo_advantages(
            rewards, values, mask, gamma=hyper.gamma, lam=hyper.lam, whiten=hyper.whiten
        )
        kl = jnp.mean(jnp.sum(logp - ref_logp, axis=1))  # both are 0 on padding
        metrics = {
            "score": jnp.mean(score),
            "score_std": jnp.std(score),
            "normalised_score": jnp.mean(shown),
            "normalised_score_std": jnp.std(shown),
            "kl_to_anchor": kl,
            "kl_coef": kl_coef,
            "token_reward": jnp.mean(jnp.sum(rewards, axis=1)),
            "response_length": jnp.mean(jnp.sum(mask, axis=1)),
            "explained_variance": explained_variance(values, returns, mask),
        }
        coefficient = adaptive_kl(
            kl_coef, kl, target=hyper.kl_target, horizon=hyper.kl_horizon, rollouts=mask.shape[0]
        )
        return PPOTargets(mask, logp, values, advantages, returns), moments, coefficient, metrics

    everywhere = replicated(mesh)
    return jax.jit(judge, out_shardings=everywhere)


def online_loss(lm: LanguageModel, hyper: ConfigDict) -> LossFn:
    """`ppo.ppo` as a function of parameters; micro-batches count by their tokens."""

    def loss_fn(trained: Params, frozen: Params, batch: Minibatch, key: jax.Array):
        logp, values = _logp_and_values(lm, {**frozen, **trained}, batch.tokens)
        loss, metrics = ppo(
            logp,
            values,
            batch.targets,
            clip=hyper.clip,
            value_clip=hyper.value_clip,
            value_weight=hyper.value_weight,
        )
        return loss, (jnp.sum(batch.targets.mask), metrics)

    return loss_fn
