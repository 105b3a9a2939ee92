"""Advantages, what is kept, and how likely each row is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.objectives.advantage import SAMPLING, advantages, kept

COLUMN = np.array([0.75, -0.5, 0.0, 0.25, 1.0])


def test_the_advantage_is_the_reward_less_the_value_and_not_clamped():
    reward, value = np.array([0.75, 0.5, 1.0]), np.array([0.5, 0.75, 1.0])
    np.testing.assert_array_equal(advantages(reward, value), [0.25, -0.25, 0.0])


def test_whole_rewards_do_not_round_the_advantage():
    got = advantages(np.array([1, 0], np.int32), np.array([0.25, 0.75], np.float32))
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, [0.75, -0.75])


def test_only_positive_advantages_are_kept():
    np.testing.assert_array_equal(kept(COLUMN), [True, False, False, True, True])


def test_a_constant_on_rewards_and_values_keeps_the_same_rows():
    rng = np.random.default_rng(0)
    reward, value = rng.uniform(size=50), rng.uniform(size=50)
    shifted = advantages(reward + 2.0, value + 2.0)
    np.testing.assert_array_equal(kept(advantages(reward, value)), kept(shifted))


@pytest.mark.parametrize("name", sorted(SAMPLING))
def test_probabilities_sum_to_one_and_are_not_negative(name):
    drawn = SAMPLING[name].weigh(COLUMN)
    assert drawn.dtype == np.float64 and drawn.shape == COLUMN.shape
    assert np.all(drawn >= 0.0)
    np.testing.assert_allclose(drawn.sum(), 1.0, rtol=1e-12)


def test_the_three_ways_to_draw():
    np.testing.assert_allclose(SAMPLING["uniform"].weigh(COLUMN), np.full(5, 0.2))
    np.testing.assert_allclose(
        SAMPLING["all_priority"].weigh(COLUMN), [0.375, 0.0, 0.0, 0.125, 0.5]
    )
    np.testing.assert_allclose(
        SAMPLING["good_random"].weigh(COLUMN), [1 / 3, 0.0, 0.0, 1 / 3, 1 / 3]
    )


@pytest.mark.parametrize("name", ["all_priority", "good_random"])
def test_what_is_not_kept_is_never_drawn(name):
    np.testing.assert_array_equal(SAMPLING[name].weigh(COLUMN) > 0.0, kept(COLUMN))


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1e9, 1e308])
@pytest.mark.parametrize("name", sorted(SAMPLING))
def test_the_scale_of_the_values_changes_nothing(name, scale):
    np.testing.assert_allclose(
        SAMPLING[name].weigh(COLUMN * scale), SAMPLING[name].weigh(COLUMN), rtol=1e-12
    )


@pytest.mark.parametrize("name", ["all_priority", "good_random"])
def test_nothing_positive_says_how_many_rows_the_best_value_and_the_way_out(name):
    with pytest.raises(UserError) as caught:
        SAMPLING[name].weigh(np.array([-0.5, -0.125, -2.0]))
    message = str(caught.value)
    assert "3 rows" in message and "-0.125" in message and "sampling=uniform" in message
    assert "\n" not in message


def test_nothing_positive_does_not_matter_to_a_uniform_draw():
    np.testing.assert_allclose(SAMPLING["uniform"].weigh(-np.ones(4)), np.full(4, 0.25))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", sorted(SAMPLING))
def test_a_value_that_is_not_finite_is_an_error_that_names_the_first_row(name, broken):
    values = np.array([0.5, 0.5, broken, 0.5, np.nan])
    with pytest.raises(UserError, match="row 2") as caught:
        SAMPLING[name].weigh(values)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="advantage of row 2"):
        kept(values)


def test_advantages_name_the_column_that_is_broken():
    fine, broken = np.zeros(3), np.array([0.0, np.nan, 0.0])
    with pytest.raises(UserError, match="reward of row 1 is nan"):
        advantages(broken, fine)
    with pytest.raises(UserError, match="value of row 1 is nan"):
        advantages(fine, broken)


@pytest.mark.parametrize("name", sorted(SAMPLING))
def test_an_empty_column_is_an_error(name):
    with pytest.raises(UserError, match="no rows"):
        SAMPLING[name].weigh(np.array([]))


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(AssertionError):
        advantages(np.ones(3), np.ones(2))
    with pytest.raises(AssertionError):
        kept(np.ones((2, 2)))
