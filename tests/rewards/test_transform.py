"""Transforms of the reward: fitted to training rows, in order, and refused in one line."""

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.rewards import transform
from alol_jax.rewards.transform import (
    TRANSFORMS,
    check_transform,
    fit_transform,
    line_to,
    transformed,
)

TRAIN = np.array([-3.0, -1.0, -1.0, 0.0, 2.0, 7.0])
OTHER = np.array([-9.0, -1.0, 1.0, 7.0, 20.0])


def fitted(name, clip=(), train=TRAIN):
    return fit_transform(name, clip, train)


def test_as_is_changes_nothing():
    assert transformed(fitted("as_is"), OTHER).tolist() == OTHER.tolist()


def test_sigmoid_lies_between_0_and_1_and_does_not_overflow():
    given = transformed(fitted("sigmoid"), np.array([-1e9, -np.log(3), 0.0, 1e9]))
    np.testing.assert_allclose(given, [0.0, 0.25, 0.5, 1.0], atol=1e-12)


def test_minmax_takes_the_training_rewards_to_0_and_1_and_goes_on_in_other_splits():
    found = fitted("minmax")
    given = transformed(found, TRAIN)
    assert (given.min(), given.max()) == (0.0, 1.0)
    assert transformed(found, np.array([17.0])).tolist() == [2.0]


def test_standardise_gives_the_training_rewards_mean_0_and_spread_1():
    given = transformed(fitted("standardise"), TRAIN)
    assert given.mean() == pytest.approx(0) and given.std() == pytest.approx(1)


def test_rank_is_the_share_below_with_half_of_the_equal_ones():
    given = transformed(fitted("rank"), TRAIN)
    below = [(TRAIN < x).mean() + (TRAIN == x).mean() / 2 for x in TRAIN]
    np.testing.assert_allclose(given, below)
    ends = transformed(fitted("rank"), np.array([-1e9, 1e9]))
    assert ends.tolist() == [given.min(), given.max()]


def test_the_rank_of_many_rewards_is_near_the_exact_one(monkeypatch):
    monkeypatch.setattr(transform, "KNOTS", 101)
    many = np.random.default_rng(0).lognormal(size=5000)
    found = fitted("rank", train=many)
    assert len(found.knots) <= 101
    exact = (np.argsort(np.argsort(many)) + 0.5) / len(many)
    np.testing.assert_allclose(transformed(found, many), exact, atol=0.011)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_transform_turns_an_order_around(name):
    given = transformed(fitted(name), np.sort(OTHER))
    assert (np.diff(given) >= 0).all() and given[0] < given[-1]


def test_the_clip_range_comes_before_the_transform_and_its_fit():
    found = fitted("minmax", (-1.0, 2.0))
    given = transformed(found, np.array([-50.0, -1.0, 0.5, 2.0, 50.0]))
    assert given.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_the_percentiles_are_those_of_the_rewards_before_the_transform():
    ends = fitted("rank", (-1.0, 2.0)).percentiles
    assert (len(ends), ends[0], ends[-1]) == (101, -3.0, 7.0)


@pytest.mark.parametrize("name", ["minmax", "standardise"])
def test_a_constant_has_no_range(name):
    with pytest.raises(UserError, match="no range to scale: all 3 training rewards are 2"):
        fitted(name, train=np.full(3, 2.0))
    said = r"all 6 training rewards are 1 after config.score.clip=\(0, 1\)"
    with pytest.raises(UserError, match=said):
        fitted(name, (0, 1), train=TRAIN + 10)


def test_rewards_beyond_the_range_of_numbers_are_refused():
    with pytest.raises(UserError, match="they overflow"):
        fitted("minmax", train=np.array([-1.7e308, 1.7e308]))


def test_an_unknown_transform_is_named_with_the_near_miss():
    with pytest.raises(UserError, match="no transform 'sigmod': did you mean 'sigmoid'"):
        check_transform("sigmod", ())


@pytest.mark.parametrize("clip", [(1.0, 0.0), (1.0, 1.0), (1.0,), (0.0, float("nan")), ("a", "b")])
def test_a_clip_range_that_is_none_is_one_line(clip):
    with pytest.raises(UserError, match=r"config.score.clip=\(.*the smaller first, or \(\)"):
        check_transform("as_is", clip)


def test_a_line_stays_within_its_bounds():
    line = line_to(-1.0, 3.0, slope=2.0, start=1.0)
    given = transformed(line, np.array([-9.0, -1.0, 0.0, 0.5, 9.0]))
    np.testing.assert_allclose(given, [-1.0, -1.0, 1.0, 2.0, 3.0])
