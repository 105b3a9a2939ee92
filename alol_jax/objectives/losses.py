"""The losses: log-probabilities and targets in, a scalar and its metrics out.

Every objective but `ppo.ppo` has the signature
``loss(logp, targets, *, <hyper-parameters>) -> (loss, metrics)``:

* ``logp`` f32[E*, R], log π of the response tokens, is the only argument that carries a gradient;
* a loss sums over the response tokens and takes the mean over E* (a pair or a ranking counts once);
* whatever stands where ``mask`` is 0, nan and -inf included, reaches neither loss nor gradient;
* fields of ``targets`` that ``OBJECTIVES[name].reads`` does not list are not looked at;
* arithmetic is f32 whatever comes in; metrics are f32[], no gradient, explained in `metrics`.

Below, NLL = −Σ_t log π_t, NLL_ref the same under the frozen reference, ρ = π/π_ref, R the reward,
A the advantage, sg(·) an argument without gradient, and "Leftover Lunch" is Baheti et al., ICLR
2024, arXiv:2305.14718.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from alol_jax.objectives.ppo import ppo
from alol_jax.types import Targets, UserError

Metrics = dict[str, jax.Array]


class Objective(NamedTuple):
    """A row of ``OBJECTIVES``: the loss and what the pipeline must know about it."""

    loss: Callable[..., tuple[jax.Array, Metrics]]
    reads: tuple[str, ...]  # fields of Targets besides ``mask``; decides which stages run
    responses: int  # responses per prompt (K)
    draw_by: str | None  # the column that priority sampling draws by; None = uniform only
    online: bool = False  # it writes its own responses: other arguments, another stage (`ppo`)
    more: bool = False  # K may be larger: ``config.objective.responses``


def _policy(logp: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
    """``logp`` in f32 with 0 at every masked position, and the mask as bool; checks both shapes."""
    chex.assert_rank(logp, {2, 3})
    chex.assert_shape(targets.mask, logp.shape)
    mask = jnp.asarray(targets.mask) > 0
    return jnp.where(mask, jnp.asarray(logp, jnp.float32), 0.0), mask


def _reference(ref_logp: jax.Array, mask: jax.Array) -> jax.Array:
    """``ref_logp`` f32[E*, R] with 0 at every masked position, without gradient."""
    chex.assert_shape(ref_logp, mask.shape)
    return jax.lax.stop_gradient(jnp.where(mask, jnp.asarray(ref_logp, jnp.float32), 0.0))


def _per_response(column: jax.Array, mask: jax.Array) -> jax.Array:
    """A reward or an advantage, f32[E*], without gradient."""
    chex.assert_shape(column, mask.shape[:-1])
    return jax.lax.stop_gradient(jnp.asarray(column, jnp.float32))


def _ratio(log_ratio: jax.Array, clip: float | None) -> tuple[jax.Array, jax.Array]:
    """sg(clip(ρ, 1 − clip, 1 + clip)), and where ρ lay outside: a plain clamp, unlike PPO's."""
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    if clip is None:
        return ratio, jnp.zeros(ratio.shape, bool)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return clipped, (ratio < 1.0 - clip) | (ratio > 1.0 + clip)


def _scaled(factor: jax.Array, ratio: jax.Array) -> jax.Array:
    """factor · ratio, where a factor of 0 wins over a ratio that has overflowed to inf."""
    return jnp.where(factor == 0.0, 0.0, factor * ratio)


def _mean(x: jax.Array, where: jax.Array) -> jax.Array:
    """Mean of ``x`` over the positions of ``where``; 0 if there are none."""
    count = jnp.maximum(jnp.sum(where, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.where(where, x, 0.0), dtype=jnp.float32) / count


def _report(
    loss: jax.Array, logp: jax.Array, mask: jax.Array, *others: Metrics
) -> tuple[jax.Array, Metrics]:
    """The result of an objective: the loss, and all its metrics without gradient."""
    metrics = {
        "loss": loss,
        "nll": -jnp.mean(jnp.sum(logp, axis=-1)),
        "logp_per_token": _mean(logp, mask),
    }
    for group in others:
        metrics |= group
    return loss, {name: jax.lax.stop_gradient(value) for name, value in metrics.items()}


def _weight_metrics(weight: jax.Array, where: jax.Array) -> Metrics:
    weight = jnp.where(where, weight, 0.0)
    largest = jnp.max(jnp.abs(weight))
    unit = weight / jnp.where(largest == 0.0, 1.0, largest)  # so that the squares cannot overflow
    count = jnp.sum(where, dtype=jnp.float32)
    total = count * jnp.sum(jnp.square(unit))
    size = jnp.square(jnp.sum(unit)) / jnp.where(total == 0.0, 1.0, total)
    return {"weight_mean": _mean(weight, where), "effective_sample_size": jnp.minimum(size, 1.0)}


def _ratio_metrics(ratio: jax.Array, outside: jax.Array, where: jax.Array) -> Metrics:
    return {"ratio_mean": _mean(ratio, where), "fraction_clipped": _mean(outside, where)}


def _kl_metric(logp: jax.Array, ref_logp: jax.Array) -> Metrics:
    """The k3 estimator per token; both arguments are 0 at masked positions, and so is it."""
    gap = ref_logp - logp
    per_token = jnp.maximum(jnp.expm1(gap) - gap, 0.0)
    return {"kl_to_reference": jnp.mean(jnp.sum(per_token, axis=-1))}


def _pair_metrics(score: jax.Array) -> Metrics:
    """``score`` f32[B, K], with the chosen response first."""
    chosen, rejected = score[:, 0], score[:, 1:]
    return {
        "chosen_reward": jnp.mean(chosen),
        "rejected_reward": jnp.mean(rejected),
        "margin": jnp.mean(chosen) - jnp.mean(rejected),
        "accuracy": jnp.mean(chosen > jnp.max(rejected, axis=1), dtype=jnp.float32),
    }


def nll(logp: jax.Array, targets: Targets) -> tuple[jax.Array, Metrics]:
    """mean NLL: supervised fine-tuning, and how the reference policy is fitted.

    Args:
        logp: f32[E*, R].
        targets: reads ``mask`` only.

    Returns: loss f32[], metrics f32[].
    """
    logp, mask = _policy(logp, targets)
    loss = -jnp.mean(jnp.sum(logp, axis=-1))
    return _report(loss, logp, mask)


def wbc(logp: jax.Array, targets: Targets) -> tuple[jax.Array, Metrics]:
    """mean R · NLL: weighted behaviour cloning, a baseline of Leftover Lunch.

    Args:
        logp: f32[E*, R].
        targets: ``reward`` f32[E*].

    Returns: loss f32[], metrics f32[].
    """
    logp, mask = _policy(logp, targets)
    weight = _per_response(targets.reward, mask)
    loss = -jnp.mean(weight * jnp.sum(logp, axis=-1))
    return _report(loss, logp, mask, _weight_metrics(weight, jnp.ones_like(weight, bool)))


def r_gold(logp: jax.Array, targets: Targets, *, floor: float = 0.1) -> tuple[jax.Array, Metrics]:
    """mean R · Σ_t sg(max(π_t, floor)) · (−log π_t): reward GOLD.

    The policy's own probability stands in for the importance ratio and carries no gradient; there
    is no reference. GOLD: Pang & He 2021, arXiv:2009.07839; with R as in Leftover Lunch.

    Args:
        logp: f32[E*, R].
        targets: ``reward`` f32[E*].
        floor: least token weight; 1 gives ``wbc``.

    Returns: loss f32[], metrics f32[]; weights are per token.
    """
    logp, mask = _policy(logp, targets)
    reward = _per_response(targets.reward, mask)
    weight = reward[..., None] * jax.lax.stop_gradient(jnp.maximum(jnp.exp(logp), floor))
    loss = -jnp.mean(jnp.sum(weight * logp, axis=-1))
    return _report(loss, logp, mask, _weight_metrics(weight, mask))


def r_lol(
    logp: jax.Array, targets: Targets, *, clip: float | None = 0.9
) -> tuple[jax.Array, Metrics]:
    """mean R · sg(clip(ρ)) · NLL: ``a_lol`` with the reward in the advantage's place.

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
        targets: ``ref_logp`` f32[E*, R], ``advantage`` f32[E*] (taken as it comes).
        clip: ρ is held in [1 − clip, 1 + clip]; None or inf leaves it alone.

    Returns: loss f32[], metrics f32[].
    """
    logp, mask = _policy(logp, targets)
    ref_logp = _reference(targets.ref_logp, mask)
    seq_logp = jnp.sum(logp, axis=-1)
    ratio, outside = _ratio(seq_logp - jnp.sum(ref_logp, axis=-1), clip)
    weight = _scaled(_per_response(targets.advantage, mask), ratio)
    loss = -jnp.mean(weight * seq_logp)
    every = jnp.ones_like(weight, bool)
    ratios = _ratio_metrics(ratio, outside, every) | _kl_metric(logp, ref_logp)
    return _report(loss, logp, mask, _weight_metrics(weight, every), ratios)


def a_lol_ref_free(logp: jax.Array, targets: Targets) -> tuple[jax.Array, Metrics]:
    """mean A · NLL: A-LoL with the importance ratio taken as 1.

    A carries no gradient. Leftover Lunch, section 2 (variants).

    Args:
        logp: f32[E*, R].
        targets: ``advantage`` f32[E*] (taken as it comes; a negative one unlearns its response).

    Returns: loss f32[], metrics f32[].
    """
    return wbc(logp, targets._replace(reward=targets.advantage))


def a_lol_seq(
    logp: jax.Array, targets: Targets, *, clip: float | None = 0.9
) -> tuple[jax.Array, Metrics]:
    """mean A · Σ_t sg(clip(ρ_t)) · (−log π_t), with one ratio ρ_t = π_t/π_ref,t per token.

    Neither ρ_t nor A carries a gradient. Leftover Lunch, section 2 (A-LoL sequence).

    Args:
        logp: f32[E*, R].
        targets: ``ref_logp`` f32[E*, R], ``advantage`` f32[E*] (taken as it comes).
        clip: every ρ_t is held in [1 − clip, 1 + clip]; None or inf leaves it alone; 0 makes this
            ``a_lol_ref_free``.

    Returns: loss f32[], metrics f32[]; weights, ratios and the clipped share are per token.
    """
    logp, mask = _policy(logp, targets)
    ref_logp = _reference(targets.ref_logp, mask)
    ratio, outside = _ratio(logp - ref_logp, clip)
    weight = _scaled(_per_response(targets.advantage, mask)[..., None], ratio)
    loss = -jnp.mean(jnp.sum(weight * logp, axis=-1))
    ratios = _ratio_metrics(ratio, outside, mask) | _kl_metric(logp, ref_logp)
    return _report(loss, logp, mask, _weight_metrics(weight, mask), ratios)


def a_lol_kl(logp: jax.Array, targets: Targets, *, beta: float = 0.1) -> tuple[jax.Array, Metrics]:
    """mean A · NLL + beta · mean(NLL_ref − NLL): reference-free A-LoL with a KL term, as published.

    NLL_ref carries no gradient, so the gradient is that of mean (A − beta) · NLL: it **does not
    depend on the reference**, which only shifts the value of the loss. The term thus acts as a
    constant taken off every advantage, and rows with A < beta are pushed down. Leftover Lunch,
    section 2 (A-LoL KL).

    Args:
        logp: f32[E*, R].
        targets: ``ref_logp`` f32[E*, R], ``advantage`` f32[E*] (taken as it comes).
        beta: weight of the term; 0 gives ``a_lol_ref_free``.

    Returns: loss f32[], metrics f32[]; the weights reported are A − beta.
    """
    logp, mask = _policy(logp, targets)
    ref_logp = _reference(targets.ref_logp, mask)
    advantage = _per_response(targets.advantage, mask)
    seq_logp = jnp.sum(logp, axis=-1)
    log_ratio = seq_logp - jnp.sum(ref_logp, axis=-1)
    loss = -jnp.mean(advantage * seq_logp) + beta * jnp.mean(log_ratio)
    weights = _weight_metrics(advantage - beta, jnp.ones_like(advantage, bool))
    return _report(loss, logp, mask, weights, _kl_metric(logp, ref_logp))


def dpo(logp: jax.Array, targets: Targets, *, beta: float = 0.1) -> tuple[jax.Array, Metrics]:
    """mean −log σ(r_0 − r_1), with r_k = beta · (log π(y_k|x) − log π_ref(y_k|x)).

    Response 0 is the chosen one. Direct preference optimisation: Rafailov et al. 2023,
    arXiv:2305.18290, equation 7.

    Args:
        logp: f32[B, 2, R].
        targets: ``ref_logp`` f32[B, 2, R].
        beta: how strongly the reference holds the policy.

    Returns: loss f32[], metrics f32[]; the scores compared are r_0 and r_1.
    """
    chex.assert_shape(logp, (None, 2, None))
    logp, mask = _policy(logp, targets)
    ref_logp = _reference(targets.ref_logp, mask)
    score = beta * jnp.sum(logp - ref_logp, axis=-1)
    loss = -jnp.mean(jax.nn.log_sigmoid(score[:, 0] - score[:, 1]))
    return _report(loss, logp, mask, _pair_metrics(score), _kl_metric(logp, ref_logp))


def dpo_ref_free(
    logp: jax.Array, targets: Targets, *, beta: float = 0.1
) -> tuple[jax.Array, Metrics]:
    """mean −log σ(r_0 − r_1), with r_k = beta · log π(y_k|x): DPO against a uniform reference.

    Response 0 is the chosen one. Rafailov et al. 2023, arXiv:2305.18290, with the reference's
    difference set to 0.

    Args:
        logp: f32[B, 2, R].
        targets: reads ``mask`` only.
        beta: steepness of the preference.

    Returns: loss f32[], metrics f32[]; the scores compared are r_0 and r_1.
    """
    chex.assert_shape(logp, (None, 2, None))
    logp, mask = _policy(logp, targets)
    score = beta * jnp.sum(logp, axis=-1)
    loss = -jnp.mean(jax.nn.log_sigmoid(score[:, 0] - score[:, 1]))
    return _report(loss, logp, mask, _pair_metrics(score))


def _ranking(score: jax.Array, reward: jax.Array) -> jax.Array:
    """Σ_k L_k of ``pro``, averaged over the prompts, for ``score`` and ``reward`` f32[B, K]."""
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

    L_k = log(1e-10 + e^{s_k T_k} + Σ_{j>k} e^{s_j T_j}) − s_k T_k, with s_k the mean log π of a
    token of response k, T_j = scale · (R_k − R_j), T_k = max_{j>k} T_j. Responses rank by index,
    best first; a reward that contradicts the index turns its comparison round. R carries no
    gradient. Song et al. 2023, arXiv:2306.17492.

    Args:
        logp: f32[B, K, R] with K ≥ 2.
        targets: ``reward`` f32[B, K].
        sft_weight: of the NLL of response 0; scale: of the rewards, sharpens the ranking.

    Returns: loss f32[], metrics f32[]; the scores compared are s_k.
    """
    chex.assert_rank(logp, 3)
    chex.assert_axis_dimension_gteq(logp, 1, 2)
    logp, mask = _policy(logp, targets)
    reward = _per_response(targets.reward, mask)
    seq_logp = jnp.sum(logp, axis=-1)
    score = seq_logp / jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.float32), 1.0)
    sft = -jnp.mean(seq_logp[:, 0]) * (logp.shape[1] - 1) ** 2
    loss = _ranking(score, scale * reward) + sft_weight * sft
    return _report(loss, logp, mask, _pair_metrics(score))


OBJECTIVES: dict[str, Objective] = {
    "nll": Objective(nll, (), 1, None),
    "wbc": Objective(wbc, ("reward",), 1, "reward"),
    "r_gold": Objective(r_gold, ("reward",), 1, "reward"),
    "r_lol": Objective(r_lol, ("ref_logp", "reward"), 1, "reward"),
    "a_lol": Objective(a_lol, ("ref_logp", "advantage"), 1, "advantage"),
    "a_lol_ref_free": Objective(a_lol_ref_free, ("advantage",), 1, "advantage"),
    "a_lol_seq": Objective(a_lol_seq, ("ref_logp", "advantage"), 1, "advantage"),
    "a_lol_kl": Objective(a_lol_kl, ("ref_logp", "advantage"), 1, "advantage"),
    "dpo": Objective(dpo, ("ref_logp",), 2, None),
    "dpo_ref_free": Objective(dpo_ref_free, (), 2, None),
    "pro": Objective(pro, ("reward",), 2, None, more=True),
    "ppo": Objective(ppo, (), 1, None, online=True),
}


def hyper_parameters(objective: Objective) -> tuple[str, ...]:
    """The keyword-only arguments of an objective's loss."""
    parameters = inspect.signature(objective.loss).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def responses_of(objective: Objective, hyper: Mapping[str, Any]) -> int:
    """K, the responses of a prompt side by side; ``hyper`` is ``config.objective``."""
    return hyper["responses"] if objective.more else objective.responses


def get_objective(name: str) -> Objective:
    """The row of `OBJECTIVES`; an unknown name is a UserError."""
    if name not in OBJECTIVES:
        said = f"config.objective.name={name!r} is no objective"
        raise UserError.unknown(said, name, OBJECTIVES)
    return OBJECTIVES[name]
