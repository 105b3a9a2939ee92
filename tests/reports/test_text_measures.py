"""Measures of copying: fragments counted by hand, and what must be true of any texts."""

import random

import numpy as np
import pytest

from alol_jax.reports.text_measures import (
    SOURCE_MEASURES,
    TEXT_MEASURES,
    coverage,
    density,
    explained,
    fragments,
    measured,
    published_coverage,
    published_density,
    published_fragments,
)


def texts(count, words=12, seed=0):
    """Pairs of texts over few words, so that they share runs of all lengths."""
    draw = random.Random(seed)
    return [
        tuple(" ".join(draw.choices("abcde", k=draw.randint(0, words))) for _ in range(2))
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("source", "response", "found"),
    [
        ("the cat sat on the mat", "the cat sat", [3]),
        ("the cat sat on the mat", "a cat sat by the mat", [2, 2]),
        ("the cat sat on the mat", "the mat the cat", [2, 2]),
        ("a b c", "c b a", [1, 1, 1]),
        ("a b a b c", "a b c", [3]),  # the longest run, not the first
        ("a b c d", "b c x c d", [2, 2]),
        ("a", "a a a", [1, 1, 1]),  # a word of the source may be copied again
        ("a b", "x y", []),
        ("", "a", []),
        ("a", "", []),
    ],
)
def test_fragments_counted_by_hand(source, response, found):
    assert fragments(source.split(), response.split()) == found


def test_coverage_and_density_of_a_response_counted_by_hand():
    source, response = "The cat sat on the mat .", "a CAT sat by the mat"
    assert coverage(source, response) == pytest.approx(4 / 6)
    assert density(source, response) == pytest.approx((4 + 4) / 6)


def test_a_response_that_is_the_source_is_one_fragment():
    text = "one two three four five"
    assert coverage(text, text) == 1 and density(text, text) == 5


@pytest.mark.parametrize("name", SOURCE_MEASURES)
def test_nothing_copied_and_nothing_said_are_0(name):
    pairs = [("a b", "c d"), ("", "c"), ("a b", ""), ("a b", "  "), ("", "")]
    np.testing.assert_array_equal(measured(name, pairs, None), np.zeros(5))
    assert measured(name, [], None).shape == (0,)


@pytest.mark.parametrize("prefix", ["", "published_"])
def test_coverage_is_a_share_and_density_lies_between_it_and_its_share_of_the_words(prefix):
    pairs = texts(300)
    share = measured(f"{prefix}coverage", pairs, None)
    dense = measured(f"{prefix}density", pairs, None)
    words = np.array([len(response.split()) for _, response in pairs])
    assert (share >= 0).all() and (share <= 1).all() and 0 < share.mean() < 1
    # Σ f ≤ Σ f² ≤ (Σ f)², with whole f
    assert (dense >= share - 1e-12).all()
    assert (dense <= share**2 * words + 1e-12).all()


def test_the_fragments_are_disjoint_runs_that_the_source_has():
    for source, response in texts(200):
        source, words = source.split(), response.split()
        found = fragments(source, words)
        assert all(length > 0 for length in found) and sum(found) <= len(words)
        runs = {
            tuple(source[start:stop])
            for start in range(len(source))
            for stop in range(start, len(source) + 1)
        }
        place = 0
        for length in found:
            while words[place] not in source:
                place += 1
            assert tuple(words[place : place + length]) in runs
            assert tuple(words[place : place + length + 1]) not in runs or (
                place + length == len(words)
            )
            place += length
        assert not set(words[place:]) & set(source)


def test_a_word_that_is_in_the_source_is_covered_and_no_other():
    for source, response in texts(200, seed=1):
        words = response.split()
        known = [word for word in words if word in source.split()]
        assert coverage(source, response) == pytest.approx(len(known) / max(len(words), 1))


def test_case_does_not_matter_but_to_the_published_measures():
    assert coverage("The Cat", "the cat") == 1
    assert published_coverage("The Cat", "the cat") == 0
    assert published_coverage("the cat", "the cat") == 1


# the published rule


def test_by_the_published_rule_single_words_never_count():
    assert published_fragments("a b c".split(), "c b a".split()) == []
    assert published_coverage("a b c", "a x c") == published_density("a b c", "a x c") == 0


def test_by_the_published_rule_three_words_do_not_replace_two():
    source, words = "a b x a b c".split(), "a b c".split()
    assert fragments(source, words) == [3]
    assert published_fragments(source, words) == [2]
    assert published_fragments([*source, *"y a b c d".split()], [*words, "d"]) == [4]


def test_by_the_published_rule_a_source_is_not_searched_within_a_run():
    source, words = "a a a b".split(), "a a b".split()
    assert fragments(source, words) == [3]
    assert published_fragments(source, words) == [2]


def test_the_published_rule_never_finds_more_than_there_is():
    for source, response in texts(300, seed=2):
        source, words = source.split(), response.split()
        ours, theirs = fragments(source, words), published_fragments(source, words)
        assert max(theirs, default=0) <= max(ours, default=0) and sum(theirs) <= sum(ours)
        assert 1 not in theirs


@pytest.mark.parametrize("name", TEXT_MEASURES)
def test_every_measure_is_explained_in_the_report(name):
    assert name.removeprefix("published_") in explained([name]).lower()
