"""One PPO iteration: the policy writes responses, they are scored, and it trains on them."""

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

from alol_jax.devices.sharding import place_rows, replicated
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.logprobs import response_logp, response_states, to_sequences
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
from alol_jax.training.fit import LossFn, TrainState, Update, fit
from alol_jax.training.rollouts import RolloutPrompts, Rollouts
from alol_jax.types import Params, Tokens

VALUE_PATHS = ("value/kernel", "value/bias")
"""Paths of the token value head. It trains with the policy but is not part of it."""


class OnlineState(NamedTuple):
    """Everything an interrupted run needs to resume exactly."""

    step: jax.Array  # i32[], rollouts trained on
    train: TrainState  # leaves of the policy and of its value head
    kl_coef: jax.Array  # f32[], for the next rollout
    moments: Moments  # of all scores so far

    @property
    def trained(self) -> Params:
        """The policy's leaves, without the value head."""
        return {path: leaf for path, leaf in self.train.trained.items() if path not in VALUE_PATHS}


class Minibatch(NamedTuple):
    """Responses with their targets; leaves [A, B, …] for A micro-batches."""

    tokens: Tokens
    targets: PPOTargets


def init_values(lm: LanguageModel) -> Params:
    """Leaves of a value head that gives every token the value 0."""
    return {"value/kernel": jnp.zeros((lm.transformer.config.width,)), "value/bias": jnp.zeros(())}


@dataclasses.dataclass(frozen=True, eq=False)
class PPOIteration:
    """Generate one rollout and train on it; the ``update`` of an online fit.

    Attributes:
        key: for the order of the responses.
        anchor: leaves of the policy that the KL is measured from.
        forward: see `make_forward`; targets: see `make_targets`.
        update: one optimizer step on a minibatch.
        count_work: see `make_work_counter`.
    """

    rollouts: Rollouts
    hyper: ConfigDict
    key: jax.Array
    anchor: Params
    forward: Callable[..., tuple[jax.Array, ...]]
    targets: Callable[..., tuple]
    update: Update
    count_work: Callable[[Tokens], dict[str, float]]

    def __call__(
        self, state: OnlineState, frozen: Params, asked: RolloutPrompts
    ) -> tuple[OnlineState, dict[str, Any]]:
        """Map (state, frozen, prompts) to (state, metrics); donates ``state.train``."""
        rollout, mesh = int(state.step), self.rollouts.sampler.lm.mesh
        written = self.rollouts.generate(state.trained, asked, rollout)
        rows = jax.tree.map(
            lambda x: x.reshape(-1, self.hyper.batch_size, *x.shape[1:]), written.tokens
        )
        rows = place_rows(rows, mesh, axis=1)
        outputs = jax.device_get(self.forward(state.train.trained, self.anchor, frozen, rows))
        targets, moments, kl_coef, metrics = self.targets(
            state.kl_coef, state.moments, written.score, written.tokens.mask, *outputs
        )
        train, trained_metrics = self._train(state.train, frozen, written.tokens, targets, rollout)
        step = jax.device_put(state.step + 1, state.step.sharding)
        metrics |= trained_metrics | self.count_work(written.tokens)
        return OnlineState(step, train, kl_coef, moments), metrics

    def _train(self, train, frozen, tokens, targets, rollout) -> tuple[TrainState, dict[str, Any]]:
        """Train for all epochs; return the state and each metric's mean over the steps."""
        whole = Minibatch(tokens, jax.device_get(targets))
        minibatches, logged = self._minibatches(whole, rollout), []
        for _, new_train, metrics in fit(train, frozen, minibatches, self.update):
            train = new_train
            logged.append(metrics)
        logged = jax.device_get(logged)
        return train, {name: np.mean([line[name] for line in logged]) for name in logged[0]}

    def _minibatches(self, whole: Minibatch, rollout: int) -> Iterator[Minibatch]:
        """Yield each response once per epoch, in an order fixed by (key, rollout, epoch)."""
        lead = (self.hyper.accumulate, self.hyper.batch_size)
        for epoch in range(self.hyper.epochs):
            key = jax.random.fold_in(jax.random.fold_in(self.key, rollout), epoch)
            order = np.asarray(jax.random.permutation(key, self.hyper.prompts))
            for chosen in order.reshape(-1, lead[0] * lead[1]):
                rows = jax.tree.map(lambda x, c=chosen: x[c].reshape(*lead, *x.shape[1:]), whole)
                yield place_rows(rows, self.rollouts.sampler.lm.mesh, axis=1)

    def _cache_size(self) -> int:
        """How many minibatch programs were compiled: one per shape."""
        return self.update._cache_size()


# cost


def make_work_counter(lm: LanguageModel, hyper: ConfigDict) -> Callable[[Tokens], dict[str, float]]:
    """Make a function from a rollout's tokens to its metrics "tokens" and "flops".

    Of decoding, the tokens of the responses count; what idle slots compute does not.
    """
    trained, frozen = lm.abstract()
    leaves, config = {**frozen, **trained}, lm.transformer.config

    @functools.cache
    def training_flops(prompt: int, response: int) -> float:
        rows = hyper.prompts
        forward = flops.forward(
            leaves, config, rows=rows, width=prompt + response, head_tokens=rows * response
        )
        steps = step_flops(lm, (prompt, response), hyper.epochs * rows, hyper.batch_size)
        return 2 * forward.total + steps  # policy and anchor once each, then the epochs

    def count_work(tokens: Tokens) -> dict[str, float]:
        prompt, lengths = tokens.prompt.shape[1], tokens.mask.sum(axis=1)
        decoding = sum(
            flops.decoding(leaves, config, rows=1, beams=1, prompt=prompt, new=int(length))
            for length in lengths
        )
        return {
            "tokens": hyper.epochs * float(tokens.prompt_mask.sum() + tokens.mask.sum()),
            "flops": decoding + training_flops(prompt, tokens.response.shape[1]),
        }

    return count_work


# compiled functions


def logp_and_values(lm: LanguageModel, params: Params, tokens: Tokens):
    """Return log π and V of each response token, both f32[B, R].

    V = w · h + b in float32, where h is the policy's hidden state at the position that predicts
    the token.
    """
    hidden = lm.transformer.hidden(params, *to_sequences(tokens)[:2])
    unembedding = lm.transformer.unembedding(params)
    logp = response_logp(hidden, unembedding, tokens, chunk=lm.logprob_chunk)
    before = response_states(hidden, tokens).astype(jnp.float32)
    with jax.default_matmul_precision("float32"):
        return logp, before @ params["value/kernel"] + params["value/bias"]


def make_forward(lm: LanguageModel) -> Callable[..., tuple[jax.Array, ...]]:
    """Make the jitted forward passes of the policy and the anchor.

    Returns:
        forward(trained, anchor, frozen, Tokens [A, B, …]) -> logp, values and the anchor's logp,
        each f32[A, B, R].
    """

    @jax.jit
    def forward(trained, anchor, frozen, tokens):
        def rows(tokens):
            logp, values = logp_and_values(lm, {**frozen, **trained}, tokens)
            value_head = {path: trained[path] for path in VALUE_PATHS}
            ref_logp, _ = logp_and_values(lm, {**frozen, **anchor, **value_head}, tokens)
            return logp, values, ref_logp

        return jax.lax.map(rows, tokens)

    return forward


def make_targets(hyper: ConfigDict, mesh: Mesh) -> Callable[..., tuple]:
    """Make the jitted function from scores to PPO targets.

    Returns:
        targets(kl_coef, moments, score f32[B], mask f32[B, R], *outputs of `make_forward`) ->
        (`PPOTargets`, moments and kl_coef for the next rollout, metrics).
    """

    def targets(kl_coef, moments, score, mask, *outputs):
        logp, values, ref_logp = (x.reshape(mask.shape) for x in outputs)
        moments = moments.update(score)
        shown = moments.normalise(score) if hyper.normalise_scores else score
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

    return jax.jit(targets, out_shardings=replicated(mesh))


def ppo_loss(lm: LanguageModel, hyper: ConfigDict) -> LossFn:
    """Make `ppo.ppo` a function of parameters; micro-batches are weighted by their tokens."""

    def loss_fn(trained: Params, frozen: Params, batch: Minibatch, key: jax.Array):
        logp, values = logp_and_values(lm, {**frozen, **trained}, batch.tokens)
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
