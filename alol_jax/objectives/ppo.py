"""Proximal policy optimisation (PPO): token rewards, advantages and the loss.

The steps for one rollout; every array is [B, R] unless stated otherwise::

    score f32[B]       normalised by the running `Moments` of all scores so far
    ppo_token_rewards  r_t = −kl_coef · log(π/π_anchor), the score at the last token
    ppo_advantages     A and the returns G, by generalised advantage estimation
    ppo                the clipped policy and value losses, once per pass over the rollout
    adaptive_kl        kl_coef of the next rollout

An action is a token. The episode ends with the response, whether complete or truncated. ``logp``,
``values`` and ``mask`` are aligned with the response tokens: ``values[:, t]`` is the value before
token t was chosen. Values where ``mask`` is 0, even nan or inf, have no effect. Arithmetic is f32.

PPO: Schulman et al. 2017, arXiv:1707.06347. Generalised advantages: Schulman et al. 2016,
arXiv:1506.02438. PPO on language models, with a KL penalty whose coefficient adapts: Ziegler et al.
2019, arXiv:1909.08593, as in TRL 0.7.1.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from alol_jax.objectives.terms import Metrics, masked, masked_mean, without_gradient

KL_ERROR_CLIP = 0.2  # `adaptive_kl` clips the relative error kl/target − 1 to ± this


class PPOTargets(NamedTuple):
    """What `ppo` reads besides the policy's ``logp`` and ``values``, all without gradient."""

    mask: jax.Array  # f32[B, R], 1 on response tokens
    old_logp: jax.Array  # f32[B, R], log π of the policy that wrote the responses
    old_values: jax.Array  # f32[B, R], its value estimates
    advantages: jax.Array  # f32[B, R]
    returns: jax.Array  # f32[B, R]


class Moments(NamedTuple):
    """Running count, mean and sum of squared deviations of all numbers so far.

    Batches are merged as in Chan, Golub & LeVeque 1979. Start with ``Moments.empty()``.
    """

    count: jax.Array  # f32[]
    mean: jax.Array  # f32[]
    m2: jax.Array  # f32[], Σ (x − mean)²

    @classmethod
    def empty(cls) -> Moments:
        """Return the moments of no numbers."""
        return cls(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(0.0))

    def update(self, x: jax.Array) -> Moments:
        """Return the moments after adding the numbers ``x`` f32[n], n ≥ 1."""
        chex.assert_rank(x, 1)
        x = jnp.asarray(x, jnp.float32)
        added, mean = jnp.float32(x.shape[0]), jnp.mean(x)
        count, gap = self.count + added, mean - self.mean
        spread = jnp.sum(jnp.square(x - mean)) + jnp.square(gap) * self.count * added / count
        return Moments(count, self.mean + gap * added / count, self.m2 + spread)

    @property
    def std(self) -> jax.Array:
        """√(m2 / (count − 1)), f32[]; 0 for fewer than two numbers."""
        return jnp.sqrt(self.m2 / jnp.maximum(self.count - 1.0, 1.0))

    def normalise(self, x: jax.Array) -> jax.Array:
        """Return (x − mean) / std, f32[n].

        If all numbers so far are equal up to f32 rounding, the divisor is 1, so that they become 0
        and not rounding errors of size 1.
        """
        chex.assert_rank(x, 1)
        has_spread = self.std > 1e-6 * (1.0 + jnp.abs(self.mean))
        return (jnp.asarray(x, jnp.float32) - self.mean) / jnp.where(has_spread, self.std, 1.0)


def ppo_token_rewards(
    score: jax.Array,
    logp: jax.Array,
    ref_logp: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: jax.Array | float,
) -> jax.Array:
    """r_t = −kl_coef · (log π_t − log π_anchor,t), plus the score at the last response token.

    No gradient. A response without tokens gets no reward, not even its score. Ziegler et al. 2019,
    equation 2.

    Args:
        score: f32[B], one per response.
        logp: f32[B, R], of the policy that wrote the responses.
        ref_logp: f32[B, R], of the anchor.
        mask: f32[B, R].
        kl_coef: f32[].

    Returns: f32[B, R]; 0 where the mask is 0.
    """
    chex.assert_rank([score, mask], [1, 2])
    chex.assert_equal_shape_prefix([score, mask], 1)
    penalty = kl_coef * (masked(logp, mask) - masked(ref_logp, mask))
    columns = jnp.arange(mask.shape[1], dtype=jnp.int32)[None]
    places = jnp.where(jnp.asarray(mask) > 0, columns, -1)
    last = columns == jnp.max(places, axis=1, keepdims=True)
    at_last = jnp.where(last, jnp.asarray(score, jnp.float32)[:, None], 0.0)
    return jax.lax.stop_gradient(at_last - penalty)


def ppo_advantages(
    token_rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: float,
    lam: float,
    whiten: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """A_t = Σ_k (gamma · lam)^k δ_{t+k}, with δ_t = r_t + gamma · V_{t+1} − V_t, and G = A + V.

    V is 0 after the last token. Whitening subtracts the mean of A over the tokens of all rows and
    divides by √(unbiased variance + 1e-8); the returns use A before whitening. No gradient.
    Schulman et al. 2016, equation 16.

    Args:
        token_rewards: f32[B, R].
        values: f32[B, R].
        mask: f32[B, R], 1 from the first to the last token of a response.
        gamma: discount per token. With gamma = lam = 1, G is the reward to go.
        lam: 0 bootstraps from the next value alone, 1 uses the observed rewards alone.
        whiten: whiten A over the batch.

    Returns: A f32[B, R] and G f32[B, R]; 0 where the mask is 0.
    """
    chex.assert_rank(mask, 2)
    reward, value = masked(token_rewards, mask), masked(values, mask)
    after = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))
    delta = reward + gamma * after - value

    def back(later: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        here = delta + gamma * lam * later
        return here, here

    _, found = jax.lax.scan(back, jnp.zeros_like(delta[:, 0]), delta.T, reverse=True)
    advantages = masked(found.T, mask)
    returns = advantages + value
    if whiten:
        advantages = _whiten(advantages, mask)
    return jax.lax.stop_gradient((advantages, returns))


def _whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Scale ``x`` to mean 0 and variance 1 over the mask, with 0 elsewhere."""
    centred = masked(x - masked_mean(x, mask), mask)
    others = jnp.maximum(jnp.sum(jnp.asarray(mask) > 0, dtype=jnp.float32) - 1.0, 1.0)
    return centred * jax.lax.rsqrt(jnp.sum(jnp.square(centred)) / others + 1e-8)


def ppo(
    logp: jax.Array,
    values: jax.Array,
    targets: PPOTargets,
    *,
    clip: float,
    value_clip: float,
    value_weight: float,
) -> tuple[jax.Array, Metrics]:
    """mean max(−A ρ, −A clip(ρ)) + value_weight · ½ mean max((V − G)², (clip(V) − G)²).

    clip(ρ) clips ρ = π/π_old, one per token, to [1 − clip, 1 + clip]; clip(V) clips V to
    [V_old − value_clip, V_old + value_clip]. Both means are over the tokens of all rows. Only
    ``logp`` and ``values`` carry a gradient. Schulman et al. 2017, equations 7 and 9; the clipped
    value loss is that of OpenAI's baselines and TRL.

    Args:
        logp: f32[B, R].
        values: f32[B, R].
        targets: the annotated rollout.
        clip: clipping range of ρ, above 0.
        value_clip: clipping range of a value, above 0.
        value_weight: weight of the value loss.

    Returns: loss f32[], metrics f32[] without gradient.
    """
    chex.assert_rank(logp, 2)
    mask = targets.mask
    logp, values = masked(logp, mask), masked(values, mask)
    old_logp, old_values, advantages, returns = jax.lax.stop_gradient(
        tuple(masked(field, mask) for field in targets[1:])
    )
    log_ratio = logp - old_logp
    ratio = jnp.exp(log_ratio)
    clipped_ratio = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    unclipped, clipped = -advantages * ratio, -advantages * clipped_ratio
    policy_loss = masked_mean(jnp.maximum(unclipped, clipped), mask)

    clipped_values = jnp.clip(values, old_values - value_clip, old_values + value_clip)
    error, clipped_error = jnp.square(values - returns), jnp.square(clipped_values - returns)
    value_loss = 0.5 * masked_mean(jnp.maximum(error, clipped_error), mask)

    loss = policy_loss + value_weight * value_loss
    metrics = {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "fraction_clipped": masked_mean(clipped > unclipped, mask),
        "value_fraction_clipped": masked_mean(clipped_error > error, mask),
        "approx_kl": masked_mean(jnp.maximum(jnp.expm1(log_ratio) - log_ratio, 0.0), mask),
    }
    return loss, without_gradient(metrics)


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """1 − Var(G − V) / Var(G) over the tokens of the mask, f32[]; 0 if all returns are equal.

    1 is a perfect prediction, 0 is no better than a constant, below 0 is worse.
    """
    chex.assert_equal_shape([values, returns, mask])

    def variance(x: jax.Array) -> jax.Array:
        return masked_mean(jnp.square(masked(x, mask) - masked_mean(x, mask)), mask)

    of_returns = variance(returns)
    left = variance(masked(returns, mask) - masked(values, mask))
    return jnp.where(of_returns > 0, 1.0 - left / jnp.where(of_returns > 0, of_returns, 1.0), 0.0)


def adaptive_kl(
    kl_coef: jax.Array | float, kl: jax.Array, *, target: float, horizon: float, rollouts: int
) -> jax.Array:
    """kl_coef · (1 + clip(kl/target − 1, ±0.2) · rollouts/horizon): larger if the KL is too large.

    Ziegler et al. 2019, section 2.2, with the horizon of their code and of TRL.

    Args:
        kl_coef: f32[].
        kl: f32[], mean over the responses of Σ_t log(π/π_anchor); an estimate, may be negative.
        target: the target KL in nats, above 0.
        horizon: time constant of the coefficient, in responses; above 0.2 · ``rollouts``, else
            the coefficient could become negative.
        rollouts: number of responses that ``kl`` was measured on.

    Returns: f32[].
    """
    error = jnp.clip(kl / target - 1.0, -KL_ERROR_CLIP, KL_ERROR_CLIP)
    return jnp.asarray(kl_coef, jnp.float32) * (1.0 + error * rollouts / horizon)
