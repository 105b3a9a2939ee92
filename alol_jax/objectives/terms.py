"""What the losses are built of: masked log-probabilities, ratios, and the metrics of both."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from alol_jax.types import Targets

Metrics = dict[str, jax.Array]


def masked_logp(logp: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
    """``logp`` in f32 with 0 at every masked position, and the mask as bool; checks both shapes."""
    chex.assert_rank(logp, {2, 3})
    chex.assert_shape(targets.mask, logp.shape)
    mask = jnp.asarray(targets.mask) > 0
    return jnp.where(mask, jnp.asarray(logp, jnp.float32), 0.0), mask


def masked_reference(ref_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """``ref_logp`` f32[E*, R] with 0 at every masked position, without gradient."""
    chex.assert_shape(ref_logp, mask.shape)
    return jax.lax.stop_gradient(jnp.where(mask, jnp.asarray(ref_logp, jnp.float32), 0.0))


def per_response(column: jax.Array, mask: jax.Array) -> jax.Array:
    """A reward or an advantage, f32[E*], without gradient."""
    chex.assert_shape(column, mask.shape[:-1])
    return jax.lax.stop_gradient(jnp.asarray(column, jnp.float32))


def clipped_ratio(log_ratio: jax.Array, clip: float | None) -> tuple[jax.Array, jax.Array]:
    """sg(clip(ρ, 1 − clip, 1 + clip)), and where ρ lay outside: a plain clamp, unlike PPO's."""
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    if clip is None:
        return ratio, jnp.zeros(ratio.shape, bool)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return clipped, (ratio < 1.0 - clip) | (ratio > 1.0 + clip)


def scaled(factor: jax.Array, ratio: jax.Array) -> jax.Array:
    """factor · ratio, where a factor of 0 wins over a ratio that has overflowed to inf."""
    return jnp.where(factor == 0.0, 0.0, factor * ratio)


def masked_mean(x: jax.Array, where: jax.Array) -> jax.Array:
    """Mean of ``x`` over the positions of ``where``; 0 if there are none."""
    count = jnp.maximum(jnp.sum(where, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.where(where, x, 0.0), dtype=jnp.float32) / count


def report(
    loss: jax.Array, logp: jax.Array, mask: jax.Array, *others: Metrics
) -> tuple[jax.Array, Metrics]:
    """The result of an objective: the loss, and all its metrics without gradient."""
    metrics = {
        "loss": loss,
        "nll": -jnp.mean(jnp.sum(logp, axis=-1)),
        "logp_per_token": masked_mean(logp, mask),
    }
    for group in others:
        metrics |= group
    return loss, {name: jax.lax.stop_gradient(value) for name, value in metrics.items()}


def weight_metrics(weight: jax.Array, where: jax.Array) -> Metrics:
    weight = jnp.where(where, weight, 0.0)
    largest = jnp.max(jnp.abs(weight))
    unit = weight / jnp.where(largest == 0.0, 1.0, largest)  # so that the squares cannot overflow
    count = jnp.sum(where, dtype=jnp.float32)
    total = count * jnp.sum(jnp.square(unit))
    size = jnp.square(jnp.sum(unit)) / jnp.where(total == 0.0, 1.0, total)
    return {
        "weight_mean": masked_mean(weight, where),
        "effective_sample_size": jnp.minimum(size, 1.0),
    }


def ratio_metrics(ratio: jax.Array, outside: jax.Array, where: jax.Array) -> Metrics:
    return {
        "ratio_mean": masked_mean(ratio, where),
        "fraction_clipped": masked_mean(outside, where),
    }


def kl_metric(logp: jax.Array, ref_logp: jax.Array) -> Metrics:
    """The k3 estimator per token; both arguments are 0 at masked positions, and so is it."""
    gap = ref_logp - logp
    per_token = jnp.maximum(jnp.expm1(gap) - gap, 0.0)
    return {"kl_to_reference": jnp.mean(jnp.sum(per_token, axis=-1))}


def pair_metrics(score: jax.Array) -> Metrics:
    """``score`` f32[B, K], with the chosen response first."""
    chosen, rejected = score[:, 0], score[:, 1:]
    return {
        "chosen_reward": jnp.mean(chosen),
        "rejected_reward": jnp.mean(rejected),
        "margin": jnp.mean(chosen) - jnp.mean(rejected),
        "accuracy": jnp.mean(chosen > jnp.max(rejected, axis=1), dtype=jnp.float32),
    }
