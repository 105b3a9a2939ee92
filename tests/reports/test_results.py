"""The figures of an evaluation: measures, verdict, plain table, pairs, calibration."""

import dataclasses

import numpy as np
import pytest

from alol_jax.reports.results import (
    answer_pairs,
    calibration_bins,
    result_table,
    sample_pairs,
    verdict,
)
from alol_jax.types import Interval, ValueAudit
from tests.reports.cases import evaluated, valued


@pytest.mark.parametrize(
    ("lift", "badge", "word"),
    [
        (0.4, "Better", "The policy earns"),
        (-0.4, "Worse", "The policy is worse"),
        (0.0, "No reliable difference", "No reliable difference: the policy earns"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_paired_difference(lift, badge, word):
    evaluation = evaluated(count=40, lift=lift)
    total = Interval(lift, lift - 0.1, lift + 0.1)
    judged = verdict(dataclasses.replace(evaluation, differences=(total, total, total)))
    assert judged.badge == badge and judged.sentence.startswith(word)
    assert "40 test prompts" in judged.sentence and "paired" in judged.sentence


def test_a_bound_close_to_0_is_not_printed_as_0():
    near = Interval(-0.065, -0.128, -0.003)
    judged = verdict(dataclasses.replace(evaluated(), differences=(near, near, near)))
    assert judged.badge == "Worse" and "−0.128 to −0.003" in judged.sentence


def test_few_prompts_are_said_to_be_few():
    assert "too narrow" in verdict(evaluated(count=10)).sentence
    assert "too narrow" not in verdict(evaluated(count=30)).sentence


def test_the_prompts_shown_run_from_the_best_to_the_worst_difference():
    evaluation = evaluated(count=31)
    changes = [theirs.reward - ours.reward for ours, theirs in sample_pairs(evaluation, 5)]
    every = [theirs.reward - ours.reward for ours, theirs in answer_pairs(evaluation)]
    assert changes == sorted(changes, reverse=True) and len(changes) == 5
    assert (changes[0], changes[2], changes[-1]) == (max(every), sorted(every)[15], min(every))


def test_systems_that_answered_other_prompts_are_refused():
    evaluation = evaluated()
    swapped = dataclasses.replace(evaluation, policy=evaluation.policy[::-1])
    with pytest.raises(ValueError, match="t0 where the policy answers t29"):
        answer_pairs(swapped)


def test_the_calibration_bins_hold_every_row_once_and_keep_the_means():
    audit = valued().audit
    predicted, observed, error, count = calibration_bins(audit, bins=10)
    assert count.sum() == len(audit.predicted)
    np.testing.assert_allclose((predicted * count).sum() / count.sum(), np.mean(audit.predicted))
    np.testing.assert_allclose((observed * count).sum() / count.sum(), np.mean(audit.observed))
    assert np.all(error > 0) and np.all(np.diff(predicted) > 0)


def test_equal_predictions_make_one_bin():
    audit = ValueAudit((0.5,) * 6, (0.0, 1.0) * 3, 0.25, 0.25, 0.25, 1)
    predicted, observed, _, count = calibration_bins(audit, bins=10)
    assert (predicted.tolist(), observed.tolist(), count.tolist()) == ([0.5], [0.5], [6])


def test_the_plain_table_fits_a_hundred_columns_and_holds_every_metric():
    evaluation = dataclasses.replace(evaluated(), component_names=("x" * 60, "short"))
    lines = result_table(evaluation).splitlines()
    assert max(map(len, lines)) <= 100
    for word in ("data", "reference", "policy", "total", "distinct-3", "length", "paired"):
        assert any(word in line for line in lines)
    total = next(line for line in lines if line.startswith("total"))
    assert f"{evaluation.systems[2].reward.mean:.3f} [" in total
