"""Intervals, pairs and fronts of collected values."""

import numpy as np
import pytest

from benchmarks.evidence import pairs, summaries


def test_objectives_with_advantages_are_paired_with_the_others_on_seeds_that_both_have():
    values = {
        "nll": {0: [0.0, 1.0], 1: [9.0, 9.0]},
        "a_lol": {0: [0.5, 1.5], 2: [9.0, 9.0]},
        "dpo": {2: [1.0, 2.0]},
        "a_lol_seq": {1: [9.0, 8.0]},
    }
    (text,) = pairs.pairs(values, "reward")
    *_, a_lol, seq = text.splitlines()
    assert a_lol == "| a_lol | +0.500 [+0.500, +0.500] | +7.500 [+7.000, +8.000] |"
    assert seq.startswith("| a_lol_seq | −0.500 [") and seq.endswith(" | – |")
    assert pairs.pairs({"a_lol": {0: [1.0]}}, "reward") == []


def test_an_interval_over_seeds_and_prompts_is_wider_than_one_over_either():
    draws = np.random.default_rng(0)
    gains = draws.normal(size=(5, 1)) + draws.normal(size=(1, 40)) * 3
    both = summaries.over_seeds_and_prompts(gains)
    assert both.mean == pytest.approx(gains.mean())
    for one in (summaries.difference(gains), summaries.difference(gains.T)):
        assert both.high - both.low > one.high - one.low
    same = summaries.over_seeds_and_prompts(np.repeat(gains[:1], 5, axis=0))
    over_prompts = summaries.difference(gains[:1])
    expected = pytest.approx((over_prompts.low, over_prompts.high), abs=0.05)
    assert (same.low, same.high) == expected


def test_no_point_of_the_front_is_reached_by_a_cheaper_one():
    points = np.array([[2.0, 1.5], [0.0, 1.0], [1.0, 0.9], [3.0, 1.5], [1.0, 1.2], [4.0, 1.6]])
    front = summaries.pareto_front(points)
    np.testing.assert_array_equal(front, [[0, 1.0], [1, 1.2], [2, 1.5], [4, 1.6]])
