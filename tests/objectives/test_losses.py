"""The losses: identities first, then padding, dtypes, corners."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.types import Targets
from tests.objectives.cases import (
    NAMES,
    PAIRED,
    SINGLE,
    WITH_RATIO,
    B,
    R,
    assert_same,
    evaluate,
    random_case,
)

FIELDS = ("ref_logp", "reward", "advantage")


# What one objective says about another.


def test_a_lol_at_the_reference_is_reference_free():
    logp, targets = random_case("a_lol")
    targets = targets._replace(ref_logp=logp)
    assert_same(evaluate("a_lol", logp, targets), evaluate("a_lol_ref_free", logp, targets))
    unclipped = evaluate("a_lol", logp, targets, clip=None)
    assert_same(unclipped, evaluate("a_lol_ref_free", logp, targets))


def test_a_lol_seq_at_the_reference_is_reference_free():
    logp, targets = random_case("a_lol_seq")
    targets = targets._replace(ref_logp=logp)
    assert_same(evaluate("a_lol_seq", logp, targets), evaluate("a_lol_ref_free", logp, targets))


@pytest.mark.parametrize("name", ["a_lol", "a_lol_seq"])
def test_a_clip_of_zero_is_reference_free(name):
    logp, targets = random_case(name)
    clipped = evaluate(name, logp, targets, clip=0.0)
    assert_same(clipped, evaluate("a_lol_ref_free", logp, targets))


@pytest.mark.parametrize("name", WITH_RATIO)
def test_no_clip_an_infinite_clip_and_a_wide_clip_are_the_same(name):
    logp, targets = random_case(name)
    unclipped = evaluate(name, logp, targets, clip=None)
    assert_same(unclipped, evaluate(name, logp, targets, clip=float("inf")))
    assert_same(unclipped, evaluate(name, logp, targets, clip=1e6))


@pytest.mark.parametrize("clip", [None, 0.2, 0.9])
def test_a_lol_on_rewards_is_r_lol(clip):
    logp, targets = random_case("a_lol")
    on_rewards = targets._replace(advantage=targets.reward)
    a_lol = evaluate("a_lol", logp, on_rewards, clip=clip)
    assert_same(a_lol, evaluate("r_lol", logp, targets, clip=clip))


def test_a_lol_and_a_lol_seq_agree_on_responses_of_one_token():
    logp, targets = random_case("a_lol")
    targets = targets._replace(mask=np.tile(np.arange(R) == 0, (B, 1)))
    assert_same(evaluate("a_lol", logp, targets), evaluate("a_lol_seq", logp, targets))


def test_a_lol_kl_without_beta_is_reference_free():
    logp, targets = random_case("a_lol_kl")
    assert_same(
        evaluate("a_lol_kl", logp, targets, beta=0.0), evaluate("a_lol_ref_free", logp, targets)
    )


def test_the_gradient_of_a_lol_kl_is_reference_free_with_beta_off_every_advantage():
    logp, targets = random_case("a_lol_kl")
    shifted = targets._replace(advantage=targets.advantage - 0.3)
    _, grad, _ = evaluate("a_lol_kl", logp, targets, beta=0.3)
    _, expected, _ = evaluate("a_lol_ref_free", logp, shifted)
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_a_lol_kl_does_not_depend_on_the_reference_but_its_value_does():
    logp, targets = random_case("a_lol_kl")
    other = targets._replace(ref_logp=targets.ref_logp * 3.0 - 1.0)
    loss, grad, _ = evaluate("a_lol_kl", logp, targets)
    other_loss, other_grad, _ = evaluate("a_lol_kl", logp, other)
    np.testing.assert_array_equal(grad, other_grad)
    assert abs(float(loss - other_loss)) > 1e-3


def test_wbc_with_unit_rewards_is_nll():
    logp, targets = random_case("wbc")
    unit = targets._replace(reward=np.ones(B))
    assert_same(evaluate("wbc", logp, unit), evaluate("nll", logp, targets))


def test_r_gold_with_a_floor_of_one_is_wbc():
    logp, targets = random_case("r_gold")
    floored = evaluate("r_gold", logp, targets, floor=1.0)
    assert_same(floored, evaluate("wbc", logp, targets))


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_with_a_uniform_reference_is_dpo_reference_free(beta):
    logp, targets = random_case("dpo")
    zero = targets._replace(ref_logp=np.zeros_like(targets.ref_logp))
    uniform = evaluate("dpo", logp, zero, beta=beta)
    assert_same(uniform, evaluate("dpo_ref_free", logp, targets, beta=beta))


def test_dpo_at_the_reference_is_log_two():
    logp, targets = random_case("dpo")
    loss, _, metrics = evaluate("dpo", logp, targets._replace(ref_logp=logp))
    np.testing.assert_allclose(loss, np.log(2.0), rtol=1e-6)
    assert metrics["margin"] == 0.0


def test_pro_with_two_responses_of_one_token_is_dpo_reference_free_with_the_reward_gap_as_beta():
    logp, targets = random_case("pro")
    targets = targets._replace(
        mask=np.tile(np.arange(R) == 0, (B, 2, 1)),
        reward=np.tile(np.array([0.8, 0.3]), (B, 1)),
    )
    ranked = evaluate("pro", logp, targets, sft_weight=0.0)
    assert_same(ranked, evaluate("dpo_ref_free", logp, targets, beta=0.5))


def test_the_sft_part_of_pro_is_nll_of_the_chosen_response():
    logp, targets = random_case("pro")
    with_sft, grad_with, _ = evaluate("pro", logp, targets, sft_weight=0.3)
    without, grad_without, _ = evaluate("pro", logp, targets, sft_weight=0.0)
    chosen = Targets(*(column[:, 0] for column in targets))
    nll, grad_nll, _ = evaluate("nll", logp[:, 0], chosen)
    np.testing.assert_allclose(with_sft - without, 0.3 * nll, rtol=1e-5)
    np.testing.assert_allclose((grad_with - grad_without)[:, 0], 0.3 * grad_nll, atol=1e-6)
    np.testing.assert_allclose((grad_with - grad_without)[:, 1], 0.0, atol=1e-6)


def test_pro_stays_finite_when_the_scores_are_extreme():
    logp, targets = random_case("pro")
    targets = targets._replace(reward=np.tile(np.array([9.0, -9.0]), (B, 1)))
    for scale in (1e3, 1e-3):
        loss, grad, _ = evaluate("pro", logp * scale, targets)
        assert np.isfinite(loss) and np.all(np.isfinite(grad))


# What holds for all of them.


@pytest.mark.parametrize("garbage", [np.nan, -np.inf, np.inf, -1e30])
@pytest.mark.parametrize("name", NAMES)
def test_what_stands_at_masked_positions_changes_nothing(name, garbage):
    logp, targets = random_case(name)

    def poison(x):
        return np.where(targets.mask > 0, x, garbage)

    poisoned = targets._replace(ref_logp=poison(targets.ref_logp))
    clean = evaluate(name, logp, targets)
    dirty = evaluate(name, poison(logp), poisoned)
    chex.assert_trees_all_equal(clean, dirty)
    assert np.all(np.asarray(dirty[1])[np.asarray(targets.mask) == 0] == 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_more_padding_changes_nothing(name):
    logp, targets = random_case(name)

    def pad(x):
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 5)])

    padded = targets._replace(mask=pad(targets.mask), ref_logp=pad(targets.ref_logp))
    loss, grad, metrics = evaluate(name, logp, targets)
    longer_loss, longer_grad, longer_metrics = evaluate(name, pad(logp), padded)
    assert_same((loss, pad(grad)), (longer_loss, longer_grad))
    chex.assert_trees_all_close(metrics, longer_metrics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_rows_changes_nothing(name):
    logp, targets = random_case(name)
    order = np.random.default_rng(1).permutation(B)
    shuffled = Targets(*(column[order] for column in targets))
    loss, grad, metrics = evaluate(name, logp, targets)
    new_loss, new_grad, new_metrics = evaluate(name, logp[order], shuffled)
    assert_same((loss, grad[order]), (new_loss, new_grad))
    chex.assert_trees_all_close(metrics, new_metrics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_twice_over_has_the_same_loss(name):
    logp, targets = random_case(name)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), (logp, targets))
    loss, grad, metrics = evaluate(name, logp, targets)
    double_loss, double_grad, double_metrics = evaluate(name, *twice)
    assert_same((loss, grad), (double_loss, 2.0 * double_grad[:B]))
    chex.assert_trees_all_close(metrics, double_metrics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["nll", "wbc", "r_gold", "a_lol_ref_free", "a_lol_seq"])
def test_a_response_said_twice_costs_twice_because_tokens_are_summed(name):
    logp, targets = random_case(name)
    said_twice = targets._replace(
        mask=np.tile(targets.mask, (1, 2)), ref_logp=np.tile(targets.ref_logp, (1, 2))
    )
    loss, grad, _ = evaluate(name, logp, targets)
    assert_same(
        (2.0 * loss, np.tile(grad, (1, 2))), evaluate(name, np.tile(logp, (1, 2)), said_twice)
    )


@pytest.mark.parametrize("name", SINGLE)
def test_several_responses_per_prompt_are_more_rows(name):
    logp, targets = random_case(name)
    grouped = jax.tree.map(lambda x: x.reshape(B // 2, 2, *x.shape[1:]), targets)
    loss, grad, _ = evaluate(name, logp, targets)
    group_loss, group_grad, _ = evaluate(name, logp.reshape(B // 2, 2, R), grouped)
    assert_same((loss, grad), (group_loss, group_grad.reshape(B, R)))


@pytest.mark.parametrize("name", NAMES)
def test_reads_lists_exactly_the_fields_that_matter(name):
    logp, targets = random_case(name)
    clean = evaluate(name, logp, targets)
    for field in FIELDS:
        broken = targets._replace(**{field: np.full_like(getattr(targets, field), np.nan)})
        if field in OBJECTIVES[name].reads:
            assert np.isnan(evaluate(name, logp, broken)[0]), field
        else:
            chex.assert_trees_all_equal(clean, evaluate(name, logp, broken))


@pytest.mark.parametrize("name", NAMES)
def test_only_logp_carries_a_gradient(name):
    logp, targets = random_case(name)
    grads = jax.jit(jax.grad(lambda t: OBJECTIVES[name].loss(logp, t)[0]))(targets)
    chex.assert_trees_all_equal(grads, jax.tree.map(np.zeros_like, targets))
    assert np.any(np.asarray(evaluate(name, logp, targets)[1]) != 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_carry_no_gradient(name):
    logp, targets = random_case(name)
    total = jax.grad(lambda x: sum(OBJECTIVES[name].loss(x, targets)[1].values()))
    np.testing.assert_array_equal(jax.jit(total)(logp), np.zeros_like(logp))


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_say_what_one_says(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    one = evaluate(name, *random_case(name))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    eight = evaluate(name, *jax.device_put(random_case(name), rows))
    chex.assert_trees_all_close(one, jax.device_get(eight), rtol=1e-5, atol=1e-6)


# dtypes and shapes.


@pytest.mark.parametrize("name", ["wbc", "r_gold", "r_lol", "pro"])
def test_whole_rewards_may_come_as_integers(name):
    logp, targets = random_case(name)
    whole = np.arange(targets.reward.size, dtype=np.int32).reshape(targets.reward.shape)
    assert_same(
        evaluate(name, logp, targets._replace(reward=whole)),
        evaluate(name, logp, targets._replace(reward=whole.astype(np.float32))),
    )


def test_fractional_rewards_are_not_rounded_whatever_the_other_dtypes():
    logp = np.full((4, 2), -1.0, jnp.bfloat16)
    mask = np.ones((4, 2), np.int32)
    targets = Targets(mask, np.zeros((4, 2)), np.full(4, 0.75, jnp.bfloat16), np.zeros(4))
    loss, grad, _ = evaluate("wbc", logp, targets)
    assert float(loss) == 1.5
    np.testing.assert_array_equal(np.asarray(grad, np.float32), np.full((4, 2), -0.75 / 4))


@pytest.mark.parametrize("dtype", [bool, np.int32, np.int64, np.float32])
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_may_have_any_dtype(name, dtype):
    logp, targets = random_case(name)
    typed = targets._replace(mask=np.asarray(targets.mask).astype(dtype))
    assert_same(evaluate(name, logp, targets), evaluate(name, logp, typed))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_log_probabilities_give_an_f32_loss_and_f32_metrics(name):
    logp, targets = random_case(name)
    loss, grad, metrics = evaluate(name, logp.astype(jnp.bfloat16), targets)
    assert loss.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    assert {value.dtype for value in metrics.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_shape_is_refused_at_the_door(name):
    logp, targets = random_case(name)
    loss = OBJECTIVES[name].loss
    wrong = {field: getattr(targets, field)[..., :1] for field in OBJECTIVES[name].reads}
    for field, column in (wrong | {"mask": targets.mask[:, :1]}).items():
        with pytest.raises(AssertionError):
            loss(logp, targets._replace(**{field: column}))


@pytest.mark.parametrize("name", PAIRED)
def test_a_comparison_needs_two_responses(name):
    logp, targets = random_case(name)
    alone = jax.tree.map(lambda x: x[:, :1], targets)
    with pytest.raises(AssertionError):
        OBJECTIVES[name].loss(logp[:, :1], alone)
    with pytest.raises(AssertionError):
        OBJECTIVES[name].loss(logp[:, 0], jax.tree.map(lambda x: x[:, 0], targets))


# Corners.


def test_an_advantage_of_zero_wins_over_a_ratio_that_overflows():
    logp, targets = random_case("a_lol")
    first = np.arange(B) == 0
    targets = targets._replace(
        ref_logp=np.where(first[:, None], logp - 200.0, logp),
        advantage=np.where(first, 0.0, targets.advantage),
    )
    for name in ("a_lol", "a_lol_seq"):
        loss, grad, metrics = evaluate(name, logp, targets, clip=None)
        assert np.isfinite(loss) and np.all(np.isfinite(grad))
        assert np.isfinite(metrics["effective_sample_size"])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_response_gives_finite_results(name):
    logp, targets = random_case(name)
    empty = targets._replace(mask=np.zeros_like(targets.mask))
    loss, grad, metrics = evaluate(name, logp, empty)
    chex.assert_tree_all_finite((loss, metrics))
    np.testing.assert_array_equal(grad, np.zeros_like(logp))
