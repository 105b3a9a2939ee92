"""The building blocks of the losses: masked log-probabilities, ratios, and metrics."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from alol_jax.types import Targets

Metrics = dict[str, jax.Array]


def masked(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Return ``x`` in f32, with 0 where ``mask`` is 0; the shapes must agree."""
    chex.assert_equal_shape([x, mask])
    return jnp.where(jnp.asarray(mask) > 0, jnp.asarray(x, jnp.float32), 0.0)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the mean of ``x`` where ``mask`` is not 0, f32[]; 0 if the mask is empty."""
    count = jnp.maximum(jnp.sum(jnp.asarray(mask) > 0, dtype=jnp.float32), 1.0)
    return jnp.sum(masked(x, mask)) / count


def masked_logp(logp: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
    """Return ``logp`` f32[E*, R], with 0 at masked positions, and the mask bool[E*, R]."""
    chex.assert_rank(logp, {2, 3})
    return masked(logp, targets.mask), jnp.asarray(targets.mask) > 0


def masked_ref_logp(ref_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """Return ``ref_logp`` f32[E*, R], with 0 at masked positions and no gradient."""
    return jax.lax.stop_gradient(masked(ref_logp, mask))


def per_response(column: jax.Array, mask: jax.Array) -> jax.Array:
    """Return a reward or an advantage, f32[E*], without gradient."""
    chex.assert_shape(column, mask.shape[:-1])
    return jax.lax.stop_gradient(jnp.asarray(column, jnp.float32))


def clipped_ratio(log_ratio: jax.Array, clip: float | None) -> tuple[jax.Array, jax.Array]:
    """Return sg(clip(ρ, 1 − clip, 1 + clip)) and where ρ was outside that range.

    Unlike in PPO, this is a plain clamp.
    """
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    if clip is None:
        return ratio, jnp.zeros(ratio.shape, bool)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return clipped, (ratio < 1.0 - clip) | (ratio > 1.0 + clip)


def multiply_no_nan(factor: jax.Array, ratio: jax.Array) -> jax.Array:
    """Return factor · ratio, and 0 where ``factor`` is 0 even if ``ratio`` overflowed to inf."""
    return jnp.where(factor == 0.0, 0.0, factor * ratio)


def with_metrics(
    loss: jax.Array, logp: jax.Array, mask: jax.Array, *others: Metrics
) -> tuple[jax.Array, Metrics]:
    """Return the loss and its metrics, the metrics without gradient."""
    metrics = {
        "loss": loss,
        "nll": -jnp.mean(jnp.sum(logp, axis=-1)),
        "logp_per_token": masked_mean(logp, mask),
    }
    for group in others:
        metrics |= group
    return loss, without_gradient(metrics)


def without_gradient(metrics: Metrics) -> Metrics:
    """Stop the gradient of every metric."""
    return {name: jax.lax.stop_gradient(value) for name, value in metrics.items()}


def weight_metrics(weight: jax.Array, mask: jax.Array) -> Metrics:
    """Return the mean and the effective sample size (Σw)² / (n Σw²) of the weights in the mask."""
    weight = jnp.where(mask, weight, 0.0)
    largest = jnp.max(jnp.abs(weight))
    unit = weight / jnp.where(largest == 0.0, 1.0, largest)  # so that the squares cannot overflow
    count = jnp.sum(mask, dtype=jnp.float32)
    total = count * jnp.sum(jnp.square(unit))
    size = jnp.square(jnp.sum(unit)) / jnp.where(total == 0.0, 1.0, total)
    return {
        "weight_mean": masked_mean(weight, mask),
        "effective_sample_size": jnp.minimum(size, 1.0),
    }


def ratio_metrics(ratio: jax.Array, outside: jax.Array, mask: jax.Array) -> Metrics:
    """Return the mean ratio and the fraction of clipped ratios in the mask."""
    return {
        "ratio_mean": masked_mean(ratio, mask),
        "fraction_clipped": masked_mean(outside, mask),
    }


def kl_metric(logp: jax.Array, ref_logp: jax.Array) -> Metrics:
    """Return the k3 estimate of the KL divergence, summed over tokens, averaged over responses.

    Both arguments are 0 at masked positions, so these add nothing.
    """
    gap = ref_logp - logp
    per_token = jnp.maximum(jnp.expm1(gap) - gap, 0.0)
    return {"kl_to_reference": jnp.mean(jnp.sum(per_token, axis=-1))}


def pair_metrics(score: jax.Array) -> Metrics:
    """Return how ``score`` f32[B, K] ranks the chosen response, which is the first of each row."""
    chosen, rejected = score[:, 0], score[:, 1:]
    return {
        "chosen_reward": jnp.mean(chosen),
        "rejected_reward": jnp.mean(rejected),
        "margin": jnp.mean(chosen) - jnp.mean(rejected),
        "accuracy": jnp.mean(chosen > jnp.max(rejected, axis=1), dtype=jnp.float32),
    }
