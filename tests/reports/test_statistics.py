"""Intervals that cover what they promise, and counts that can be checked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from alol_jax.errors import UserError
from alol_jax.reports.statistics import (
    bootstrap,
    distinct,
    distinct_interval,
    interquartile_mean,
    over_seeds,
    pearson,
    spearman,
    word_counts,
)
from alol_jax.types import Interval


def _interval(values, draws=500, confidence=0.95, seed=0) -> Interval:
    return bootstrap(np.asarray(values), draws=draws, confidence=confidence, seed=seed)


def _width(found: Interval) -> float:
    return found.high - found.low


def test_an_interval_lies_around_the_mean():
    values = np.random.default_rng(0).exponential(size=50)
    found = _interval(values)
    assert found.mean == pytest.approx(values.mean())
    assert values.min() < found.low < found.mean < found.high < values.max()


def test_it_shrinks_with_the_square_root_of_the_rows():
    rng = np.random.default_rng(0)
    widths = [_width(_interval(rng.normal(size=n), draws=1000)) for n in (25, 400, 6400)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)
    assert widths[1] / widths[2] == pytest.approx(4, rel=0.15)


def test_more_confidence_is_a_wider_interval():
    values = np.random.default_rng(0).normal(size=40)
    widths = [_width(_interval(values, confidence=c)) for c in (0.5, 0.9, 0.99)]
    assert widths == sorted(widths) and widths[0] < widths[2]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_it_misses_the_true_mean_as_rarely_as_it_says_on_either_side(confidence):
    rng = np.random.default_rng(1)
    experiments, truth = 2000, 2.0
    found = [
        _interval(rng.normal(truth, 3.0, size=80), 200, confidence, seed=number)
        for number in range(experiments)
    ]
    promised = (1 - confidence) / 2
    error = 4 * np.sqrt(promised * (1 - promised) / experiments) + 0.006  # 80 values are not many
    for missed in ([f.low > truth for f in found], [f.high < truth for f in found]):
        assert abs(np.mean(missed) - promised) < error


def test_paired_differences_have_a_narrow_interval_where_both_vary_together():
    rng = np.random.default_rng(0)
    one = rng.normal(size=200)
    other = one + 0.1 + 0.01 * rng.normal(size=200)
    paired = _interval(other - one)
    assert 0.09 < paired.low < 0.1 < paired.high < 0.11
    assert _width(paired) < 0.05 * _width(_interval(one))


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=30)
    assert _interval(values, seed=5) == _interval(values, seed=5) != _interval(values, seed=6)


@pytest.mark.parametrize("values", [[0.25], [0.25] * 7])
def test_values_without_spread_give_an_interval_without_width(values):
    assert _interval(values) == Interval(0.25, 0.25, 0.25)


def test_many_rows_and_draws_fit_in_memory_piece_by_piece():
    values = np.random.default_rng(0).normal(size=400_000)
    found = _interval(values, draws=12)  # five resamples at a time
    assert found.low < found.high and abs(found.mean) < 0.01


@pytest.mark.parametrize(
    ("draws", "confidence"), [(0, 0.95), (-1, 0.95), (10, 0.0), (10, 1.0), (10, 95.0)]
)
def test_settings_without_meaning_are_one_clear_line(draws, confidence):
    with pytest.raises(UserError, match=f"bootstrap={draws} must be .* confidence={confidence}"):
        _interval([1.0, 2.0], draws, confidence)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, 4 / 7),  # the cat sat | the dog the cat: the cat sat dog
        (2, 4 / 5),  # the-cat cat-sat | the-dog dog-the the-cat
        (3, 3 / 3),  # the-cat-sat | the-dog-the dog-the-cat
        (4, 1 / 1),
        (5, 0.0),  # none
    ],
)
def test_distinct_ngrams_counted_by_hand(n, expected):
    assert distinct(["The cat  sat", "the dog THE cat"], n) == pytest.approx(expected)


def test_ngrams_do_not_cross_from_one_text_to_the_next():
    assert distinct(["a b", "c d"], 3) == 0.0
    assert distinct(["a a", "a a"], 2) == 0.5


def test_empty_texts_count_as_nothing():
    assert distinct(["", " "], 1) == 0.0
    assert word_counts(["", "a b  c", "d\ne"]).tolist() == [0, 3, 2]


def test_correlations_of_known_columns():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson(x, -2 * x + 1) == pytest.approx(-1.0)
    assert pearson(x, np.array([1.0, -1.0, -1.0, 1.0])) == pytest.approx(0.0)
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert pearson(x, np.exp(x)) < 0.95
    assert math.isnan(pearson(x, np.ones(4)))


def test_equal_values_share_the_mean_of_their_ranks():
    tied = np.array([5.0, 5.0, 1.0, 9.0])  # ranks 2.5, 2.5, 1, 4
    assert spearman(tied, np.array([2.5, 2.5, 1.0, 4.0])) == pytest.approx(1.0)
    assert spearman(tied, np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(
        pearson(np.array([2.5, 2.5, 1.0, 4.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    )


def _texts(count: int, seed: int) -> list[str]:
    """Five words each, of 300, the early ones likelier."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{int(300 * u * u)}" for u in rng.random(5)) for _ in range(count)]


def test_the_interval_of_distinct_n_holds_the_estimate_and_is_as_wide_as_samples_differ():
    options = {"draws": 400, "confidence": 0.95, "seed": 0}
    found = distinct_interval(_texts(150, 0), 1, **options)
    assert found.mean == distinct(_texts(150, 0), 1)
    assert found.low < found.mean < found.high
    others = [distinct(_texts(150, seed), 1) for seed in range(1, 60)]
    assert (found.high - found.low) / 4 == pytest.approx(np.std(others), rel=0.5)


def test_texts_that_are_all_alike_have_no_spread_and_no_words_give_zero():
    options = {"draws": 20, "confidence": 0.95, "seed": 0}
    assert distinct_interval(["", ""], 2, **options) == Interval(0.0, 0.0, 0.0)
    found = distinct_interval(["a b"] * 5, 1, **options)
    assert (found.mean, found.high - found.low) == (0.2, 0.0)


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert interquartile_mean(np.array([9.0, -50.0, 1.0, 3.0])) == 2.0
    assert interquartile_mean(np.array([4.0, 0.0, 8.0])) == 4.0  # a quarter of three is none
    values = np.random.default_rng(0).normal(size=(5, 11))
    np.testing.assert_allclose(
        interquartile_mean(values), stats.trim_mean(values, 0.25, axis=1), rtol=1e-12
    )


def test_an_interval_over_seeds_lies_around_the_interquartile_mean():
    same = over_seeds(np.full(4, 5.0), draws=200, confidence=0.95, seed=0)
    assert (same.mean, same.low, same.high) == (5.0, 5.0, 5.0)
    scores = np.random.default_rng(0).normal(size=6)
    found = over_seeds(scores, draws=200, confidence=0.95, seed=0)
    assert found.mean == interquartile_mean(scores)
    assert scores.min() < found.low < found.mean < found.high < scores.max()
    alone = over_seeds(scores[:1], draws=200, confidence=0.95, seed=0)
    assert alone.mean == scores[0] and np.isnan([alone.low, alone.high]).all()


def test_an_interval_over_seeds_covers_the_true_mean_about_as_often_as_it_says():
    draw, hits = np.random.default_rng(0), 0
    for seed in range(200):
        found = over_seeds(draw.normal(size=30), draws=200, confidence=0.9, seed=seed)
        hits += found.low <= 0.0 <= found.high
    assert 0.8 <= hits / 200 <= 0.96
