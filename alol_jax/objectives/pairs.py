"""Losses of several responses to one prompt: preference pairs and rankings.

The signature and the notation are those of `losses`.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from alol_jax.objectives.terms import (
    Metrics,
    kl_metric,
    masked_logp,
    masked_ref_logp,
    pair_metrics,
    per_response,
    with_metrics,
)
from alol_jax.types import Targets


def dpo(logp: jax.Array, targets: Targets, *, beta: float = 0.1) -> tuple[jax.Array, Metrics]:
    """mean −log σ(r_0 − r_1), with r_k = beta · (log π(y_k|x) − log π_ref(y_k|x)).

    Response 0 is the chosen one. Direct preference optimisation: Rafailov et al. 2023,
    arXiv:2305.18290, equation 7.

    Args:
        logp: f32[B, 2, R].
        targets: ``ref_logp`` f32[B, 2, R].
        beta: how strongly the policy is kept near the reference.

    Returns: loss f32[], metrics f32[]; the compared scores are r_0 and r_1.
    """
    chex.assert_shape(logp, (None, 2, None))
    logp, mask = masked_logp(logp, targets)
    ref_logp = masked_ref_logp(targets.ref_logp, mask)
    score = beta * jnp.sum(logp - ref_logp, axis=-1)
    loss = -jnp.mean(jax.nn.log_sigmoid(score[:, 0] - score[:, 1]))
    return with_metrics(loss, logp, mask, pair_metrics(score), kl_metric(logp, ref_logp))


def dpo_ref_free(
    logp: jax.Array, targets: Targets, *, beta: float = 0.1
) -> tuple[jax.Array, Metrics]:
    """mean −log σ(r_0 − r_1), with r_k = beta · log π(y_k|x): DPO with a uniform reference.

    Response 0 is the chosen one. Rafailov et al. 2023, arXiv:2305.18290, with the reference's
    difference set to 0.

    Args:
        logp: f32[B, 2, R].
        targets: reads ``mask`` only.
        beta: steepness of the preference.

    Returns: loss f32[], metrics f32[]; the compared scores are r_0 and r_1.
    """
    chex.assert_shape(logp, (None, 2, None))
    logp, mask = masked_logp(logp, targets)
    score = beta * jnp.sum(logp, axis=-1)
    loss = -jnp.mean(jax.nn.log_sigmoid(score[:, 0] - score[:, 1]))
    return with_metrics(loss, logp, mask, pair_metrics(score))


def _ranking(score: jax.Array, reward: jax.Array) -> jax.Array:
    """Return Σ_k L_k of `pro`, averaged over prompts, for ``score`` and ``reward`` f32[B, K]."""
    total = jnp.zeros((), jnp.float32)
    floor = jnp.log(jnp.full((score.shape[0], 1), 1e-10, jnp.float32))
    for k in range(score.shape[1] - 1):
        gaps = reward[:, k, None] - reward[:, k + 1 :]
        gaps = jnp.concatenate([jnp.max(gaps, axis=1, keepdims=True), gaps], axis=1)
        scaled = score[:, k:] * gaps
        against = jax.nn.logsumexp(jnp.concatenate([floor, scaled], axis=1), axis=1)
        total += jnp.mean(against - scaled[:, 0])
    return total


def pro(
    logp: jax.Array, targets: Targets, *, sft_weight: float = 0.05, scale: float = 1.0
) -> tuple[jax.Array, Metrics]:
    """Σ_{k<K−1} mean L_k + sft_weight · (K−1)² · mean NLL_0: preference ranking optimisation.

    L_k = log(1e-10 + e^{s_k T_k} + Σ_{j>k} e^{s_j T_j}) − s_k T_k, with s_k the mean log π per
    token of response k, T_j = scale · (R_k − R_j), T_k = max_{j>k} T_j. Responses rank by index,
    best first; a reward that contradicts the index reverses that comparison. R carries no
    gradient. Song et al. 2023, arXiv:2306.17492.

    Args:
        logp: f32[B, K, R] with K ≥ 2.
        targets: ``reward`` f32[B, K].
        sft_weight: weight of the NLL of response 0.
        scale: factor on the rewards; larger values sharpen the ranking.

    Returns: loss f32[], metrics f32[]; the compared scores are s_k.
    """
    chex.assert_rank(logp, 3)
    chex.assert_axis_dimension_gteq(logp, 1, 2)
    logp, mask = masked_logp(logp, targets)
    reward = per_response(targets.reward, mask)
    seq_logp = jnp.sum(logp, axis=-1)
    score = seq_logp / jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.float32), 1.0)
    sft = -jnp.mean(seq_logp[:, 0]) * (logp.shape[1] - 1) ** 2
    loss = _ranking(score, scale * reward) + sft_weight * sft
    return with_metrics(loss, logp, mask, pair_metrics(score))
