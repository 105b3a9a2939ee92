"""The hidden states that a value head is fitted on: those of each text alone."""

import jax
import numpy as np
import pytest

from alol_jax.training.head_fit import features_of
from alol_jax.types import Watch
from tests.models.small_models import close, hidden_of
from tests.tiny_run import mesh_of, tiny_lm

ROWS = [tuple(1 + (7 * n + i) % 90 for i in range(2 + 5 * n % 23)) for n in range(9)]
REWARD = np.linspace(0, 1, len(ROWS))


def _params(lm):
    return {**lm.frozen(), **lm.trainable(jax.random.key(0))}


def _features(lm):
    return features_of(lm, lm.transformer, _params(lm), ROWS, REWARD, watch=Watch("texts"))


@pytest.fixture(scope="module")
def features():
    return _features(tiny_lm())


def test_a_text_has_the_states_that_it_has_alone(features):
    lm = tiny_lm()
    assert features.length.tolist() == [len(row) for row in ROWS]
    assert len(features.states) == features.length.sum()  # real tokens alone
    for row, start, length in zip(ROWS, features.start, features.length, strict=True):
        alone = hidden_of(lm.transformer)(_params(lm), np.array([row]), np.ones((1, length)))
        close(features.states[start : start + length], alone[0])
    np.testing.assert_array_equal(features.reward, np.float32(REWARD))


@pytest.mark.parametrize(
    "options", [{"width": 56, "rows": 1}, {"width": 200, "rows": 2}, {"mesh": mesh_of(4, fsdp=2)}]
)
def test_the_states_do_not_depend_on_the_grids(features, options):
    other = _features(tiny_lm(**options))
    np.testing.assert_array_equal(other.start, features.start)
    close(other.states, features.states)


def test_texts_are_padded_to_the_longest_of_all(features):
    chosen = np.array([4, 1, 1])
    padded = features.padded(chosen)
    assert padded.hidden.shape[:2] == padded.mask.shape == (3, max(map(len, ROWS)))
    for place, row in enumerate(chosen):
        start, length = features.start[row], features.length[row]
        states = features.states[start : start + length]
        np.testing.assert_array_equal(padded.hidden[place, :length], states)
        np.testing.assert_array_equal(padded.mask[place], np.arange(padded.mask.shape[1]) < length)
        assert not padded.hidden[place, length:].any()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(padded)} == {"float32"}
