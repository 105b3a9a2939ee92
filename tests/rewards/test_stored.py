"""Stored rewards: what cannot be used is refused, and what is odd is named."""

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.rewards.stored import check_in_float32, far_notes, same_text_notes
from tests.tiny_run import scored_rows


def notes(rewards, train=None):
    rewards = np.array(rewards, float)
    train = rewards if train is None else np.array(train, float)
    return far_notes("train", scored_rows(len(rewards)), rewards, train)


def test_a_reward_far_from_all_others_is_named_with_its_row():
    (said,) = notes([1, 2, 3, 4, 5, 1e26, 2, 3])
    assert "train: the reward of 1 of 8 rows is more than 10 interquartile ranges" in said
    assert "(train5 'no': 1e+26)" in said and "config.score.clip" in said


def test_far_rewards_are_named_from_the_farthest_and_three_at_most():
    (said,) = notes([0, 1] * 20 + [-50, 80, 60, 70])
    assert "4 of 44 rows" in said
    assert said.index(": 80") < said.index(": 70") < said.index(": 60") and ": -50" not in said


@pytest.mark.parametrize(
    "rewards", [[0, 1], [1] * 9 + [0], [0] * 9 + [1], [5] * 20 + [1, 2, 3], [0, 0, 0, 0]]
)
def test_usual_labels_are_not_far(rewards):
    assert notes(rewards) == []


def test_where_half_of_the_rewards_are_equal_a_large_one_is_still_far():
    (said,) = notes([5] * 20 + [1e26])
    assert "1 of 21 rows" in said


def test_rows_of_other_splits_are_held_against_the_training_rows():
    assert notes([100.0, 101.0], train=[1, 2, 3, 4]) != []


def test_a_text_with_two_rewards_is_counted():
    rows = scored_rows(4)
    rows = rows.replace(prompt=["p"] * 4, example_id=["a", "a", "a", "b"], response=["x"] * 4)
    (said,) = same_text_notes("train", rows, np.array([1.0, 1.0, 0.0, 0.5]))
    assert said.startswith("train: 1 of 4 rows have the prompt and the text of an earlier row")
    assert same_text_notes("train", rows, np.array([1.0, 1.0, 1.0, 0.5])) == []


def test_a_reward_beyond_float32_is_one_line():
    rows = scored_rows(2).replace(reward=[1.0, -1e39])
    with pytest.raises(UserError, match="train1: the reward -1e\\+39 is beyond float32: set conf"):
        check_in_float32(rows)
