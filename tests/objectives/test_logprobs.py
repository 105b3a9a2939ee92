"""Log-probabilities of responses: the definition, pieces, padding, and what never exists."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from alol_jax.devices.sharding import make_mesh, place_params, place_rows
from alol_jax.objectives.logprobs import grid_kl, grid_logp, response_logp, to_sequences
from alol_jax.types import Grid, Tokens

B, K, P, R, D, V = 3, 2, 5, 4, 7, 29
draw = np.random.default_rng(0)
HIDDEN = draw.normal(size=(B * K, P + R, D)).astype(np.float32)
HEAD = draw.normal(size=(D, V)).astype(np.float32)
LENGTHS = np.array([4, 1, 2, 3, 0, 4])
MASK = (np.arange(R) < LENGTHS[:, None]).astype(np.float32)
TOKENS = Tokens(
    prompt=draw.integers(0, V, (B * K, P)).astype(np.int32),
    prompt_mask=(np.arange(P) >= draw.integers(0, P, (B * K, 1))).astype(np.float32),
    response=draw.integers(0, V, (B * K, R)).astype(np.int32),
    mask=MASK,
)
logp_of = jax.jit(response_logp, static_argnames="chunk")


def definition(hidden, head):
    """log softmax of all logits [B, T, V], then the tokens that follow."""
    every = jax.nn.log_softmax(jnp.einsum("btd,dv->btv", hidden, head), axis=-1)
    following = jnp.take_along_axis(every[:, P - 1 : -1], TOKENS.response[..., None], axis=-1)
    return jnp.where(MASK > 0, following[..., 0], 0.0)


@pytest.mark.parametrize("chunk", [1, 5, 8, 24, 1000])
def test_logp_is_the_log_softmax_of_the_position_before_whatever_the_chunk(chunk):
    found = logp_of(HIDDEN, HEAD, TOKENS, chunk=chunk)
    np.testing.assert_allclose(found, definition(HIDDEN, HEAD), rtol=1e-5, atol=1e-5)
    assert np.all(found[MASK == 0] == 0.0) and np.all(found[MASK > 0] < 0.0)


@pytest.mark.parametrize("chunk", [5, 1000])
def test_pieces_have_the_gradients_of_the_whole(chunk):
    weight = draw.normal(size=(B * K, R))

    def gradients(function):
        def total(hidden, head):
            return jnp.sum(weight * function(hidden, head))

        return jax.jit(jax.grad(total, (0, 1)))(HIDDEN, HEAD)

    found = gradients(lambda hidden, head: response_logp(hidden, head, TOKENS, chunk=chunk))
    for one, other in zip(found, gradients(definition), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[0][:, : P - 1], 0.0)
    np.testing.assert_array_equal(found[0][:, -1], 0.0)
    assert not np.any(found[0][:, P - 1 : -1][MASK == 0])


def test_what_stands_on_padding_changes_nothing():
    poisoned = np.where(np.pad(MASK, ((0, 0), (P - 1, 1)))[..., None] > 0, HIDDEN, np.nan)
    other = TOKENS._replace(response=np.where(MASK > 0, TOKENS.response, V - 1).astype(np.int32))
    np.testing.assert_array_equal(
        logp_of(poisoned, HEAD, other, chunk=5), logp_of(HIDDEN, HEAD, TOKENS, chunk=5)
    )


GROUPED = Tokens(
    TOKENS.prompt[::K],
    TOKENS.prompt_mask[::K],
    TOKENS.response.reshape(B, K, R),
    TOKENS.mask.reshape(B, K, R),
)


def test_a_prompt_stands_once_before_its_several_responses():
    ids, mask, branches = to_sequences(GROUPED)
    assert branches == (P, R)
    np.testing.assert_array_equal(ids[:, :P], GROUPED.prompt)
    np.testing.assert_array_equal(mask[:, :P], GROUPED.prompt_mask)
    for k in range(K):
        np.testing.assert_array_equal(ids[:, P + k * R :][:, :R], GROUPED.response[:, k])
        np.testing.assert_array_equal(mask[:, P + k * R :][:, :R], GROUPED.mask[:, k])


@pytest.mark.parametrize("chunk", [5, 1000])
def test_several_responses_have_the_logp_that_each_has_alone(chunk):
    hidden = draw.normal(size=(B, P + K * R, D)).astype(np.float32)
    found = logp_of(hidden, HEAD, GROUPED, chunk=chunk)
    assert found.shape == (B, K, R)
    for k in range(K):
        start = P + k * R
        own = np.concatenate([hidden[:, :P], hidden[:, start : start + R]], axis=1)
        alone = Tokens(
            GROUPED.prompt, GROUPED.prompt_mask, GROUPED.response[:, k], GROUPED.mask[:, k]
        )
        np.testing.assert_allclose(
            found[:, k], logp_of(own, HEAD, alone, chunk=chunk), rtol=1e-5, atol=1e-5
        )


def test_joined_puts_the_prompt_before_its_response():
    ids, mask, _ = to_sequences(TOKENS)
    np.testing.assert_array_equal(ids[:, :P], TOKENS.prompt)
    np.testing.assert_array_equal(ids[:, P:], TOKENS.response)
    np.testing.assert_array_equal(mask, np.concatenate([TOKENS.prompt_mask, MASK], axis=1))
    assert to_sequences(TOKENS).branches is None


def test_half_precision_hidden_states_give_float32_log_probabilities():
    found = logp_of(HIDDEN.astype(jnp.bfloat16), HEAD, TOKENS, chunk=5)
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - definition(HIDDEN, HEAD)).max() < 0.1


def float_sizes(jaxpr):
    """The sizes of all floating arrays that the operations of a jaxpr make, at any depth."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if jnp.issubdtype(variable.aval.dtype, jnp.floating):
                yield variable.aval.size
        for inner in jaxprs_in_params(equation.params):
            yield from float_sizes(inner)


def test_logits_of_more_than_a_chunk_never_exist_not_even_for_the_gradient():
    def largest(chunk):
        def total(hidden, head):
            return jnp.sum(response_logp(hidden, head, TOKENS, chunk=chunk))

        traced = jax.make_jaxpr(jax.value_and_grad(total, (0, 1)))(HIDDEN, HEAD)
        return max(float_sizes(traced.jaxpr))

    assert largest(chunk=1000) == B * K * R * V  # the head never runs on the prompt
    assert largest(chunk=18) == 18 * V < B * K * R * V
    assert largest(chunk=8) == max(B * K * V, HIDDEN.size)  # one column at least


@pytest.mark.parametrize("chunk", [24, 1000])
def test_on_a_mesh_every_device_computes_the_logits_of_its_own_rows(chunk):
    mesh, rows, length, width, size = make_mesh(data=2, fsdp=2, tensor=2), 8, 6, 10, 34
    ids = np.ones((rows, 4), np.int32), np.ones((rows, length), np.int32)
    tokens = Tokens(ids[0], np.float32(ids[0]), ids[1], np.float32(ids[1]))
    states = draw.normal(size=(rows, 4 + length, width)).astype(np.float32)
    placed, head = place_rows((states, tokens), mesh), draw.normal(size=(width, size))
    kernel = place_params({"head/kernel": np.float32(head)}, mesh)["head/kernel"]

    def total(hidden, kernel, tokens):
        return jnp.sum(response_logp(hidden, kernel, tokens, chunk=chunk))

    step = jax.jit(jax.value_and_grad(total, (0, 1)))
    compiled = step.lower(placed[0], kernel, placed[1]).compile().as_text()
    dots = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", compiled)
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", compiled)
    columns = min(chunk // rows, length)
    assert dots and max(map(_size, dots)) <= rows // 4 * columns * size
    assert all(_size(shape) <= width * size for shape in gathered)  # the head, never the states


def _size(shape: str) -> int:
    return int(np.prod([int(n) for n in shape.split(",")]))


def test_a_wrong_shape_is_refused_at_the_door():
    for hidden, head in ((HIDDEN[:-1], HEAD), (HIDDEN, HEAD[:-1]), (HIDDEN[0], HEAD)):
        with pytest.raises((AssertionError, ValueError)):
            response_logp(hidden, head, TOKENS, chunk=5)


# how far two policies are apart

OTHER = draw.normal(size=HIDDEN.shape).astype(np.float32)
OTHER_HEAD = draw.normal(size=HEAD.shape).astype(np.float32)
GRID = Grid(*[np.zeros(0)] * 4, np.tile(P - 1 + np.arange(R), (B * K, 1)), TOKENS.response, MASK)


@functools.partial(jax.jit, static_argnames="chunk")
def kl_of(hidden, heads, tokens, *, chunk):
    """The KL of each response, of `TOKENS` as a grid."""
    return jnp.sum(grid_kl(hidden, heads, GRID, chunk=chunk), axis=1)


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_a_grid_has_the_log_probabilities_of_its_response_tokens(chunk):
    found = jax.jit(grid_logp, static_argnames="chunk")(HIDDEN, HEAD, GRID, chunk=chunk)
    np.testing.assert_allclose(found, definition(HIDDEN, HEAD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_kl_is_that_of_the_whole_distributions_summed_over_the_response(chunk):
    found = kl_of((HIDDEN, OTHER), (HEAD, OTHER_HEAD), TOKENS, chunk=chunk)
    for row, length in enumerate(LENGTHS):
        expected = 0.0
        for place in range(P - 1, P - 1 + length):
            ours, theirs = (
                np.exp(states[row, place] @ head) / np.exp(states[row, place] @ head).sum()
                for states, head in ((HIDDEN, HEAD), (OTHER, OTHER_HEAD))
            )
            expected += sum(p * np.log(p / q) for p, q in zip(ours, theirs, strict=True))
        assert found[row] == pytest.approx(expected, rel=1e-4)


def test_kl_of_a_policy_to_itself_is_nothing_and_padding_adds_nothing():
    assert np.abs(kl_of((HIDDEN, HIDDEN), (HEAD, HEAD), TOKENS, chunk=8)).max() == 0.0
    spoiled = HIDDEN.copy()
    for row, length in enumerate(LENGTHS):
        spoiled[row, P - 1 + length :] = 1e9
    found = kl_of((spoiled, OTHER), (HEAD, OTHER_HEAD), TOKENS, chunk=8)
    np.testing.assert_array_equal(
        found, kl_of((HIDDEN, OTHER), (HEAD, OTHER_HEAD), TOKENS, chunk=8)
    )


def test_the_logits_of_both_policies_fit_in_a_chunk():
    def largest(chunk):
        traced = jax.make_jaxpr(
            lambda one, other: grid_kl((one, other), (HEAD, OTHER_HEAD), GRID, chunk=chunk)
        )(HIDDEN, OTHER)
        return max(float_sizes(traced.jaxpr))

    assert largest(1000) == B * K * R * V  # never more columns than the response has
    assert largest(24) == 12 * V
