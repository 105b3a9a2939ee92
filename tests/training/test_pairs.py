"""Pairs of one prompt with different rewards, and how a score orders them."""

import numpy as np

from alol_jax.training import pairs as module
from alol_jax.training.pairs import best_first, pairs_across, pairs_of

PROMPT = np.array([0, 1, 0, 1, 1, 2])
REWARD = np.array([0.1, 0.3, 0.9, 0.3, 0.7, 5.0])


def test_pairs_are_of_one_prompt_and_the_better_row_is_first():
    found = pairs_of(PROMPT, REWARD)
    assert set(zip(found.better.tolist(), found.worse.tolist(), strict=True)) == {
        *((2, 0), (4, 1), (4, 3))
    }


def test_a_tie_counts_one_half():
    found = pairs_of(PROMPT, REWARD)
    assert sorted(found.ordered(np.array([1.0, 0.0, 2.0, 3.0, 3.0, 0.0]))) == [0.5, 1.0, 1.0]
    assert (found.ordered(REWARD) == 1).all() and (found.ordered(-REWARD) == 0).all()


def test_one_response_to_each_prompt_gives_no_pair():
    assert len(pairs_of(np.arange(4), np.arange(4.0))) == 0


def test_across_prompts_all_rows_with_different_rewards_are_paired(monkeypatch):
    assert len(pairs_across(REWARD)) == 15 - 1
    monkeypatch.setattr(module, "MOST", 3)
    few = pairs_across(np.arange(9.0))
    assert {*few.better.tolist(), *few.worse.tolist()} == {0, 4, 8}


def test_rows_are_sorted_by_prompt_the_best_paid_first_and_equal_ones_in_their_order():
    order, starts = best_first(PROMPT, REWARD)
    assert order.tolist() == [2, 0, 4, 1, 3, 5]
    assert starts.tolist() == [0, 2, 5]
