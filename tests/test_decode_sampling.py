"""The distribution that a token is drawn from: temperature, top-k, top-p."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.decode import Sampling, narrowed, next_token

pytestmark = pytest.mark.usefixtures("quick_compiles")

LOGITS = np.float32([[2.0, -1.0, 0.5, 1.5, 0.0, -3.0], [0.0, 0.1, -0.2, 3.0, -1.0, 1.0]])


def sampling(**changes):
    return Sampling(1, **({"temperature": 1.0} | changes))


def kept(logits, **changes):
    """The tokens that can be drawn, per row; what is left of their logits is not changed."""
    asked = sampling(**changes)
    left = np.asarray(narrowed(jnp.asarray(logits), asked))
    finite = np.isfinite(left)
    np.testing.assert_allclose(
        left[finite], np.asarray(logits)[finite] / asked.temperature, rtol=1e-6
    )
    assert np.all(left[~finite] == -np.inf)
    return [np.flatnonzero(row).tolist() for row in finite]


def drawn(logits, count, **changes):
    """i32[rows, count] tokens of independent keys."""
    keys = jax.random.split(jax.random.key(3), (len(logits), count))
    draw = jax.jit(
        jax.vmap(lambda keys: next_token(jnp.asarray(logits), keys, sampling(**changes)))
    )
    return np.asarray(draw(keys.T)).T


def test_top_k_keeps_the_k_most_likely_and_zero_keeps_all():
    assert kept(LOGITS, top_k=1) == [[0], [3]]
    assert kept(LOGITS, top_k=3) == [[0, 2, 3], [1, 3, 5]]
    everything = [list(range(6))] * 2
    assert kept(LOGITS) == kept(LOGITS, top_k=6) == kept(LOGITS, top_k=100) == everything


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    probability = np.float32([[0.4, 0.3, 0.2, 0.1], [0.05, 0.05, 0.85, 0.05]])
    logits = np.log(probability)
    assert kept(logits, top_p=0.39)[0] == [0]
    assert kept(logits, top_p=0.41)[0] == [0, 1]
    assert kept(logits, top_p=0.69)[0] == [0, 1]
    assert kept(logits, top_p=0.71)[0] == [0, 1, 2]
    assert kept(logits, top_p=0.99)[0] == [0, 1, 2, 3]
    assert kept(logits, top_p=0.8)[1] == [2]
    assert kept(logits, top_p=1e-9) == [[0], [2]]


def test_tokens_that_are_equally_likely_stay_together():
    tied = np.float32([[1.0, 3.0, 1.0, 3.0, 0.0]])
    assert kept(tied, top_k=1) == [[1, 3]]
    assert kept(tied, top_k=3) == [[0, 1, 2, 3]]
    assert kept(tied, top_p=0.1) == [[1, 3]]
    assert kept(np.zeros((1, 5), np.float32), top_p=0.5) == [[0, 1, 2, 3, 4]]


def test_top_p_counts_the_probability_that_top_k_and_the_temperature_left():
    logits = np.log(np.float32([[0.4, 0.3, 0.2, 0.1]]))
    assert kept(logits, top_p=0.55) == [[0, 1]]
    assert kept(logits, top_p=0.55, top_k=2) == [[0]]  # 0.4 of 0.7
    assert kept(logits, top_p=0.55, temperature=0.25) == [[0]]
    assert kept(logits, top_p=0.6, temperature=4.0) == [[0, 1, 2]]


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}]
)
def test_what_leaves_one_token_is_greedy(changes):
    np.testing.assert_array_equal(drawn(LOGITS, 50, **changes), np.tile([[0], [3]], (1, 50)))


def test_greedy_ignores_top_k_and_top_p():
    np.testing.assert_array_equal(
        drawn(LOGITS, 5, temperature=0.0, top_k=3, top_p=0.5), np.tile([[0], [3]], (1, 5))
    )


@pytest.mark.parametrize(
    "changes, tokens",
    [
        ({}, [[0, 1, 2, 3, 4, 5]] * 2),
        ({"temperature": 0.7, "top_k": 4}, [[0, 2, 3, 4], [0, 1, 3, 5]]),
        ({"temperature": 2.0, "top_p": 0.6}, [[0, 3], [3, 5]]),
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(changes, tokens):
    count = 20_000
    found = drawn(LOGITS, count, **changes)
    for row, places in enumerate(tokens):
        weight = np.zeros(6)
        weight[places] = np.exp(LOGITS[row, places] / changes.get("temperature", 1.0))
        expected = weight / weight.sum()
        share = np.bincount(found[row], minlength=6) / count
        assert np.all(np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / count))
