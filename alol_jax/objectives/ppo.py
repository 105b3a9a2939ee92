"""Proximal policy optimisation on whole responses: rewards and advantages per token, the loss.

The steps of one rollout, arrays in, arrays out; every array is [B, R] unless it says otherwise::

    score f32[B]       normalised by the running `Moments` of all scores so far
    ppo_token_rewards  r_t = −kl_coef · log(π/π_anchor), the score at the last token
    ppo_advantages     A and the returns G, by generalised advantage estimation
    ppo                the clipped losses of policy and value, as often as the rollout is gone over
    adaptive_kl        kl_coef of the next rollout

An action is a token; the episode ends with the response, whether it ended by itself or was cut.
``logp``, ``values`` and ``mask`` are aligned as `types.Tokens` says: ``values[:, t]`` is the value
before token t was chosen. Whatever stands where ``mask`` is 0, nan and inf included, reaches
nothing. Arithmetic is f32.

PPO: Schulman et al. 2017, arXiv:1707.06347. Generalised advantages: Schulman et al. 2016,
arXiv:1506.02438. PPO on language models, with a KL penalty whose coefficient adapts: Ziegler et al.
2019, arXiv:1909.08593, as TRL 0.7.1 has it.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]
KL_CHANGE = 0.2  # of what `adaptive_kl` compares: how far it counts as too large or too small


class PPOTargets(NamedTuple):
    """What `ppo` reads besides the policy's ``logp`` and ``values``; none of it has a gradient."""

    mask: jax.Array  # f32[B, R], 1 on response tokens
    old_logp: jax.Array  # f32[B, R], log π of the policy that wrote the responses
    old_values: jax.Array  # f32[B, R], what it expected
    advantages: jax.Array  # f32[B, R]
    returns: jax.Array  # f32[B, R]


class Moments(NamedTuple):
    """Count, mean and summed squared distance from the mean of all numbers so far.

    Whole batches are merged in: Chan, Golub & LeVeque 1979. Begins as ``Moments.none()``.
    """

    count: jax.Array  # f32[]
    mean: jax.Array  # f32[]
    m2: jax.Array  # f32[], Σ (x − mean)²

    @classmethod
    def none(cls) -> Moments:
        """Of no numbers."""
        return cls(jnp.float32(0.0), jnp.float32(0.0), jnp.float32(0.0))

    def update(self, x: jax.Array) -> Moments:
        """The moments with the numbers ``x`` f32[n], n ≥ 1, among them."""
        chex.assert_rank(x, 1)
        x = jnp.asarray(x, jnp.float32)
        added, mean = jnp.float32(x.shape[0]), jnp.mean(x)
        count, gap = self.count + added, mean - self.mean
        spread = jnp.sum(jnp.square(x - mean)) + jnp.square(gap) * self.count * added / count
        return Moments(count, self.mean + gap * added / count, self.m2 + spread)

    @property
    def std(self) -> jax.Array:
        """√(m2 / (count − 1)) f32[]; 0 of fewer than two numbers."""
        return jnp.sqrt(self.m2 / jnp.maximum(self.count - 1.0, 1.0))

    def normalised(self, x: jax.Array) -> jax.Array:
        """(x − mean) / std, f32 of the shape of ``x``.

        Where all numbers so far are equal, up to what f32 can tell apart, there is no scale: the
        divisor is 1 then, and these numbers become 0, not rounding errors of size 1.
        """
        chex.assert_rank(x, 1)
        told_apart = self.std > 1e-6 * (1.0 + jnp.abs(self.mean))
        return (jnp.asarray(x, jnp.float32) - self.mean) / jnp.where(told_apart, self.std, 1.0)


def _kept(x: jax.Array, mask: jax.Array) -> jax.Array:
    """``x`` in f32 with 0 where the mask is 0; the shapes must agree."""
    chex.assert_equal_shape([x, mask])
    return jnp.where(jnp.asarray(mask) > 0, jnp.asarray(x, jnp.float32), 0.0)


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of ``x`` over the positions of the mask; 0 if there are none."""
    count = jnp.maximum(jnp.sum(jnp.asarray(mask) > 0, dtype=jnp.float32), 1.0)
    return jnp.sum(_kept(x, mask)) / count


def ppo_token_rewards(
    score: jax.Array,
    logp: jax.Array,
    ref_logp: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: jax.Array | float,
) -> jax.Array:
    """r_t = −kl_coef · (log π_t − log π_anchor,t), + score at the last response token.

    No gradient. A response without tokens gets nothing, its score neither. Ziegler et al. 2019,
    equation 2.

    Args:
        score: f32[B], of the whole response.
        logp: f32[B, R], under the policy that wrote the responses.
        ref_logp: f32[B, R], under the anchor.
        mask: f32[B, R].
        kl_coef: f32[].

    Returns: f32[B, R]; 0 where the mask is 0.
    """
    chex.assert_rank([score, mask], [1, 2])
    chex.assert_equal_shape_prefix([score, mask], 1)
    penalty = kl_coef * (_kept(logp, mask) - _kept(ref_logp, mask))
    places = jnp.where(jnp.asarray(mask) > 0, jnp.arange(mask.shape[1])[None], -1)
    last = jnp.arange(mask.shape[1])[None] == jnp.max(places, axis=1, keepdims=True)
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

    After the last token V is 0. Whitening takes the mean of A over the tokens of all rows off and
    divides by √(their variance + 1e-8), the variance unbiased; the returns are of A before that.
    No gradient. Schulman et al. 2016, equation 16.

    Args:
        token_rewards: f32[B, R].
        values: f32[B, R].
        mask: f32[B, R], 1 from the first token of a response to its last.
        gamma: discount per token. With gamma = lam = 1, G is the reward to go.
        lam: 0 believes the values, 1 what came of it.
        whiten: over the batch.

    Returns: A f32[B, R] and G f32[B, R]; 0 where the mask is 0.
    """
    chex.assert_rank(mask, 2)
    reward, value = _kept(token_rewards, mask), _kept(values, mask)
    after = jnp.pad(value[:, 1:], ((0, 0), (0, 1)))
    delta = reward + gamma * after - value

    def back(later: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        here = delta + gamma * lam * later
        return here, here

    _, found = jax.lax.scan(back, jnp.zeros_like(delta[:, 0]), delta.T, reverse=True)
    advantages = _kept(found.T, mask)
    returns = advantages + value
    if whiten:
        advantages = _whitened(advantages, mask)
    return jax.lax.stop_gradient((advantages, returns))


def _whitened(x: jax.Array, mask: jax.Array) -> jax.Array:
    """``x`` with mean 0 and variance 1 over the mask, and 0 elsewhere."""
    centred = _kept(x - _mean(x, mask), mask)
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

    ρ = π/π_old per token, held in [1 − clip, 1 + clip]; V is held in [V_old − value_clip, V_old +
    value_clip]; both means are over the tokens of all rows. ``logp`` and ``values`` alone carry a
    gradient. Schulman et al. 2017, equations 7 and 9; the clipped value loss as in OpenAI's
    baselines and TRL.

    Args:
        logp: f32[B, R].
        values: f32[B, R].
        targets: what is known of the rollout.
        clip: how far ρ may gain, above 0.
        value_clip: how far a value may move, above 0.
        value_weight: of the value loss.

    Returns: loss f32[], metrics f32[] without gradient.
    """
    chex.assert_rank(logp, 2)
    mask = targets.mask
    logp, values = _kept(logp, mask), _kept(values, mask)
    old_logp, old_values, advantages, returns = jax.lax.stop_gradient(
        tuple(_kept(field, mask) for field in targets[1:])
    )
    log_ratio = logp - old_logp
    ratio = jnp.exp(log_ratio)
    free, held = -advantages * ratio, -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    policy_loss = _mean(jnp.maximum(free, held), mask)

    near = jnp.clip(values, old_values - value_clip, old_values + value_clip)
    error, held_error = jnp.square(values - returns), jnp.square(near - returns)
    value_loss = 0.5 * _mean(jnp.maximum(error, held_error), mask)

    loss = policy_loss + value_weight * value_loss
    metrics = {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "fraction_clipped": _mean(held > free, mask),
        "value_fraction_clipped": _mean(held_error > error, mask),
        "approx_kl": _mean(jnp.maximum(jnp.expm1(log_ratio) - log_ratio, 0.0), mask),
    }
    return loss, {name: jax.lax.stop_gradient(value) for name, value in metrics.items()}


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """1 − Var(G − V) / Var(G) over the tokens of the mask, f32[]; 0 where all returns are equal.

    1 is perfect, 0 no better than a constant, below 0 worse.
    """
    chex.assert_equal_shape([values, returns, mask])

    def variance(x: jax.Array) -> jax.Array:
        return _mean(jnp.square(_kept(x, mask) - _mean(x, mask)), mask)

    of_returns = variance(returns)
    left = variance(_kept(returns, mask) - _kept(values, mask))
    return jnp.where(of_returns > 0, 1.0 - left / jnp.where(of_returns > 0, of_returns, 1.0), 0.0)


def adaptive_kl(
    kl_coef: jax.Array | float, kl: jax.Array, *, target: float, horizon: float, rollouts: int
) -> jax.Array:
    """kl_coef · (1 + clip(kl/target − 1, ±0.2) · rollouts/horizon): up where the KL is too large.

    Ziegler et al. 2019, section 2.2, with a horizon as in their code and TRL.

    Args:
        kl_coef: f32[].
        kl: f32[], mean over the responses of Σ_t log(π/π_anchor); an estimate, may be negative.
        target: what it should be, in nats, above 0.
        horizon: how slowly the coefficient moves, in responses; above 0.2 · ``rollouts``, else it
            could become negative.
        rollouts: responses that ``kl`` was measured on.

    Returns: f32[].
    """
    error = jnp.clip(kl / target - 1.0, -KL_CHANGE, KL_CHANGE)
    return jnp.asarray(kl_coef, jnp.float32) * (1.0 + error * rollouts / horizon)
