"""The losses: identities first, then padding, dtypes and metrics, then the golden values."""

from __future__ import annotations

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alol_jax.objectives import METRICS, OBJECTIVES
from alol_jax.types import Targets

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(OBJECTIVES)
SINGLE = [name for name in NAMES if OBJECTIVES[name].responses == 1]
PAIRED = [name for name in NAMES if OBJECTIVES[name].responses > 1]
WEIGHTED = [name for name in SINGLE if name != "nll"]
WITH_RATIO = ["r_lol", "a_lol", "a_lol_seq"]
FIELDS = ("ref_logp", "reward", "advantage")

B, R = 8, 7


def random_case(name: str, seed: int = 0) -> tuple[jax.Array, Targets]:
    """Random log-probabilities and targets of the shape that the objective takes."""
    rng = np.random.default_rng(seed)
    responses = OBJECTIVES[name].responses
    shape = (B, responses, R) if responses > 1 else (B, R)
    lengths = rng.integers(1, R + 1, shape[:-1])
    mask = np.arange(R) < lengths[..., None]
    logp = -rng.exponential(0.5, shape)
    ref_logp = logp + rng.normal(0.0, 0.3, shape)
    reward = rng.uniform(0.1, 1.0, shape[:-1])
    advantage = np.maximum(rng.normal(0.2, 0.4, shape[:-1]), 0.0)
    columns = [jnp.asarray(x, jnp.float32) for x in (logp, mask, ref_logp, reward, advantage)]
    return columns[0], Targets(*columns[1:])


@functools.cache
def compiled(name: str, hyper: tuple[tuple[str, float | None], ...]):
    loss = functools.partial(OBJECTIVES[name].loss, **dict(hyper))
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def evaluate(name: str, logp, targets: Targets, **hyper):
    """Loss, gradient with respect to logp, and metrics."""
    (value, metrics), grad = compiled(name, tuple(hyper.items()))(logp, targets)
    return value, grad, metrics


def assert_same(first, second, tolerance: float = 1e-6) -> None:
    """Loss and gradient agree."""
    for one, other in zip(first[:2], second[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


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
    targets = targets._replace(mask=jnp.zeros((B, R)).at[:, 0].set(1.0))
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
    unit = targets._replace(reward=jnp.ones(B))
    assert_same(evaluate("wbc", logp, unit), evaluate("nll", logp, targets))


def test_r_gold_with_a_floor_of_one_is_wbc():
    logp, targets = random_case("r_gold")
    floored = evaluate("r_gold", logp, targets, floor=1.0)
    assert_same(floored, evaluate("wbc", logp, targets))


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_with_a_uniform_reference_is_dpo_reference_free(beta):
    logp, targets = random_case("dpo")
    zero = targets._replace(ref_logp=jnp.zeros_like(targets.ref_logp))
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
        mask=jnp.zeros((B, 2, R)).at[..., 0].set(1.0),
        reward=jnp.tile(jnp.array([0.8, 0.3]), (B, 1)),
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
    targets = targets._replace(reward=jnp.tile(jnp.array([9.0, -9.0]), (B, 1)))
    for scale in (1e3, 1e-3):
        loss, grad, _ = evaluate("pro", logp * scale, targets)
        assert np.isfinite(loss) and np.all(np.isfinite(grad))


# What holds for all of them.


@pytest.mark.parametrize("garbage", [np.nan, -np.inf, np.inf, -1e30])
@pytest.mark.parametrize("name", NAMES)
def test_what_stands_at_masked_positions_changes_nothing(name, garbage):
    logp, targets = random_case(name)

    def poison(x):
        return jnp.where(targets.mask > 0, x, garbage)

    poisoned = targets._replace(ref_logp=poison(targets.ref_logp))
    clean = evaluate(name, logp, targets)
    dirty = evaluate(name, poison(logp), poisoned)
    chex.assert_trees_all_equal(clean, dirty)
    assert np.all(np.asarray(dirty[1])[np.asarray(targets.mask) == 0] == 0.0)
    # Outside jit as well: XLA turns a product with a bool mask into a select, which hides nan · 0.
    loss, _ = OBJECTIVES[name].loss(poison(logp), poisoned)
    grad = jax.grad(lambda x: OBJECTIVES[name].loss(x, poisoned)[0])(poison(logp))
    assert_same(clean, (loss, grad))


@pytest.mark.parametrize("name", NAMES)
def test_more_padding_changes_nothing(name):
    logp, targets = random_case(name)

    def pad(x):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 5)])

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
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), (logp, targets))
    loss, grad, metrics = evaluate(name, logp, targets)
    double_loss, double_grad, double_metrics = evaluate(name, *twice)
    assert_same((loss, grad), (double_loss, 2.0 * double_grad[:B]))
    chex.assert_trees_all_close(metrics, double_metrics, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["nll", "wbc", "r_gold", "a_lol_ref_free", "a_lol_seq"])
def test_a_response_said_twice_costs_twice_because_tokens_are_summed(name):
    logp, targets = random_case(name)
    said_twice = targets._replace(
        mask=jnp.tile(targets.mask, (1, 2)), ref_logp=jnp.tile(targets.ref_logp, (1, 2))
    )
    loss, grad, _ = evaluate(name, logp, targets)
    assert_same(
        (2.0 * loss, jnp.tile(grad, (1, 2))), evaluate(name, jnp.tile(logp, (1, 2)), said_twice)
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
        broken = targets._replace(**{field: jnp.full_like(getattr(targets, field), jnp.nan)})
        if field in OBJECTIVES[name].reads:
            assert np.isnan(evaluate(name, logp, broken)[0]), field
        else:
            chex.assert_trees_all_equal(clean, evaluate(name, logp, broken))


@pytest.mark.parametrize("name", NAMES)
def test_only_logp_carries_a_gradient(name):
    logp, targets = random_case(name)
    loss = OBJECTIVES[name].loss
    grads = jax.grad(lambda t: loss(logp, t)[0])(targets)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, targets))
    assert np.any(np.asarray(jax.grad(lambda x: loss(x, targets)[0])(logp)) != 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_metrics_carry_no_gradient(name):
    logp, targets = random_case(name)
    grad = jax.grad(lambda x: sum(OBJECTIVES[name].loss(x, targets)[1].values()))(logp)
    np.testing.assert_array_equal(grad, jnp.zeros_like(logp))


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
    whole = jnp.arange(targets.reward.size, dtype=jnp.int32).reshape(targets.reward.shape)
    assert_same(
        evaluate(name, logp, targets._replace(reward=whole)),
        evaluate(name, logp, targets._replace(reward=whole.astype(jnp.float32))),
    )


def test_fractional_rewards_are_not_rounded_whatever_the_other_dtypes():
    logp = jnp.full((4, 2), -1.0, jnp.bfloat16)
    mask = jnp.ones((4, 2), jnp.int32)
    targets = Targets(mask, jnp.zeros((4, 2)), jnp.full(4, 0.75, jnp.bfloat16), jnp.zeros(4))
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
    targets = targets._replace(
        ref_logp=(logp - 200.0).at[1:].set(logp[1:]), advantage=targets.advantage.at[0].set(0.0)
    )
    for name in ("a_lol", "a_lol_seq"):
        loss, grad, metrics = evaluate(name, logp, targets, clip=None)
        assert np.isfinite(loss) and np.all(np.isfinite(grad))
        assert np.isfinite(metrics["effective_sample_size"])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_response_gives_finite_results(name):
    logp, targets = random_case(name)
    empty = targets._replace(mask=jnp.zeros_like(targets.mask))
    loss, grad, metrics = evaluate(name, logp, empty)
    chex.assert_tree_all_finite((loss, metrics))
    np.testing.assert_array_equal(grad, jnp.zeros_like(logp))


# Metrics.


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_reports_the_scalars_of_its_kind(name):
    loss, _, metrics = evaluate(name, *random_case(name))
    expected = {"loss", "nll", "logp_per_token"}
    expected |= {"weight_mean", "effective_sample_size"} if name in WEIGHTED else set()
    expected |= {"ratio_mean", "fraction_clipped"} if name in WITH_RATIO else set()
    expected |= {"kl_to_reference"} if "ref_logp" in OBJECTIVES[name].reads else set()
    pairs = {"chosen_reward", "rejected_reward", "margin", "accuracy"}
    expected |= pairs if name in PAIRED else set()
    assert set(metrics) == expected
    assert all(value.shape == () for value in metrics.values())
    assert metrics["loss"] == loss


def test_every_metric_is_explained_and_every_explained_metric_occurs():
    seen = set()
    for name in NAMES:
        seen |= set(evaluate(name, *random_case(name))[2])
    assert seen == set(METRICS)


def test_the_nll_metric_is_the_nll_loss_for_every_objective():
    for name in SINGLE:
        logp, targets = random_case(name)
        expected, _, _ = evaluate("nll", logp, targets)
        np.testing.assert_allclose(evaluate(name, logp, targets)[2]["nll"], expected, rtol=1e-6)


def test_logp_per_token_counts_tokens_not_rows():
    logp = jnp.array([[-1.0, -9.0, -9.0], [-2.0, -3.0, -2.0]])
    mask = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    targets = Targets(mask, logp, jnp.ones(2), jnp.ones(2))
    assert evaluate("nll", logp, targets)[2]["logp_per_token"] == -2.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_shares_lie_between_zero_and_one_and_the_kl_is_not_negative(name, seed):
    _, _, metrics = evaluate(name, *random_case(name, seed))
    for share in ("fraction_clipped", "effective_sample_size", "accuracy"):
        assert 0.0 <= metrics.get(share, 0.0) <= 1.0
    assert metrics.get("kl_to_reference", 0.0) >= 0.0


@pytest.mark.parametrize("name", WITH_RATIO)
def test_at_the_reference_the_ratio_is_one_nothing_is_clipped_and_the_kl_is_zero(name):
    logp, targets = random_case(name)
    _, _, metrics = evaluate(name, logp, targets._replace(ref_logp=logp), clip=0.1)
    assert metrics["ratio_mean"] == 1.0
    assert metrics["fraction_clipped"] == 0.0
    assert metrics["kl_to_reference"] == 0.0


def test_fraction_clipped_counts_sequences_in_a_lol_and_tokens_in_a_lol_seq():
    """One of 4 rows, and one of its 2 tokens, is twice as likely as under the reference."""
    ref_logp = jnp.full((4, 2), -1.0)
    logp = ref_logp.at[0, 0].add(np.log(2.0))
    targets = Targets(jnp.ones((4, 2)), ref_logp, jnp.ones(4), jnp.ones(4))
    for name, share in (("a_lol", 1 / 4), ("r_lol", 1 / 4), ("a_lol_seq", 1 / 8)):
        metrics = evaluate(name, logp, targets, clip=0.5)[2]
        np.testing.assert_allclose(metrics["fraction_clipped"], share)
        np.testing.assert_allclose(metrics["ratio_mean"], 1.0 + 0.5 * share)
        assert evaluate(name, logp, targets, clip=None)[2]["fraction_clipped"] == 0.0


def test_effective_sample_size_is_one_for_equal_weights_one_nth_for_one_and_zero_for_none():
    logp, targets = random_case("a_lol_ref_free")
    one_row = jnp.zeros(B).at[3].set(5.0)
    for advantage, size in ((jnp.full(B, 0.3), 1.0), (one_row, 1 / B), (jnp.zeros(B), 0.0)):
        metrics = evaluate("a_lol_ref_free", logp, targets._replace(advantage=advantage))[2]
        np.testing.assert_allclose(metrics["effective_sample_size"], size, rtol=1e-6)
        np.testing.assert_allclose(metrics["weight_mean"], jnp.mean(advantage), rtol=1e-6)


def test_effective_sample_size_of_token_weights_counts_no_padding():
    """4 tokens in responses of 1 and 3, and only the first response has a weight."""
    mask = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    logp, weight = jnp.full((2, 3), -1.0), jnp.array([1.0, 0.0])
    targets = Targets(mask, logp, weight, weight)
    for name, hyper in (("a_lol_seq", {"clip": 0.0}), ("r_gold", {"floor": 1.0})):
        metrics = evaluate(name, logp, targets, **hyper)[2]
        assert metrics["effective_sample_size"] == 0.25
        assert metrics["weight_mean"] == 0.25


@pytest.mark.parametrize("name", ["wbc", "a_lol_ref_free"])
def test_effective_sample_size_does_not_depend_on_the_scale_of_the_weights(name):
    logp, targets = random_case(name)
    field = OBJECTIVES[name].reads[0]
    sizes = []
    for scale in (1.0, 1e25, 1e-25):
        scaled = targets._replace(**{field: getattr(targets, field) * scale})
        sizes.append(evaluate(name, logp, scaled)[2]["effective_sample_size"])
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-5)


def test_accuracy_and_margin_follow_the_scores():
    logp = jnp.array([[[-1.0], [-2.0]], [[-3.0], [-1.0]], [[-1.0], [-1.0]], [[-1.0], [-4.0]]])
    targets = Targets(jnp.ones((4, 2, 1)), jnp.zeros((4, 2, 1)), jnp.ones((4, 2)), jnp.ones((4, 2)))
    metrics = evaluate("dpo_ref_free", logp, targets, beta=0.5)[2]
    assert metrics["accuracy"] == 0.5  # a tie is not a win
    assert metrics["chosen_reward"] == -0.75 and metrics["rejected_reward"] == -1.0
    assert metrics["margin"] == 0.25


# Golden values: recorded from the published implementation.


@functools.cache
def golden(file: str) -> dict[str, dict[str, np.ndarray]]:
    """Case -> array name -> array."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(GOLDEN / file) as archive:
        for key in archive.files:
            case, array = key.split("/")
            cases.setdefault(case, {})[array] = archive[key]
    return cases


def golden_cases(file: str, *prefixes: str) -> list[str]:
    return [case for case in golden(file) if case.startswith(prefixes)]


def published_spelling(case: str) -> tuple[str, dict[str, float | None], str]:
    """Our objective, its hyper-parameters and its column of weights for a recorded case."""
    script, name, clip, beta, _ = case.split("__")
    clip = None if clip == "clipNone" else float(clip.removeprefix("clip"))
    beta = None if beta == "betaNone" else float(beta.removeprefix("beta"))
    column = "clamped"
    if script == "hha" and beta:
        column = "reward" if name == "r_lol" else "clamped"
        name = "a_lol_kl"
    elif script == "hha" and name == "a_lol_ref_free":
        column = "unclamped"
    hyper = {"a_lol_kl": {"beta": beta}, "r_gold": {"floor": 0.1}}.get(name, {})
    return name, {"clip": clip} if name in WITH_RATIO else hyper, column


@pytest.mark.parametrize("case", golden_cases("objectives.npz", ""))
def test_the_published_objectives_are_met(case):
    name, hyper, column = published_spelling(case)
    arrays = golden("objectives.npz")[case]
    advantage = arrays["rewards"] - arrays["values"]
    advantage = {
        "clamped": np.maximum(advantage, 0.0),
        "unclamped": advantage,
        "reward": arrays["rewards"],
    }[column]
    targets = Targets(arrays["mask"], arrays["reference_logps"], arrays["rewards"], advantage)
    recorded = arrays["loss"], arrays["grad_policy_logps"]
    assert_same(evaluate(name, arrays["policy_logps"], targets, **hyper), recorded, 2e-5)


@pytest.mark.parametrize("case", golden_cases("baselines.npz", "dpo"))
def test_the_published_dpo_is_met(case):
    arrays = golden("baselines.npz")[case]
    _, beta, reference, _ = case.split("__")
    name = {"ref": "dpo", "reffree": "dpo_ref_free"}[reference]
    logp = np.stack([arrays["chosen"], arrays["rejected"]], axis=1)[..., None]
    ref_logp = np.stack([arrays["ref_chosen"], arrays["ref_rejected"]], axis=1)[..., None]
    unread = np.full(logp.shape[:-1], np.nan)
    targets = Targets(np.ones_like(logp), ref_logp, unread, unread)
    loss, grad, metrics = evaluate(name, logp, targets, beta=float(beta.removeprefix("beta")))
    recorded = np.stack([arrays["grad_chosen"], arrays["grad_rejected"]], axis=1)
    assert_same((loss, grad[..., 0]), (arrays["loss"], recorded), 2e-5)
    if name == "dpo":
        for ours, theirs in (("chosen", "chosen_rewards"), ("rejected", "rejected_rewards")):
            np.testing.assert_allclose(
                metrics[f"{ours}_reward"], arrays[theirs].mean(), rtol=2e-5, atol=2e-5
            )


@pytest.mark.parametrize("case", golden_cases("baselines.npz", "pro"))
def test_the_published_pro_is_met(case):
    """Sums and lengths are recorded: the sum is spread over that many tokens, whose gradients are
    each that of the sum."""
    arrays = golden("baselines.npz")[case]
    lengths = arrays["suffix_lengths"]
    mask = np.arange(lengths.max() + 1) < lengths[..., None]
    logp = np.where(mask, (arrays["sum_scores"] / lengths)[..., None], np.nan).astype(np.float32)
    targets = Targets(mask, np.full(mask.shape, np.nan), arrays["rewards"], arrays["rewards"])
    recorded = np.where(mask, arrays["grad_sum_scores"][..., None], 0.0)
    sft_weight = float(arrays["sft_weight"])
    got = evaluate("pro", logp, targets, sft_weight=sft_weight)
    assert_same(got, (arrays["loss"], recorded), 2e-5)


def test_no_golden_case_is_left_out():
    recorded = {published_spelling(case)[0] for case in golden_cases("objectives.npz", "")}
    assert recorded == set(SINGLE)
    assert len(golden_cases("objectives.npz", "")) == 78
    assert len(golden_cases("baselines.npz", "dpo")) == 8
    assert len(golden_cases("baselines.npz", "pro")) == 4
    here_and_elsewhere = golden_cases("baselines.npz", "dpo", "pro", "ppo", "value_head")
    assert sorted(here_and_elsewhere) == sorted(golden("baselines.npz"))
