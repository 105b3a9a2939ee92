"""The distribution that a token is drawn from: repetition penalty, temperature, top-k, top-p."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.decoding.sampling import (
    Sampling,
    add_seen,
    deterministic_decoding,
    draw,
    filter_logits,
    next_token,
    penalise_repetition,
    seen_tokens,
    stochastic_decoding,
)
from alol_jax.errors import UserError
from configs import common

LOGITS = np.float32([[2.0, -1.0, 0.5, 1.5, 0.0, -3.0], [0.0, 0.1, -0.2, 3.0, -1.0, 1.0]])


def sampling(**changes):
    return Sampling(1, **({"temperature": 1.0} | changes))


def kept(logits, **changes):
    """The tokens that can be drawn, per row; what is left of their logits is not changed."""
    asked = sampling(**changes)
    left = np.asarray(filter_logits(jnp.asarray(logits), asked))
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


# tokens that were there before


def test_what_was_seen_are_the_real_tokens_of_the_prompt_and_what_was_said_since():
    prompt, mask = jnp.array([[5, 5, 1, 2], [0, 3, 3, 4]]), jnp.array([[0, 0, 1, 1], [1] * 4])
    seen = seen_tokens(prompt, mask, 6, sampling(repetition_penalty=2.0))
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 2], [0, 3, 4]]
    seen = add_seen(seen, jnp.array([5, 3]))
    assert [np.flatnonzero(row).tolist() for row in seen] == [[1, 2, 5], [0, 3, 4]]


def test_what_was_seen_is_not_kept_where_no_penalty_asks_for_it():
    prompt = jnp.array([[5, 1], [0, 3]])
    seen = seen_tokens(prompt, jnp.ones((2, 2)), 6, sampling())
    assert seen.shape == (2, 0) and add_seen(seen, jnp.array([5, 3])).shape == (2, 0)


def test_the_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    seen = jnp.array([[True, True, False, False, True, False]] * 2)
    left = penalise_repetition(jnp.asarray(LOGITS), seen, sampling(repetition_penalty=2.0))
    expected = [[1.0, -2.0, 0.5, 1.5, 0.0, -3.0], [0.0, 0.05, -0.2, 3.0, -2.0, 1.0]]
    np.testing.assert_allclose(left, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        penalise_repetition(jnp.asarray(LOGITS), seen, sampling()), LOGITS
    )


def test_the_penalty_comes_before_the_temperature_and_decides_who_is_among_the_most_likely():
    seen = jnp.zeros((1, 6), bool).at[0, 0].set(True)
    asked = sampling(repetition_penalty=2.0, temperature=0.5, top_k=2)
    left = filter_logits(penalise_repetition(jnp.asarray(LOGITS[:1]), seen, asked), asked)
    np.testing.assert_allclose(left[0], [2.0, *[-np.inf] * 2, 3.0, *[-np.inf] * 2])


# settings


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
        ({"temperature": -0.1}, "temperature=-0.1 must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf"),
        ({"beams": 0}, "beams=0 must be 1 or more"),
        ({"beams": 2, "temperature": 0.7}, "beams=2 find the most likely .* temperature=0.7"),
    ],
)
def test_impossible_sampling_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        Sampling(**({"max_new_tokens": 4} | changes))


def test_the_config_decides_how_answers_are_decoded_and_draws_are_without_beams():
    config = common.get_config()
    assert (
        deterministic_decoding(config.decode)
        == Sampling(128)
        == stochastic_decoding(config.decode, config.generate)
    )
    config.decode.update({"beams": 2, "repetition_penalty": 2.5, "end": (13,)})
    published = Sampling(128, end=(13,), repetition_penalty=2.5, beams=2)
    assert (
        deterministic_decoding(config.decode)
        == published
        == stochastic_decoding(config.decode, config.generate)
    )
    config.generate.update({"temperature": 0.7, "top_k": 5, "top_p": 0.9})
    assert stochastic_decoding(config.decode, config.generate) == Sampling(
        128, 0.7, 5, 0.9, end=(13,), repetition_penalty=2.5
    )


@pytest.mark.parametrize("size", [3, 256, 1000])
def test_a_draw_inverts_the_running_sum_of_the_probabilities(size):
    rng = np.random.default_rng(size)
    logits = np.log(rng.dirichlet(np.full(size, 0.1), 200)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.3] = -np.inf
    logits[:, 1] = 0.0
    uniform = np.append(rng.random(197), [0.0, 0.5, np.nextafter(1, 0)]).astype(np.float32)
    uniform = np.minimum(uniform, np.nextafter(np.float32(1), np.float32(0)))
    found = np.asarray(draw(jnp.asarray(logits), jnp.asarray(uniform)))
    weight = np.exp(logits.astype(np.float64))
    reached = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    rows = np.arange(200)
    assert np.all(weight[rows, found] > 0)
    # Within rounding, the number lies between the sums before and after the token.
    before = np.where(found > 0, reached[rows, found - 1], 0.0)
    assert np.all(before <= uniform + 1e-5) and np.all(uniform <= reached[rows, found] + 1e-5)
