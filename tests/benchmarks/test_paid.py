"""What candidates for the reward pay: echoes, and gains in a sum."""

import numpy as np
import pytest

from benchmarks.evidence import paid


@pytest.mark.parametrize(
    ("prompt", "answer", "echo"),
    [
        ("I am busy.", "i am busy", True),
        ("I am busy.", "I am busy, too.", False),
        ("I am busy.", "busy I am", False),
        ("...", "", False),  # nothing said
    ],
)
def test_an_echo_has_the_prompts_words_in_its_order_and_no_others(prompt, answer, echo):
    assert paid.is_echo(prompt, answer) is echo


def test_a_gain_is_taken_in_the_sum_that_was_paid():
    one = {
        "policy": {"scores": {"relevance": [0.5, 1.0], "novelty": [1.0, 0.0], "safety": [9, 9]}},
        "reference": {"scores": {"relevance": [0.0, 0.5], "novelty": [0.5, 0.5], "safety": [0, 0]}},
    }
    np.testing.assert_allclose(paid.gains(one, ("relevance", "novelty")), [[1.0, 0.0]])
