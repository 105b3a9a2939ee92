"""Which keys a query sees, sliding windows and capped scores: all kernels agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.devices.sharding import make_mesh
from alol_jax.models.attention import Attention, decode_attention
from alol_jax.models.kernels import Rule, Seen, attention_mask
from tests.models.queries import (
    CAUSAL,
    assert_same,
    examples_side_by_side,
    heads,
    mixed_and_gradients,
    positions_in,
)


def test_a_causal_query_sees_its_segment_up_to_itself():
    seen = attention_mask(Seen(jnp.array([[0, 1, 1, 2, 2]])), Rule(True))[0]
    expected = [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(seen, np.array(expected, bool))


def test_a_bidirectional_query_sees_all_of_its_segment():
    seen = attention_mask(Seen(jnp.array([[0, 1, 1, 0]])), Rule(False))[0]
    expected = [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    np.testing.assert_array_equal(seen, np.array(expected, bool))


def test_a_response_sees_the_prompt_and_itself_and_no_other_response():
    segments, branch = jnp.array([[0, 1, 1, 1, 1, 0]]), jnp.array([[0, 0, 1, 1, 2, 0]])
    seen = attention_mask(Seen(segments, branch), Rule(True))[0]
    expected = [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(seen, np.array(expected, bool))


def test_the_first_response_of_an_example_does_not_see_that_of_another():
    segments, branch = jnp.array([[1, 1, 2, 2, 2]]), jnp.array([[0, 1, 0, 1, 2]])
    seen = attention_mask(Seen(segments, branch), Rule(True))[0]
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 0, 1],
    ]
    np.testing.assert_array_equal(seen, np.array(expected, bool))


def test_a_window_counts_positions_of_the_text_and_not_columns():
    """A prompt of 2 and responses of 2 and 1 tokens: the last sees the prompt's end, 3 columns
    before it."""
    segments, branch = jnp.array([[1, 1, 1, 1, 1]]), jnp.array([[0, 0, 1, 1, 2]])
    positions = positions_in(segments, branch)
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3, 2]])
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
    ]
    seen = Seen(segments, branch, positions)
    np.testing.assert_array_equal(attention_mask(seen, Rule(True, 2))[0], np.array(expected, bool))
    whole = attention_mask(Seen(segments, branch), Rule(True))
    for local, mask in ((True, expected), (False, whole[0])):
        seen = Seen(segments, branch, positions, jnp.array(local))
        np.testing.assert_array_equal(attention_mask(seen, Rule(True, 2))[0], mask)


@pytest.mark.parametrize("with_branches", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_mask_of_some_queries_is_a_part_of_the_whole_mask(causal, with_branches):
    segments, branch = examples_side_by_side(2, 30)
    given = Seen(segments, branch if with_branches else None), Rule(causal)
    part = attention_mask(*given, queries=slice(11, 20))
    np.testing.assert_array_equal(part, attention_mask(*given)[:, 11:20])


WINDOWED = {
    "window": (Rule(True, 40), None),
    "window, this layer": (Rule(True, 40), jnp.array(True)),
    "window, another layer": (Rule(True, 40), jnp.array(False)),
    "window of two tiles": (Rule(True, 200), None),
    "cap": (Rule(True, cap=1.5), None),
    "window and cap": (Rule(True, 3, 1.5), None),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_splash_with_windows_and_caps_equals_plain_attention(name):
    """256 columns are two tiles; windows and caps change the result."""
    qkv = heads(2, 256, 4, 2, 16)
    segments = jnp.broadcast_to(jnp.arange(256) < 250, (2, 256)).astype(jnp.int32)
    rule, local = WINDOWED[name]
    seen = Seen(segments, None, positions_in(segments, 0 * segments), local)
    splash, plain = Attention("splash", None, interpret=True), Attention("xla", None)
    found = mixed_and_gradients(splash, qkv, seen, rule)
    assert_same(found, mixed_and_gradients(plain, qkv, seen, rule))
    differs = np.abs(found[0] - mixed_and_gradients(plain, qkv, seen)[0]).max() > 0.01
    assert differs == (name != "window, another layer")


def test_splash_with_a_window_over_texts_side_by_side_equals_plain_attention():
    qkv, (segments, _) = heads(2, 256, 4, 2, 16), examples_side_by_side(2, 256)
    seen = Seen(segments, None, positions_in(segments, 0 * segments))
    splash, plain = Attention("splash", None, interpret=True), Attention("xla", None)
    found = mixed_and_gradients(splash, qkv, seen, Rule(True, 10))
    assert_same(found, mixed_and_gradients(plain, qkv, seen, Rule(True, 10)))
    assert np.abs(found[0] - mixed_and_gradients(plain, qkv, seen)[0]).max() > 0.01


def test_a_window_that_holds_every_text_is_none():
    qkv, (segments, branch) = heads(2, 64, 4, 2, 16), examples_side_by_side(2, 64)
    plain, seen = Attention("xla", None), Seen(segments, branch)
    found = plain(*qkv, seen._replace(positions=positions_in(segments, branch)), Rule(True, 64))
    np.testing.assert_array_equal(found, plain(*qkv, seen, CAUSAL))


def test_capped_scores_without_a_bend_are_the_scores():
    """A cap far above every score changes nothing, though another program computes it."""
    qkv, (segments, branch) = heads(2, 70, 4, 2, 16), examples_side_by_side(2, 70)
    plain, seen = Attention("xla", None), Seen(segments, branch)
    found = mixed_and_gradients(plain, qkv, seen, Rule(True, cap=1e4))
    assert_same(found, mixed_and_gradients(plain, qkv, seen))


def test_capped_scores_are_cap_times_tanh_of_the_score_over_cap():
    q, k = jnp.full((1, 2, 1, 16), 2.0), jnp.zeros((1, 2, 1, 16)).at[0, 1].set(2.0)
    v = jnp.zeros((1, 2, 1, 16)).at[0, 1].set(1.0)
    weight = jax.nn.sigmoid(3.0 * jnp.tanh(16 * 4.0 / 4 / 3.0))
    mixed = Attention("xla", None)(q, k, v, Seen(jnp.ones((1, 2))), Rule(True, cap=3.0))
    np.testing.assert_allclose(mixed[0, 1, 0, 0], weight, rtol=1e-5)
    cached = (jnp.transpose(k, (0, 2, 3, 1)), jnp.transpose(v, (0, 2, 1, 3)))
    step = decode_attention(q[:, 1:], *cached, jnp.ones((1, 2), bool), cap=3.0)
    np.testing.assert_allclose(step[0, 0, 0, 0], weight, rtol=1e-5)


def test_cudnn_refuses_to_cap_scores():
    qkv = heads(1, 64, 2, 1, 64, jnp.bfloat16)
    with pytest.raises(ValueError, match="cudnn cannot cap scores"):
        Attention("cudnn", None)(*qkv, Seen(jnp.ones((1, 64))), Rule(True, cap=50.0))


@pytest.mark.parametrize("local", [True, False])
def test_splash_on_a_mesh_knows_which_layer_has_the_window(local):
    mesh, mask = make_mesh(data=1, fsdp=4, tensor=2), jnp.ones((4, 128), jnp.int32)
    qkv = heads(4, 128, 4, 2, 16)
    given = Seen(mask, None, positions_in(mask, 0 * mask), jnp.array(local)), Rule(True, 30)
    found = Attention("splash", mesh, interpret=True)(*qkv, *given)
    expected = Attention("xla", None)(*qkv, *given)
    np.testing.assert_allclose(found, expected, atol=2e-5)
