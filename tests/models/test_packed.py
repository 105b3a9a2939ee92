"""Examples side by side in a row are read as if each stood alone: states, log-probabilities,
gradients, values and scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.models.heads import ValueHead, slot_mask
from alol_jax.objectives.logprobs import logits_of
from alol_jax.text.packing import GridShape, Layout, to_grid
from alol_jax.training.annotate import annotator
from tests.models.small_models import ADAPTERS, SMALLS, close, hidden_of, random_params, small
from tests.models.tiny_classifiers import CLASSIFIERS, END, random_classifier
from tests.packed import grid_of, logp_of

DRAW = np.random.default_rng(5)
PROMPTS = [tuple(DRAW.integers(0, 38, n).tolist()) for n in (2, 5, 2, 5, 2)]
RESPONSES = [  # three of each prompt, of few lengths: each is compiled alone
    [tuple(DRAW.integers(0, 38, n).tolist()) for n in lengths]
    for lengths in ((3, 6, 3), (1, 3, 3), (6, 1, 6), (3, 1, 6), (6, 6, 3))
]
LONGEST = 6
TOLD = np.array([[np.arange(LONGEST) < len(one) for one in each] for each in RESPONSES])
WEIGHT = DRAW.normal(size=TOLD.shape).astype(np.float32)
ORDERS = [(0, 1, 2, 3, 4), (4, 2, 0, 3, 1), (3, 1, 4, 0, 2)]
FAMILIES = ("llama", "gemma2", "gpt_neox", "gpt2")
EVERY = pytest.mark.parametrize("name", FAMILIES)


@functools.cache
def model_of(name):
    model = small(SMALLS[name])
    return model, random_params(model)


def gradient_of(logp, params, weight):
    """The log-probabilities, and the gradient of their sum by weight."""

    def total(params):
        found = logp(params)
        return jnp.sum(found * weight), found

    gradient, found = jax.grad(total, has_aux=True)(params)
    return found, gradient


def assert_same_gradients(found, expected, tolerance=1e-5):
    """Up to ``tolerance`` of the largest entry of each leaf, or of 1."""
    for path, leaf in expected.items():
        room = tolerance * max(1.0, np.abs(leaf).max())
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=room, err_msg=path)


@functools.cache
def alone(name):
    """What a model says of each response after its prompt, one text per pass, without padding:
    f32[5, 3, R], and the gradient of the sum by WEIGHT over the first responses, and over all.
    """
    model, params = model_of(name)

    @jax.jit
    def one(params, ids, response, weight):
        start = ids.shape[1] - len(response)

        def logp(params):
            hidden = model.hidden(params, ids, jnp.ones_like(ids))[0, start - 1 : -1]
            every = jax.nn.log_softmax(logits_of(hidden, model.unembedding(params)))
            return jnp.take_along_axis(every, response[:, None], axis=1)[:, 0]

        return gradient_of(logp, params, weight)

    found, zero = np.zeros((5, 3, LONGEST), np.float32), jax.tree.map(jnp.zeros_like, params)
    gradients = [zero, zero]
    for n, k in np.ndindex(5, 3):
        text, size = PROMPTS[n] + RESPONSES[n][k], len(RESPONSES[n][k])
        logp, gradient = one(params, *map(np.array, ([text], RESPONSES[n][k])), WEIGHT[n, k, :size])
        found[n, k, :size] = logp
        for which in (0, 1) if k == 0 else (1,):
            gradients[which] = jax.tree.map(jnp.add, gradients[which], gradient)
    return found, *gradients


def laid_out(order, width, *, k=1, share=True):
    """The examples in this order, each in the first row that has room; rows end in padding."""
    rows, room = [], []
    for n in order:
        copies = 1 if share else k
        size = copies * len(PROMPTS[n]) + sum(map(len, RESPONSES[n][:k]))
        row = next((row for row, left in enumerate(room) if left >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width - 2)
        rows[row].append(n)
        room[row] -= size
    example = {n: (np.array(PROMPTS[n]), [np.array(r) for r in RESPONSES[n][:k]]) for n in order}
    shape = GridShape(len(rows) + 1, width, width, 5 * k)
    return to_grid(rows, example.__getitem__, shape, Layout(LONGEST, share, pad_id=1))


@functools.cache
def read(model, branches=True):
    """(params, grid, weight f32[5, K, R]) -> log-probabilities and a gradient, jitted."""

    @jax.jit
    def run(params, grid, weight):
        def logp(params):
            return logp_of(model, params, grid, weight.shape, chunk=40, branches=branches)

        return gradient_of(logp, params, weight)

    return run


# log-probabilities


@pytest.mark.parametrize(("width", "order"), [*zip((32, 75, 130), ORDERS, strict=True)], ids=str)
@pytest.mark.parametrize(("k", "share"), [(1, True), (3, True), (3, False)])
@EVERY
def test_log_probabilities_and_gradients_are_those_of_one_text_at_a_time(
    name, width, k, share, order
):
    model, params = model_of(name)
    grid = laid_out(order, width, k=k, share=share)
    found, gradient = read(model, branches=share)(params, grid, WEIGHT[:, :k])
    expected, first, every = alone(name)
    close(found, expected[:, :k], 1e-5)
    assert_same_gradients(gradient, first if k == 1 else every)
    np.testing.assert_array_equal(found < 0, TOLD[:, :k])


@EVERY
def test_an_own_copy_of_the_prompt_and_a_shared_one_give_the_same(name):
    model, params = model_of(name)
    shared, apart = (laid_out(ORDERS[0], 75, k=3, share=share) for share in (True, False))
    assert (apart.segment > 0).sum() > (shared.segment > 0).sum()
    found, gradient = read(model)(params, shared, WEIGHT)
    other, other_gradient = read(model, branches=False)(params, apart, WEIGHT)
    close(found, other, 1e-5)
    assert_same_gradients(gradient, other_gradient)


@pytest.mark.parametrize("k", [1, 3])
@EVERY
def test_another_text_beside_an_example_changes_no_bit_of_it(name, k):
    """Plain attention: what is masked has exactly no weight, and no gradient."""
    model, params = model_of(name)
    grid = laid_out(ORDERS[0], 75, k=k)
    mine = grid.segment == 2
    assert mine.any(axis=1)[0] and (grid.segment[0] > 2).any()  # others before and after it
    others = np.where(mine, grid.ids, (grid.ids * 7 + 3) % 38)
    weight = np.where(np.arange(5)[:, None, None] == 1, WEIGHT, 0.0)[:, :k]
    found, gradient = read(model)(params, grid, weight)
    beside, other_gradient = read(model)(params, grid._replace(ids=others), weight)
    np.testing.assert_array_equal(beside[1], found[1])
    assert not np.allclose(beside[0], found[0], atol=0.1)
    for path, leaf in gradient.items():
        np.testing.assert_array_equal(other_gradient[path], leaf, err_msg=path)
    assert any(np.abs(leaf).max() > 0.1 for leaf in gradient.values())


@EVERY
def test_another_response_beside_a_response_changes_no_bit_of_it(name):
    model, params = model_of(name)
    grid = laid_out(ORDERS[0], 75, k=3)
    others = np.where(grid.branch == 2, (grid.ids * 7 + 3) % 38, grid.ids)
    found, _ = read(model)(params, grid, WEIGHT)
    beside, _ = read(model)(params, grid._replace(ids=others), WEIGHT)
    np.testing.assert_array_equal(beside[:, ::2], found[:, ::2])
    assert not np.allclose(beside[:, 1], found[:, 1], atol=0.1)


def test_without_the_branches_a_response_would_read_the_one_before_it():
    model, params = model_of("llama")
    grid = laid_out(ORDERS[0], 75, k=3)
    found, _ = read(model, branches=False)(params, grid, WEIGHT)
    expected = alone("llama")[0]
    close(found[:, 0], expected[:, 0], 1e-5)
    assert not np.allclose(found[:, 1:], expected[:, 1:], atol=0.1)


@pytest.mark.parametrize("k", [1, 3])
def test_adapters_get_the_same_gradients_packed_by_the_library(k):
    """`pack` chooses the rows; one row for each example, and few rows."""
    model = small(lora=ADAPTERS)
    params = random_params(model)
    responses = [each[:k] for each in RESPONSES]
    pairs = [grid_of(PROMPTS, responses, width=width) for width in (0, 64)]
    assert pairs[0][0].ids.shape[0] > pairs[1][0].ids.shape[0]
    weight = WEIGHT[:, :k]
    (one, first), (other, second) = (read(model)(params, g, weight) for g, _ in pairs)
    close(one, other, 1e-5)
    assert_same_gradients(first, second)
    assert np.abs(first["layers/q_proj/lora_a"]).max() > 1e-3


# states, values and scores


@pytest.mark.parametrize("name", SMALLS)
def test_the_states_of_texts_side_by_side_are_those_of_each_alone(name):
    """Whichever way a model reads."""
    model, params = model_of(name)
    grid = laid_out(ORDERS[1], 40)
    found = jax.jit(model.hidden)(params, grid.ids, grid.segment, positions=grid.position)
    seen = 0
    for row, slot in zip(*np.nonzero(grid.prompt), strict=True):
        mine = grid.segment[row] == slot + 1
        text = grid.ids[row][mine][None]
        close(found[row][mine], hidden_of(model)(params, text, np.ones_like(text))[0])
        seen += 1
    assert seen == len(PROMPTS) and len(set(grid.segment[0])) > 2


@EVERY
def test_the_value_of_a_prompt_does_not_depend_on_its_response_or_its_neighbours(name):
    model, params = model_of(name)
    head = ValueHead(width=model.config.width, max_value=2.0)
    value_params = head.init(jax.random.key(0), 1.0)
    kernel = jax.random.normal(jax.random.key(1), value_params["summary/kernel"].shape)
    value_params |= {"summary/kernel": 4 * kernel}
    grid = laid_out(ORDERS[1], 40)
    logp, found = annotator(model, head, 1000, True)(params, value_params, grid)
    values = {}
    for row, slot in zip(*np.nonzero(grid.prompt), strict=True):
        text = tuple(grid.ids[row][grid.segment[row] == slot + 1].tolist())
        prompt = np.array([text[: grid.prompt[row, slot]]])
        states = hidden_of(model)(params, prompt, np.ones_like(prompt))
        values[text] = float(head(value_params, states, np.ones(prompt.shape))[0])
        assert found[row, slot] == pytest.approx(values[text], abs=1e-5)
    assert values.keys() == {p + r[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)}
    assert np.ptp(list(values.values())) > 0.01
    real = grid.real > 0
    close(logp[real], alone(name)[0][:, :1].reshape(-1)[grid.place[real]], 1e-5)


TEXTS = [(5, 9, END, 2, 30, 11, 0, END, 6), (4, 8, END, 21, END), (17, END), (3, END, 3), (2, 4)]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_scores_of_texts_side_by_side_are_those_of_each_alone(name):
    """NaN too, where a text has nothing to pool; and no bit changes beside another text."""
    classifier = CLASSIFIERS[name]
    params = random_classifier(classifier)

    @jax.jit
    def logits(params, grid):
        return classifier(params, grid.ids, grid.segment, grid.position, slot_mask(grid))

    found = {}
    grid, _ = grid_of(TEXTS, [[()]] * len(TEXTS), width=14, pad_id=END)
    both = logits(params, grid)
    for row, slot in zip(*np.nonzero(grid.prompt), strict=True):
        text = grid.ids[row][grid.segment[row] == slot + 1]
        single, _ = grid_of([text], [[()]])
        assert single.ids.shape == (1, len(text))
        found[tuple(text.tolist())] = np.asarray(both[row, slot])
        close(both[row, slot], logits(params, single)[0, 0], 2e-5)
    assert found.keys() == set(TEXTS)
    empty = [text for text, scores in found.items() if np.isnan(scores).all()]
    assert empty == ([(2, 4)] if classifier.end is not None else [])
    assert np.isnan(both[grid.prompt == 0]).all()
    mine = grid.segment[0] == 1
    other = np.where(mine, grid.ids[0], (grid.ids[0] + 5) % 38)
    beside = logits(params, grid._replace(ids=np.stack([other, *grid.ids[1:]])))
    np.testing.assert_array_equal(beside[0, 0], both[0, 0])
