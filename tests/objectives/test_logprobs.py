"""Log-probabilities of responses: the definition, pieces, padding, and what never exists."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from alol_jax.devices.sharding import make_mesh, place_params, place_rows
from alol_jax.objectives.logprobs import grid_kl, grid_logp, grid_states, to_batch
from alol_jax.types import Grid, Unembedding

ROWS, T, M, D, V = 6, 11, 4, 7, 29
draw = np.random.default_rng(0)
HIDDEN = draw.normal(size=(ROWS, T, D)).astype(np.float32)
HEAD = draw.normal(size=(D, V)).astype(np.float32)
LENGTHS = np.array([4, 1, 2, 3, 0, 4])


def grid_with(rows: int, columns: int, lengths: np.ndarray) -> Grid:
    """A grid whose response tokens stand anywhere, the first ``lengths`` of each row real."""
    tokens, slots = np.zeros((rows, T), np.int32), np.ones((rows, 2), np.int32)
    before = np.argsort(draw.random((rows, T - 1)), axis=1)[:, :columns].astype(np.int32)
    real = np.arange(columns) < lengths[:, None]
    place = np.zeros((rows, columns), np.int32)
    place[real] = draw.permutation(real.sum())  # 0 among them, as on padding
    target = draw.integers(0, V, (rows, columns)).astype(np.int32)
    return Grid(tokens, tokens, tokens, tokens, slots, before, target, real.astype("f4"), place)


GRID = grid_with(ROWS, M, LENGTHS)
REAL = GRID.real > 0
AT = np.arange(ROWS)[:, None]
logp_of = jax.jit(grid_logp, static_argnames="chunk")


def definition(hidden, head):
    """log softmax of all logits [rows, T, V], then the tokens that follow."""
    every = jax.nn.log_softmax(jnp.einsum("btd,dv->btv", hidden, head), axis=-1)
    return jnp.where(REAL, every[AT, GRID.before, GRID.target], 0.0)


@pytest.mark.parametrize("chunk", [1, 5, 8, 24, 1000])
def test_logp_is_the_log_softmax_of_the_position_before_whatever_the_chunk(chunk):
    found = logp_of(HIDDEN, Unembedding(HEAD), GRID, chunk=chunk)
    np.testing.assert_allclose(found, definition(HIDDEN, HEAD), rtol=1e-5, atol=1e-5)
    assert np.all(found[~REAL] == 0.0) and np.all(found[REAL] < 0.0)


@pytest.mark.parametrize("chunk", [5, 1000])
def test_capped_logits_bend_before_the_softmax(chunk):
    found = logp_of(HIDDEN, Unembedding(HEAD, 2.0), GRID, chunk=chunk)
    logits = jnp.einsum("btd,dv->btv", HIDDEN, HEAD)
    every = jax.nn.log_softmax(2.0 * jnp.tanh(logits / 2.0), axis=-1)
    expected = jnp.where(REAL, every[AT, GRID.before, GRID.target], 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - definition(HIDDEN, HEAD)).max() > 0.1


@pytest.mark.parametrize("chunk", [5, 1000])
def test_pieces_have_the_gradients_of_the_whole(chunk):
    weight = draw.normal(size=(ROWS, M))

    def gradients(function):
        def total(hidden, head):
            return jnp.sum(weight * function(hidden, head))

        return jax.jit(jax.grad(total, (0, 1)))(HIDDEN, HEAD)

    found = gradients(lambda hidden, head: grid_logp(hidden, Unembedding(head), GRID, chunk=chunk))
    for one, other in zip(found, gradients(definition), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    reading = np.zeros((ROWS, T), bool)
    reading[np.nonzero(REAL)[0], GRID.before[REAL]] = True
    np.testing.assert_array_equal(np.any(found[0] != 0.0, axis=-1), reading)


def test_what_stands_on_padding_changes_nothing():
    poisoned = np.full_like(HIDDEN, np.nan)
    rows, columns = np.nonzero(REAL)[0], GRID.before[REAL]
    poisoned[rows, columns] = HIDDEN[rows, columns]
    other = GRID._replace(target=np.where(REAL, GRID.target, V - 1).astype(np.int32))
    np.testing.assert_array_equal(
        logp_of(poisoned, Unembedding(HEAD), other, chunk=5),
        logp_of(HIDDEN, Unembedding(HEAD), GRID, chunk=5),
    )


def test_the_states_of_a_grid_are_those_that_predict_its_response_tokens():
    np.testing.assert_array_equal(grid_states(HIDDEN, GRID), HIDDEN[AT, GRID.before])


# back to the batch


def test_every_number_of_a_response_token_goes_to_its_place_and_no_other():
    numbers = draw.normal(size=(ROWS, M)).astype(np.float32)
    found = to_batch(np.where(REAL, numbers, np.nan), GRID, (3, 2, M))
    assert found.shape == (3, 2, M)
    np.testing.assert_array_equal(found.reshape(-1)[GRID.place[REAL]], numbers[REAL])
    assert np.count_nonzero(found) == REAL.sum()


def test_the_grids_of_a_batch_add_up_to_the_whole_with_gradients():
    numbers = draw.normal(size=(ROWS, M)).astype(np.float32)
    weight = draw.normal(size=(ROWS, M)).astype(np.float32)
    halves = [jax.tree.map(lambda x, h=h: x[h::2], GRID) for h in range(2)]

    def whole(numbers):
        return to_batch(numbers, GRID, (ROWS, M))

    def summed(numbers):
        parts = [to_batch(numbers[h::2], half, (ROWS, M)) for h, half in enumerate(halves)]
        return parts[0] + parts[1]

    np.testing.assert_array_equal(summed(numbers), whole(numbers))
    gradient = jax.grad(lambda x: jnp.sum(weight * summed(x)))(numbers)
    np.testing.assert_array_equal(gradient[REAL], weight.reshape(-1)[GRID.place[REAL]])
    assert not np.any(gradient[~REAL])


# numbers, memory and devices


def test_half_precision_hidden_states_give_float32_log_probabilities():
    found = logp_of(HIDDEN.astype(jnp.bfloat16), Unembedding(HEAD), GRID, chunk=5)
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
            return jnp.sum(grid_logp(hidden, Unembedding(head), GRID, chunk=chunk))

        traced = jax.make_jaxpr(jax.value_and_grad(total, (0, 1)))(HIDDEN, HEAD)
        return max(float_sizes(traced.jaxpr))

    assert largest(chunk=1000) == ROWS * M * V  # the head runs on response tokens alone
    assert largest(chunk=18) == 18 * V < ROWS * M * V
    assert largest(chunk=8) == max(ROWS * V, HIDDEN.size)  # one column at least


@pytest.mark.parametrize("chunk", [24, 1000])
def test_on_a_mesh_every_device_computes_the_logits_of_its_own_rows(chunk):
    mesh, rows, length, width, size = make_mesh(data=2, fsdp=2, tensor=2), 8, 6, 10, 34
    grid = grid_with(rows, length, np.full(rows, length))
    states = draw.normal(size=(rows, T, width)).astype(np.float32)
    placed, head = place_rows((states, grid), mesh), draw.normal(size=(width, size))
    kernel = place_params({"head/kernel": np.float32(head)}, mesh)["head/kernel"]

    def total(hidden, kernel, grid):
        return jnp.sum(grid_logp(hidden, Unembedding(kernel), grid, chunk=chunk))

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
            grid_logp(hidden, Unembedding(head), GRID, chunk=5)


# how far two policies are apart

OTHER = draw.normal(size=HIDDEN.shape).astype(np.float32)
OTHER_HEAD = draw.normal(size=HEAD.shape).astype(np.float32)
HEADS = (Unembedding(HEAD), Unembedding(OTHER_HEAD))
kl_of = jax.jit(grid_kl, static_argnames="chunk")


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_kl_is_that_of_the_whole_distributions_at_each_response_token(chunk):
    found = kl_of((HIDDEN, OTHER), HEADS, GRID, chunk=chunk)
    assert found.shape == (ROWS, M) and not np.any(found[~REAL])
    for row, m in zip(*np.nonzero(REAL), strict=True):
        logits = (
            HIDDEN[row, GRID.before[row, m]] @ HEAD,
            OTHER[row, GRID.before[row, m]] @ OTHER_HEAD,
        )
        ours, theirs = (np.exp(x) / np.exp(x).sum() for x in logits)
        expected = sum(p * np.log(p / q) for p, q in zip(ours, theirs, strict=True))
        assert found[row, m] == pytest.approx(expected, rel=1e-4)


def test_kl_of_a_policy_to_itself_is_nothing_and_padding_adds_nothing():
    assert np.abs(kl_of((HIDDEN, HIDDEN), (HEADS[0], HEADS[0]), GRID, chunk=8)).max() == 0.0
    spoiled = np.full_like(HIDDEN, 1e9)
    rows, columns = np.nonzero(REAL)[0], GRID.before[REAL]
    spoiled[rows, columns] = HIDDEN[rows, columns]
    found = kl_of((spoiled, OTHER), HEADS, GRID, chunk=8)
    np.testing.assert_array_equal(found, kl_of((HIDDEN, OTHER), HEADS, GRID, chunk=8))


def test_the_logits_of_both_policies_fit_in_a_chunk():
    def largest(chunk):
        traced = jax.make_jaxpr(lambda one, other: grid_kl((one, other), HEADS, GRID, chunk=chunk))(
            HIDDEN, OTHER
        )
        return max(float_sizes(traced.jaxpr))

    assert largest(1000) == ROWS * M * V  # never more columns than the grid has targets
    assert largest(24) == 12 * V
