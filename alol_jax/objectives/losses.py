"""Losses of single responses.

Every objective except `ppo.ppo` has the signature
``loss(logp, targets, *, <hyper-parameters>) -> (loss, metrics)``:

* ``logp`` f32[E*, R], log π of the response tokens, is the only argument that carries a gradient;
* a loss sums over the response tokens and averages over E* (a pair or a ranking counts once);
* values where ``mask`` is 0, even nan or -inf, affect neither loss nor gradient;
* only the fields of ``targets`` that ``registry.OBJECTIVES[name].reads`` lists are read;
* arithmetic is f32 for any input dtype; metrics are f32[] without gradient, explained in
  `metrics`.

Notation: NLL = −Σ_t log π_t, NLL_ref the same under the frozen reference, ρ = π/π_ref, R the
reward, A the advantage, sg(·) stop-gradient. "Leftover Lunch" is Baheti et al., ICLR 2024,
arXiv:2305.14718.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alol_jax.objectives.terms import (
    Metrics,
    clipped_ratio,
    kl_metric,
    masked_logp,
    masked_ref_logp,
    multiply_no_nan,
    per_response,
    ratio_metrics,
    weight_metrics,
    with_metrics,
)
from alol_jax.types import Targets


def nll(logp: jax.Array, targets: Targets) -> tuple[jax.Array, Metrics]:
    """mean NLL: supervised fine-tuning, which also fits the reference policy.

    Args:
        logp: f32[E*, R].
        targets: reads ``mask`` only.

    Returns: loss f32[], metrics f32[].
    """
    logp, mask = masked_logp(logp, targets)
    loss = -jnp.mean(jnp.sum(logp, axis=-1))
    return with_metrics(loss, logp, mask)


def wbc(logp: jax.Array, targets: Targets) -> tuple[jax.Array, Metrics]:
    """mean R · NLL: weighted behaviour cloning, a baseline of Leftover Lunch.

    Args:
        logp: f32[E*, R].
        targets: ``reward`` f32[E*].

    Returns: loss f32[], metrics f32[].
    """
    logp, mask = masked_logp(logp, targets)
    weight = per_response(targets.reward, mask)
    loss = -jnp.mean(weight * jnp.sum(logp, axis=-1))
    return with_metrics(loss, logp, mask, weight_metrics(weight, jnp.ones_like(weight, bool)))


def r_gold(logp: jax.Array, targets: Targets, *, floor: float = 0.1) -> tuple[jax.Array, Metrics]:
    """mean R · Σ_t sg(max(π_t, floor)) · (−log π_t): reward GOLD.

    The policy's own probability replaces the importance ratio, without gradient; there is no
    reference. GOLD: Pang & He 2021, arXiv:2009.07839; R as in Leftover Lunch.

    Args:
        logp: f32[E*, R].
        targets: ``reward`` f32[E*].
        floor: smallest token weight; 1 gives ``wbc``.

    Returns: loss f32[], metrics f32[]; weights are per token.
    """
    logp, mask = masked_logp(logp, targets)
    reward = per_response(targets.reward, mask)
    weight = reward[..., None] * jax.lax.stop_gradient(jnp.maximum(jnp.exp(logp), floor))
    loss = -jnp.mean(jnp.sum(weight * logp, axis=-1))
    return with_metrics(loss, logp, mask, weight_metrics(weight, mask))


def r_lol(
    logp: jax.Array, targets: Targets, *, clip: float | None = 0.9
) -> tuple[jax.Array, Metrics]:
    """mean R · sg(clip(ρ)) · NLL: ``a_lol`` with the reward in place of the advantage.

    Neither ρ nor R carries a gradient. Leftover Lunch, experiments (Reward-LoL).

    Args:
        logp: f32[E*, R].
        targets: ``ref_logp`` f32[E*, R], ``reward`` f32[E*].
        clip: as in ``a_lol``.

    Returns: loss f32[], metrics f32[].
    """
    return a_lol(logp, targets._replace(advantage=targets.reward), clip=clip)


def a_lol(
    logp: jax.Array, targets: Targets, *, clip: float | None = 0.9
) -> tuple[jax.Array, Metrics]:
    """mean A · sg(clip(ρ)) · NLL, with ρ = π(y|x)/π_ref(y|x) of the whole response.

    Neither ρ nor A carries a gradient. Leftover Lunch, section 2, the main objective.

    Args:
        logp: f32[E*, R].
        targets: ``ref_logp`` f32[E*, R], ``advantage`` f32[E*] (used as given).
        clip: ρ is clipped to [1 − clip, 1 + clip]; None or inf: no clipping.

    Returns: loss f32[], metrics f32[].
    """
    logp, mask = masked_logp(logp, targets)
    ref_logp = masked_ref_logp(targets.ref_logp, mask)
    seq_logp = jnp.sum(logp, axis=-1)
    ratio, outside = clipped_ratio(seq_logp - jnp.sum(ref_logp, axis=-1), clip)
    weight = multiply_no_nan(per_response(targets.advantage, mask), ratio)
    loss = -jnp.mean(weight * seq_logp)
    every = jnp.ones_like(weight, bool)
    ratios = ratio_metrics(ratio, outside, every) | kl_metric(logp, ref_logp)
    return with_metrics(loss, logp, mask, weight_metrics(weight, every), ratios)


def a_lol_ref_free(logp: jax.Array, targets: Targets) -> tuple[jax.Array, Metrics]:
    """mean A · NLL: A-LoL with the importance ratio set to 1.

    A carries no gradient. Leftover Lunch, section 2 (variants).

    Args:
        logp: f32[E*, R].
        targets: ``advantage`` f32[E*] (used as given; a negative one unlearns its response).

    Returns: loss f32[], metrics f32[].
    """
    return wbc(logp, targets._replace(reward=targets.advantage))


def a_lol_seq(
    logp: jax.Array, targets: Targets, *, clip: float | None = 0.9
) -> tuple[jax.Array, Metrics]:
    """mean A · Σ_t sg(clip(ρ_t)) · (−log π_t), with a ratio ρ_t = π_t/π_ref,t per token.

    Neither ρ_t nor A carries a gradient. Leftover Lunch, section 2 (A-LoL sequence).

    Args:
        logp: f32[E*, R].
        targets: ``ref_logp`` f32[E*, R], ``advantage`` f32[E*] (used as given).
        clip: every ρ_t is clipped to [1 − clip, 1 + clip]; None or inf: no clipping; 0 gives
            ``a_lol_ref_free``.

    Returns: loss f32[], metrics f32[]; weights, ratios and the clipped fraction are per token.
    """
    logp, mask = masked_logp(logp, targets)
    ref_logp = masked_ref_logp(targets.ref_logp, mask)
    ratio, outside = clipped_ratio(logp - ref_logp, clip)
    weight = multiply_no_nan(per_response(targets.advantage, mask)[..., None], ratio)
    loss = -jnp.mean(jnp.sum(weight * logp, axis=-1))
    ratios = ratio_metrics(ratio, outside, mask) | kl_metric(logp, ref_logp)
    return with_metrics(loss, logp, mask, weight_metrics(weight, mask), ratios)


def a_lol_kl(logp: jax.Array, targets: Targets, *, beta: float = 0.1) -> tuple[jax.Array, Metrics]:
    """mean A · NLL + beta · mean(NLL_ref − NLL): reference-free A-LoL with a KL term, as published.

    NLL_ref carries no gradient, so the gradient is that of mean (A − beta) · NLL: it **does not
    depend on the reference**, which only shifts the value of the loss. The term acts as a constant
    subtracted from every advantage, so that rows with A < beta are unlearned. Leftover Lunch,
    section 2 (A-LoL KL).

    Args:
        logp: f32[E*, R].
        targets: ``ref_logp`` f32[E*, R], ``advantage`` f32[E*] (used as given).
        beta: weight of the term; 0 gives ``a_lol_ref_free``.

    Returns: loss f32[], metrics f32[]; the weights reported are A − beta.
    """
    logp, mask = masked_logp(logp, targets)
    ref_logp = masked_ref_logp(targets.ref_logp, mask)
    advantage = per_response(targets.advantage, mask)
    seq_logp = jnp.sum(logp, axis=-1)
    log_ratio = seq_logp - jnp.sum(ref_logp, axis=-1)
    loss = -jnp.mean(advantage * seq_logp) + beta * jnp.mean(log_ratio)
    weights = weight_metrics(advantage - beta, jnp.ones_like(advantage, bool))
    return with_metrics(loss, logp, mask, weights, kl_metric(logp, ref_logp))
