"""How well a scorer agrees with stored rewards, and what its interval promises."""

import numpy as np
import pytest

from alol_jax.reports import agreement as module
from alol_jax.reports.agreement import agreement
from alol_jax.reports.statistics import bootstrap, per_cluster

PROMPT = np.repeat(np.arange(40), 3)
REWARD = np.random.default_rng(0).normal(size=120)
TEXTS = ["x" * (n % 7 + 1) for n in range(120)]


def of(score, reward=REWARD, prompt=PROMPT):
    return agreement("it", score, reward, prompt, TEXTS[: len(score)], on_scale=score)


def test_the_rewards_agree_with_themselves_and_not_with_their_negatives():
    same, turned = of(REWARD), of(-REWARD)
    assert same.order.mean == 1 and turned.order.mean == 0
    assert same.pearson == pytest.approx(1) and turned.spearman == pytest.approx(-1)
    assert (same.bias, same.mse, same.rows, same.pairs) == (0, 0, 120, 120)
    assert of(REWARD + 2).bias == pytest.approx(2)


def test_chance_holds_one_half_in_its_interval():
    found = of(np.random.default_rng(1).normal(size=120))
    assert found.order.low < 0.5 < found.order.high


def test_without_two_responses_to_a_prompt_rows_are_compared():
    found = of(REWARD + np.random.default_rng(2).normal(size=120), prompt=np.arange(120))
    assert not found.within and found.pairs == 120 * 119 // 2
    assert 0.5 < found.order.low < found.order.mean < found.order.high < 1
    assert "held-out pairs of rows" in found.summary()


def test_equal_rewards_show_nothing():
    assert of(REWARD, np.ones(120)) is None


def test_a_constant_scorer_has_no_correlation_and_ties():
    found = of(np.ones(120))
    assert found.pearson is None and found.order.mean == 0.5


def test_the_interval_of_pairs_of_rows_is_as_wide_as_samples_differ(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 400)
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        reward = rng.normal(size=40)
        score = reward + rng.normal(size=40)
        found.append(
            agreement("it", score, reward, np.arange(40), TEXTS[:40], on_scale=score).order
        )
    spread = np.std([one.mean for one in found])
    width = np.mean([one.high - one.low for one in found])
    assert width == pytest.approx(2 * 1.96 * spread, rel=0.2)


def test_clusters_of_one_size_resample_as_their_means():
    values = np.random.default_rng(4).normal(size=60)
    cluster = np.tile(np.arange(20), 3)
    wanted = bootstrap(values.reshape(3, 20).mean(0), draws=200, confidence=0.95, seed=0)
    got = bootstrap(per_cluster(values, cluster), draws=200, confidence=0.95, seed=0)
    assert (got.mean, got.low, got.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))


def test_a_cluster_without_values_does_not_move_the_mean():
    values, cluster = np.array([1.0, 3.0, 5.0]), np.array([0, 0, 3])
    column = per_cluster(values, cluster, clusters=4)
    assert column.mean() == pytest.approx(3.0)
    assert column[1] == column[2] == 3.0
