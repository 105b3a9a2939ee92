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

from alol_jax.devices.sharding import fetch, place_rows, replicated
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.logprobs import grid_logp, grid_states, to_batch
from alol_jax.objectives.ppo import (
    Moments,
    PPOTargets,
    adaptive_kl,
    explained_variance,
    ppo,
    ppo_advantages,
    ppo_token_rewards,
)
from alol_jax.training.batches import place_batch
from alol_jax.training.fit import Forward, Loss, TrainState, Update, fit
from alol_jax.training.grids import Packer
from alol_jax.training.items import Examples
from alol_jax.training.rollouts import Rollouts
from alol_jax.types import Batch, Grid, Params, Work

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


def init_values(lm: LanguageModel) -> Params:
    """Leaves of a value head that gives every token the value 0."""
    return {
        "value/kernel": jnp.zeros((lm.transformer.config.width,), jnp.float32),
        "value/bias": jnp.zeros((), jnp.float32),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class PPOIteration:
    """Generate one rollout and train on it; the ``update`` of an online fit.

    Attributes:
        key: for the order of the responses.
        anchor: leaves of the policy that the KL is measured from.
        packer: lays out the responses in grids.
        forward: see `make_forward`; targets: see `make_targets`.
        update: one optimizer step on a minibatch.
        decoding_flops: (prompt tokens, response tokens) -> FLOPs of writing a response.
    """

    rollouts: Rollouts
    hyper: ConfigDict
    key: jax.Array
    anchor: Params
    packer: Packer
    forward: Callable[..., tuple[jax.Array, ...]]
    targets: Callable[..., tuple]
    update: Update
    decoding_flops: Callable[[int, int], float]

    def __call__(
        self, state: OnlineState, frozen: Params, asked: np.ndarray
    ) -> tuple[OnlineState, dict[str, Any]]:
        """Map (state, frozen, prompts i64[B]) to (state, metrics); donates ``state.train``."""
        rollout = int(state.step)
        written = self.rollouts.generate(state.trained, asked, rollout)
        mask = mask_of(written.examples, self.packer.layout.length)
        outputs, read = self._read(state.train.trained, frozen, written.examples, mask)
        targets, moments, kl_coef, metrics = self.targets(
            state.kl_coef, state.moments, written.score, mask, *outputs
        )
        train, steps = self._train(state.train, frozen, written.examples, fetch(targets), rollout)
        step = jax.device_put(state.step + 1, state.step.sharding)
        metrics |= steps
        metrics["flops"] += 2 * read.forward + sum(  # of policy and anchor
            self.decoding_flops(len(prompt), len(response))
            for prompt, (response,) in zip(*written.examples, strict=True)
        )
        return OnlineState(step, train, kl_coef, moments), metrics

    def _read(self, trained, frozen, examples: Examples, mask) -> tuple[Any, Work]:
        """logp, values and the anchor's logp of all responses, and the work of a step on them."""
        grids, work = self.packer(examples)
        mesh = self.rollouts.sampler.lm.mesh
        parts = (
            self.forward(trained, self.anchor, frozen, place_rows(grid, mesh), mask)
            for grid in grids
        )
        return functools.reduce(lambda sums, part: jax.tree.map(jnp.add, sums, part), parts), work

    def _train(
        self, train, frozen, examples, targets, rollout
    ) -> tuple[TrainState, dict[str, float]]:
        """Train for all epochs; return the state and each metric's mean, or sum for the work."""
        logged = []
        for _, new_train, metrics in fit(
            train, frozen, self._minibatches(examples, targets, rollout), self.update
        ):
            train = new_train
            logged.append(metrics)
        logged = fetch(logged)
        sums = set(Work().metrics())
        merge = {name: np.sum if name in sums else np.mean for name in logged[0]}
        return train, {name: merge[name]([line[name] for line in logged]) for name in merge}

    def _minibatches(
        self, examples: Examples, targets: PPOTargets, rollout: int
    ) -> Iterator[Batch]:
        """Yield each response once per epoch, in an order fixed by (key, rollout, epoch)."""
        lm = self.rollouts.sampler.lm
        for epoch in range(self.hyper.epochs):
            key = jax.random.fold_in(jax.random.fold_in(self.key, rollout), epoch)
            order = np.asarray(jax.random.permutation(key, self.hyper.prompts))
            for chosen in order.reshape(-1, self.hyper.batch_size):
                grids, work = self.packer(examples.take(chosen))
                rows = jax.tree.map(lambda x, chosen=chosen: x[chosen], targets)
                yield place_batch(Batch(grids, rows, work), lm.mesh)


def mask_of(examples: Examples, length: int) -> np.ndarray:
    """Return f32[B, R], 1 on the tokens of each response."""
    tokens = np.array([len(response) for (response,) in examples.responses])
    return (np.arange(length) < tokens[:, None]).astype(np.float32)


# compiled functions


def logp_and_values(lm: LanguageModel, params: Params, grid: Grid, shape: tuple[int, int]):
    """Return log π and V of each response token, both f32[B, R]; 0 on those of other grids.

    V = w · h + b in float32, where h is the policy's hidden state at the position that predicts
    the token.
    """
    hidden = lm.transformer.hidden(params, grid.ids, grid.segment, positions=grid.position)
    unembedding = lm.transformer.unembedding(params)
    logp = grid_logp(hidden, unembedding, grid, chunk=lm.logprob_chunk)
    before = grid_states(hidden, grid).astype(jnp.float32)
    with jax.default_matmul_precision("float32"):
        values = before @ params["value/kernel"] + params["value/bias"]
    return to_batch(logp, grid, shape), to_batch(values, grid, shape)


def make_forward(lm: LanguageModel) -> Callable[..., tuple[jax.Array, ...]]:
    """Make the jitted forward passes of the policy and the anchor over one grid.

    Returns:
        forward(trained, anchor, frozen, grid, mask f32[B, R]) -> logp, values and the anchor's
        logp, each f32[B, R]; 0 on the tokens of other grids.
    """

    @functools.partial(jax.jit, out_shardings=replicated(lm.mesh))
    def forward(trained, anchor, frozen, grid, mask):
        logp, values = logp_and_values(lm, {**frozen, **trained}, grid, mask.shape)
        value_head = {path: trained[path] for path in VALUE_PATHS}
        others = {**frozen, **anchor, **value_head}
        ref_logp, _ = logp_and_values(lm, others, grid, mask.shape)
        return logp, values, ref_logp

    return forward


def make_targets(hyper: ConfigDict, mesh: Mesh) -> Callable[..., tuple]:
    """Make the jitted function from scores to PPO targets.

    Returns:
        targets(kl_coef, moments, score f32[B], mask f32[B, R], *outputs of `make_forward`) ->
        (`PPOTargets`, moments and kl_coef for the next rollout, metrics).
    """

    def targets(kl_coef, moments, score, mask, *outputs):
        logp, values, ref_logp = outputs
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


def ppo_forward(lm: LanguageModel) -> Forward:
    """Make the pass of policy and value head over a grid, for `fit.make_update`."""

    def forward(trained: Params, frozen: Params, grid: Grid, targets: PPOTargets, key: jax.Array):
        return logp_and_values(lm, {**frozen, **trained}, grid, targets.mask.shape)

    return forward


def ppo_loss(hyper: ConfigDict) -> Loss:
    """Make `ppo.ppo` a function of (outputs of `ppo_forward`, targets)."""
    chosen = {name: hyper[name] for name in ("clip", "value_clip", "value_weight")}
    return lambda outputs, targets: ppo(*outputs, targets, **chosen)
