"""PPO: what rewards, advantages, losses and moments are for; then padding and corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.objectives.ppo import (
    Moments,
    PPOTargets,
    adaptive_kl,
    explained_variance,
    ppo,
    ppo_advantages,
    ppo_token_rewards,
)
from alol_jax.training.metrics import METRICS

B, R = 6, 7
LENGTHS = np.array([7, 1, 3, 5, 6, 2])
MASK = (np.arange(R) < LENGTHS[:, None]).astype(np.float32)
INSIDE = MASK > 0
HYPER = {"clip": 0.2, "value_clip": 0.2, "value_weight": 0.1}


def _normal(seed, scale=1.0, shape=(B, R)):
    return np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32)


LOGP, REF_LOGP = -np.abs(_normal(0)), -np.abs(_normal(1))
SCORE, VALUES, REWARDS = _normal(2, shape=(B,)), _normal(3), _normal(4)
TARGETS = PPOTargets(MASK, LOGP, VALUES, _normal(5), VALUES + _normal(6, 0.5))


def _close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@jax.jit
def _valued(logp, values, targets, hyper):
    return jax.value_and_grad(lambda *a: ppo(*a, targets, **hyper), (0, 1), has_aux=True)(
        logp, values
    )


def _evaluate(logp, values, targets, **changes):
    """Loss, gradients with respect to logp and values, metrics."""
    (loss, metrics), grads = _valued(logp, values, targets, HYPER | changes)
    return loss, grads, metrics


def _padded(x, fill, columns=3):
    """More columns, and ``fill`` wherever the mask is 0."""
    wider = np.pad(x, ((0, 0), (0, columns)), constant_values=fill)
    return np.where(np.pad(INSIDE, ((0, 0), (0, columns))), wider, fill)


# rewards of tokens


def test_the_rewards_of_a_response_sum_to_its_score_less_the_penalty():
    found = np.asarray(ppo_token_rewards(SCORE, LOGP, REF_LOGP, MASK, kl_coef=0.3))
    kl = np.sum(np.where(INSIDE, LOGP - REF_LOGP, 0.0), axis=1)
    _close(found.sum(axis=1), SCORE - 0.3 * kl)


def test_at_the_anchor_only_the_last_token_is_rewarded():
    found = np.asarray(ppo_token_rewards(SCORE, LOGP, LOGP, MASK, kl_coef=0.3))
    _close(found[np.arange(B), LENGTHS - 1], SCORE)
    assert np.count_nonzero(found) == B


def test_a_token_likelier_than_under_the_anchor_costs():
    found = ppo_token_rewards(jnp.zeros(B), LOGP, LOGP - 1.0, MASK, kl_coef=0.25)
    _close(found, -0.25 * MASK)


def test_the_kl_coefficient_may_be_computed_on_the_device():
    traced = jax.jit(lambda c: ppo_token_rewards(SCORE, LOGP, REF_LOGP, MASK, kl_coef=c))
    _close(traced(jnp.float32(0.7)), ppo_token_rewards(SCORE, LOGP, REF_LOGP, MASK, kl_coef=0.7))


def test_a_response_without_tokens_is_not_rewarded():
    nothing = np.zeros_like(MASK)
    assert not np.any(ppo_token_rewards(SCORE, LOGP, REF_LOGP, nothing, kl_coef=0.3))


# advantages


def test_without_discount_returns_are_rewards_to_go_whatever_the_values_say():
    to_go = np.cumsum(np.where(INSIDE, REWARDS, 0.0)[:, ::-1], axis=1)[:, ::-1]
    for values in (VALUES, np.zeros_like(VALUES)):
        advantages, returns = ppo_advantages(
            REWARDS, values, MASK, gamma=1.0, lam=1.0, whiten=False
        )
        _close(returns[INSIDE], to_go[INSIDE])
        _close(advantages[INSIDE], (to_go - values)[INSIDE])


def test_with_lam_zero_a_token_is_judged_by_the_next_value():
    advantages, _ = ppo_advantages(REWARDS, VALUES, MASK, gamma=0.9, lam=0.0, whiten=False)
    for row, length in enumerate(LENGTHS):
        following = np.append(VALUES[row, 1:length], 0.0)
        expected = REWARDS[row, :length] + 0.9 * following - VALUES[row, :length]
        _close(advantages[row, :length], expected)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_values_that_know_what_comes_leave_no_advantage(lam):
    discounted = np.where(INSIDE, REWARDS, 0.0).astype(np.float64)
    for t in reversed(range(R - 1)):
        discounted[:, t] += 0.9 * discounted[:, t + 1]
    advantages, returns = ppo_advantages(
        REWARDS, discounted, MASK, gamma=0.9, lam=lam, whiten=False
    )
    _close(advantages, 0.0)
    _close(returns[INSIDE], discounted[INSIDE])


def test_a_surprise_reaches_earlier_tokens_by_gamma_times_lam():
    surprise = np.zeros_like(REWARDS)
    surprise[0, 6] = 1.0
    advantages, _ = ppo_advantages(
        surprise, np.zeros_like(VALUES), MASK, gamma=0.5, lam=0.8, whiten=False
    )
    _close(advantages[0], 0.4 ** np.arange(6, -1, -1))
    assert not np.any(advantages[1:])


def test_whitened_advantages_have_mean_zero_and_variance_one_over_the_tokens():
    advantages, returns = ppo_advantages(REWARDS, VALUES, MASK, gamma=1.0, lam=0.95)
    raw, unwhitened = ppo_advantages(REWARDS, VALUES, MASK, gamma=1.0, lam=0.95, whiten=False)
    assert np.mean(advantages[INSIDE]) == pytest.approx(0.0, abs=1e-6)
    assert np.var(advantages[INSIDE], ddof=1) == pytest.approx(1.0, rel=1e-5)
    assert np.corrcoef(advantages[INSIDE], raw[INSIDE])[0, 1] == pytest.approx(1.0)
    assert not np.any(advantages[~INSIDE])
    np.testing.assert_array_equal(returns, unwhitened)


def test_a_single_token_has_no_variance_and_its_advantage_is_zero():
    one = np.zeros_like(MASK)
    one[2, 0] = 1.0
    advantages, _ = ppo_advantages(REWARDS, VALUES, one, gamma=1.0, lam=0.95)
    assert not np.any(advantages)


# the loss


def test_before_the_first_step_the_gradient_is_the_policy_gradient():
    _, (of_logp, of_values), metrics = _evaluate(LOGP, VALUES, TARGETS)
    _close(of_logp, -TARGETS.advantages * MASK / MASK.sum())
    _close(of_values, 0.1 * (VALUES - TARGETS.returns) * MASK / MASK.sum())
    for name in ("fraction_clipped", "value_fraction_clipped", "approx_kl"):
        assert metrics[name] == 0.0


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"),
    [(1.0, 1.3, False), (1.0, 0.7, True), (-1.0, 1.3, True), (-1.0, 0.7, False)],
)
def test_a_token_that_went_far_enough_the_right_way_is_left_alone(advantage, ratio, moves):
    targets = TARGETS._replace(advantages=np.full_like(MASK, advantage))
    logp = LOGP + np.float32(np.log(ratio))
    _, (of_logp, _), metrics = _evaluate(logp, VALUES, targets)
    _close(of_logp, -advantage * ratio * MASK / MASK.sum() if moves else np.zeros_like(MASK))
    assert metrics["fraction_clipped"] == float(not moves)


@pytest.mark.parametrize(
    ("moved", "pulled"),
    [(0.5, False), (-0.5, True), (0.1, True)],  # the return is 1 above the old value
)
def test_a_value_that_went_far_enough_the_right_way_is_left_alone(moved, pulled):
    targets = TARGETS._replace(returns=VALUES + 1.0)
    _, (_, of_values), metrics = _evaluate(LOGP, VALUES + np.float32(moved), targets)
    expected = 0.1 * (moved - 1.0) * MASK / MASK.sum()
    _close(of_values, expected if pulled else np.zeros_like(MASK))
    assert metrics["value_fraction_clipped"] == float(not pulled)


def test_the_loss_is_that_of_the_policy_and_the_weighted_one_of_the_values():
    logp, values = LOGP + _normal(7, 0.2), VALUES + _normal(8, 0.2)
    loss, _, metrics = _evaluate(logp, values, TARGETS, value_weight=0.5)
    assert float(loss) == pytest.approx(
        float(metrics["policy_loss"] + 0.5 * metrics["value_loss"]), rel=1e-6
    )
    assert metrics["loss"] == loss and metrics["value_loss"] > 0


def test_parts_weighted_by_their_tokens_are_the_whole_batch():
    logp, values = LOGP + _normal(7, 0.2), VALUES + _normal(8, 0.2)
    whole, *_ = _evaluate(logp, values, TARGETS)
    parts = 0.0
    for rows in (slice(0, 2), slice(2, 6)):
        part = PPOTargets(*(field[rows] for field in TARGETS))
        parts += _evaluate(logp[rows], values[rows], part)[0] * MASK[rows].sum()
    _close(parts / MASK.sum(), whole)


def test_approx_kl_is_the_divergence_of_the_policy_that_wrote_the_tokens_from_the_new_one():
    old, new = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    drawn = np.repeat([0, 1, 2], (600 * old / 10).astype(int))  # each as often as old says
    logp, old_logp = (np.log(p)[drawn][:, None].astype(np.float32) for p in (new, old))
    ones = np.ones_like(logp)
    metrics = _evaluate(logp, ones, PPOTargets(ones, old_logp, ones, ones, ones))[2]
    assert float(metrics["approx_kl"]) == pytest.approx(np.sum(old * np.log(old / new)), rel=1e-5)


def test_only_the_policy_and_its_values_carry_a_gradient():
    def loss(targets):
        return ppo(LOGP + 0.1, VALUES + 0.1, targets, **HYPER)[0]

    for leaf in jax.tree.leaves(jax.grad(loss)(TARGETS)):
        assert not np.any(leaf)

    def reached(values):
        rewards = ppo_token_rewards(values[:, 0], values, LOGP, MASK, kl_coef=0.2)
        return sum(jnp.sum(x) for x in ppo_advantages(rewards, values, MASK, gamma=1.0, lam=0.9))

    assert not np.any(jax.grad(reached)(jnp.asarray(VALUES)))


def test_every_metric_is_a_scalar_that_is_explained():
    metrics = _evaluate(LOGP, VALUES, TARGETS)[2]
    assert set(metrics) <= set(METRICS)
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


# padding


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf, -np.inf])
def test_padding_and_what_stands_in_it_change_nothing(fill):
    mask = _padded(MASK, 0.0)
    logp, ref_logp, values = (_padded(x, fill) for x in (LOGP, REF_LOGP, VALUES))
    rewards = ppo_token_rewards(SCORE, LOGP, REF_LOGP, MASK, kl_coef=0.3)
    wide = ppo_token_rewards(SCORE, logp, ref_logp, mask, kl_coef=0.3)
    _close(wide, _padded(rewards, 0.0))

    found = ppo_advantages(rewards, VALUES, MASK, gamma=1.0, lam=0.95)
    wider = ppo_advantages(_padded(rewards, fill), values, mask, gamma=1.0, lam=0.95)
    for narrow, wide in zip(found, wider, strict=True):
        _close(wide, _padded(narrow, 0.0))

    moved = LOGP + _normal(7, 0.2), VALUES + _normal(8, 0.2)
    targets = PPOTargets(mask, *(_padded(field, fill) for field in TARGETS[1:]))
    loss, grads, metrics = _evaluate(*moved, TARGETS)
    wide_loss, wide_grads, wide_metrics = _evaluate(*(_padded(x, fill) for x in moved), targets)
    _close(wide_loss, loss)
    for narrow, wide in zip(grads, wide_grads, strict=True):
        _close(wide, _padded(narrow, 0.0))
    for name, value in metrics.items():
        _close(wide_metrics[name], value)
    _close(explained_variance(values, targets.returns, mask), _explained(VALUES))


def test_half_precision_comes_out_as_float32():
    half = LOGP.astype(jnp.bfloat16)
    loss, _, metrics = _evaluate(half, VALUES, TARGETS)
    assert loss.dtype == jnp.float32
    assert all(value.dtype == jnp.float32 for value in metrics.values())
    found = ppo_advantages(half, half, MASK, gamma=1.0, lam=0.95)
    assert all(x.dtype == jnp.float32 for x in found)


@pytest.mark.parametrize("shape", [(B, R + 1), (R, B)])
def test_shapes_that_do_not_agree_are_found_at_the_door(shape):
    wrong = np.zeros(shape, np.float32)
    for call in (
        lambda: ppo_token_rewards(SCORE, wrong, REF_LOGP, MASK, kl_coef=0.1),
        lambda: ppo_advantages(wrong, VALUES, MASK, gamma=1.0, lam=1.0),
        lambda: ppo(wrong, VALUES, TARGETS, **HYPER),
    ):
        with pytest.raises(AssertionError):
            call()


# values, scores, coefficient


def _explained(values):
    return float(explained_variance(values, TARGETS.returns, MASK))


def test_explained_variance_is_one_if_perfect_zero_of_a_constant_and_negative_if_worse():
    assert _explained(TARGETS.returns) == pytest.approx(1.0)
    assert _explained(TARGETS.returns + 3.0) == pytest.approx(1.0, abs=1e-5)  # a constant off
    assert _explained(np.full_like(VALUES, 5.0)) == pytest.approx(0.0, abs=1e-5)
    assert _explained(-TARGETS.returns) == pytest.approx(-3.0, rel=1e-4)
    assert float(explained_variance(VALUES, np.ones_like(VALUES), MASK)) == 0.0


def test_the_moments_of_pieces_are_those_of_all():
    numbers = 100.0 + _normal(9, shape=(37,))
    moments = Moments.empty()
    for piece in (numbers[:1], numbers[1:3], numbers[3:20], numbers[20:]):
        moments = moments.update(jnp.asarray(piece))
    assert float(moments.count) == 37
    assert float(moments.mean) == pytest.approx(numbers.mean(), rel=1e-6)
    assert float(moments.std) == pytest.approx(numbers.std(ddof=1), rel=1e-4)


def test_scores_are_normalised_from_the_first_batch_on():
    moments = Moments.empty().update(SCORE)
    found = np.asarray(moments.normalise(SCORE))
    assert found.mean() == pytest.approx(0.0, abs=1e-6)
    assert found.std(ddof=1) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("scores", [np.full(7, 0.1), np.full(7, 1e4 / 3), np.array([0.3])])
def test_scores_that_are_all_equal_become_zero(scores):
    moments = Moments.empty().update(scores)
    for _ in range(3):
        _close(moments.normalise(scores), 0.0, 1e-6 * (1.0 + scores[0]))
        moments = moments.update(scores)


def test_a_new_score_after_equal_ones_keeps_its_distance():
    moments = Moments.empty().update(np.full(8, 0.25))
    _close(moments.normalise(np.array([0.75])), [0.5])


def test_the_coefficient_follows_the_divergence_within_its_bounds():
    now = {"target": 6.0, "horizon": 10_000, "rollouts": 16}
    assert float(adaptive_kl(0.2, jnp.float32(6.0), **now)) == pytest.approx(0.2)
    above, below = (float(adaptive_kl(0.2, jnp.float32(kl), **now)) for kl in (6.6, 5.4))
    assert above == pytest.approx(0.2 * (1 + 0.1 * 16 / 10_000), rel=1e-6)
    assert below == pytest.approx(0.2 * (1 - 0.1 * 16 / 10_000), rel=1e-6)
    for kl, bound in ((1e3, 1.2), (-1e3, 0.8)):
        far = adaptive_kl(0.2, jnp.float32(kl), target=6.0, horizon=16, rollouts=16)
        assert float(far) == pytest.approx(0.2 * bound)
