"""The metrics that every loss reports."""

from __future__ import annotations

import numpy as np
import pytest

from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.training.metrics import OBJECTIVE_METRICS
from alol_jax.types import Targets
from tests.objectives.cases import NAMES, PAIRED, SINGLE, WITH_RATIO, B, evaluate, random_case

WEIGHTED = [name for name in SINGLE if name != "nll"]


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
    assert seen == set(OBJECTIVE_METRICS)


def test_the_nll_metric_is_the_nll_loss_for_every_objective():
    for name in SINGLE:
        logp, targets = random_case(name)
        expected, _, _ = evaluate("nll", logp, targets)
        np.testing.assert_allclose(evaluate(name, logp, targets)[2]["nll"], expected, rtol=1e-6)


def test_logp_per_token_counts_tokens_not_rows():
    logp = np.array([[-1.0, -9.0, -9.0], [-2.0, -3.0, -2.0]])
    mask = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    targets = Targets(mask, logp, np.ones(2), np.ones(2))
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
    ref_logp = np.full((4, 2), -1.0)
    logp = np.where(np.arange(8).reshape(4, 2) == 0, ref_logp + np.log(2.0), ref_logp)
    targets = Targets(np.ones((4, 2)), ref_logp, np.ones(4), np.ones(4))
    for name, share in (("a_lol", 1 / 4), ("r_lol", 1 / 4), ("a_lol_seq", 1 / 8)):
        metrics = evaluate(name, logp, targets, clip=0.5)[2]
        np.testing.assert_allclose(metrics["fraction_clipped"], share)
        np.testing.assert_allclose(metrics["ratio_mean"], 1.0 + 0.5 * share)
        assert evaluate(name, logp, targets, clip=None)[2]["fraction_clipped"] == 0.0


def test_effective_sample_size_is_one_for_equal_weights_one_nth_for_one_and_zero_for_none():
    logp, targets = random_case("a_lol_ref_free")
    one_row = 5.0 * (np.arange(B) == 3)
    for advantage, size in ((np.full(B, 0.3), 1.0), (one_row, 1 / B), (np.zeros(B), 0.0)):
        metrics = evaluate("a_lol_ref_free", logp, targets._replace(advantage=advantage))[2]
        np.testing.assert_allclose(metrics["effective_sample_size"], size, rtol=1e-6)
        np.testing.assert_allclose(metrics["weight_mean"], np.mean(advantage), rtol=1e-6)


def test_effective_sample_size_of_token_weights_counts_no_padding():
    """4 tokens in responses of 1 and 3, and only the first response has a weight."""
    mask = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    logp, weight = np.full((2, 3), -1.0), np.array([1.0, 0.0])
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
    logp = np.array([[[-1.0], [-2.0]], [[-3.0], [-1.0]], [[-1.0], [-1.0]], [[-1.0], [-4.0]]])
    targets = Targets(np.ones((4, 2, 1)), np.zeros((4, 2, 1)), np.ones((4, 2)), np.ones((4, 2)))
    metrics = evaluate("dpo_ref_free", logp, targets, beta=0.5)[2]
    assert metrics["accuracy"] == 0.5  # a tie is not a win
    assert metrics["chosen_reward"] == -0.75 and metrics["rejected_reward"] == -1.0
    assert metrics["margin"] == 0.25
