"""chrF++ against the values of its definition."""

import pytest

from alol_jax.rewards.likeness import chrf


def test_the_same_text_is_100_and_another_alphabet_0():
    assert chrf("a great day", "a great day") == pytest.approx(100)
    assert chrf("a great day", "漢字") == pytest.approx(0, abs=1e-6)


def test_it_counts_characters_words_and_recall_twice():
    # "ab" against "abc": characters 2/2 of 2/3, pairs 1/1 of 1/2, words 0/1 of 0/1; the orders
    # that one of the two has not are left out. F2 of the mean precision and recall.
    f2 = [5 * p * r / (4 * p + r) if p + r else 0.0 for p, r in ((1, 2 / 3), (1, 1 / 2), (0, 0))]
    assert chrf("abc", "ab") == pytest.approx(100 * sum(f2) / 3, abs=0.5)
    assert chrf("a good day", "a good") < chrf("a good", "a good day")


def test_an_empty_answer_is_0():
    assert chrf("a great day", "") == 0
