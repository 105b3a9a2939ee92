"""Stored rewards in words: the verdict, and what the page says of them."""

import pytest

from alol_jax.reports.stored_rewards import BLIND, deciding, explained, judged
from alol_jax.training.held_out import MEASURES
from alol_jax.types import Interval

UP, DOWN, OPEN = Interval(2.0, 1.0, 3.0), Interval(-2.0, -3.0, -1.0), Interval(0.5, -1.0, 2.0)


@pytest.mark.parametrize(
    ("gap", "order", "badge", "tone"),
    [
        (UP, UP, "Better by the stored rewards", "better"),
        (UP, OPEN, "Better by the stored rewards", "better"),
        (OPEN, DOWN, "Worse by the stored rewards", "worse"),
        (UP, DOWN, "The stored rewards disagree", "open"),
        (OPEN, OPEN, "No reliable difference", "open"),
    ],
)
def test_the_verdict_follows_the_intervals(gap, order, badge, tone):
    found = judged({"likeness gap": gap, "order of ratio": order}, "the reference")
    assert found[:2] == (badge, tone)


def test_the_sentence_has_the_figures_of_both_and_names_the_base():
    _, _, said = judged(
        {"likeness gap": Interval(9.44, 2.9, 16.7), "order of ratio": Interval(0.115, -0.02, 0.25)},
        "nll",
    )
    assert said.startswith("against nll, the likeness of the answers")
    assert "changes by +9.4 [+2.9, +16.7] chrF++ points" in said
    assert "changes by +11.5 [−2.0, +25.0] percentage points" in said


def test_the_gap_in_likelihood_decides_only_without_pairs():
    assert deciding(MEASURES) == ("likeness gap", "order of ratio")
    assert deciding(("likeness", "logp gap")) == ("logp gap",)
    assert deciding(("likeness",)) == ()
    assert "in log-likelihood per token changes by" in judged({"logp gap": UP}, "the reference")[2]


def test_every_measure_is_explained_and_its_blindness_is_said():
    words = " ".join(explained(MEASURES))
    for name in MEASURES:
        assert name.removesuffix(" per token") in words
    assert "copying" in BLIND and "short" in BLIND
    assert len(explained(("likeness",))) == 1
