"""One frozen pass over rows: order, padding, and what the value of a prompt may depend on."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from alol_jax.models.heads import ValueHead
from alol_jax.objectives.logprobs import logits_of
from alol_jax.text.packing import to_grid
from alol_jax.training.annotate import annotate, annotator, divergence
from alol_jax.types import Watch
from tests.models.small_models import close, hidden_of
from tests.packed import grid_of
from tests.tiny_run import annotated, annotated_rows, mesh_of, tiny_lm

SIZES = ((3, 2), (30, 20), (16, 8), (5, 5), (1, 1), (17, 3))
ROWS = annotated_rows(annotated(n, prompt=p, response=r) for n, (p, r) in enumerate(SIZES))
NARROW = (0, 2)  # short rows, where two are enough
WATCH = Watch("rows")
HEAD = ValueHead(width=64, max_value=2.0)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def trained(lm):
    """Adapters that matter."""
    draw = np.random.default_rng(0)
    fresh = lm.trainable(jax.random.key(0))
    return {path: np.float32(draw.normal(0, 0.3, leaf.shape)) for path, leaf in fresh.items()}


@pytest.fixture(scope="module")
def value_params():
    """A head whose last layer is not zero."""
    fresh = HEAD.init(jax.random.key(0), 1.0)
    return fresh | {"summary/kernel": 0.3 * jax.random.normal(jax.random.key(1), (64, 1))}


@pytest.fixture(scope="module")
def found(lm, trained, value_params):
    return annotate(lm, trained, ROWS, value=(HEAD, value_params), watch=WATCH)


def test_every_row_is_annotated_as_it_would_be_alone_without_padding(
    lm, trained, value_params, found
):
    params = {**lm.frozen(), **trained}
    for row, logp, value in list(zip(ROWS, *found, strict=True))[::2]:
        ids = np.array([row.prompt + row.response])
        hidden = hidden_of(lm.transformer)(params, ids, np.ones(ids.shape))
        every = jax.nn.log_softmax(logits_of(hidden[0], lm.transformer.unembedding(params)))
        places = len(row.prompt) - 1 + np.arange(len(row.response))
        close(logp, every[places, np.array(row.response)])
        prompt = hidden[:, : len(row.prompt)]
        close(value, HEAD(value_params, prompt, jnp.ones(prompt.shape[:2]))[0])


@pytest.mark.parametrize(("width", "rows"), [(56, 1), (128, 2)])
def test_nothing_depends_on_the_grids(lm, trained, value_params, found, width, rows):
    other, said = tiny_lm(width=width, rows=rows), []
    watch = WATCH._replace(say=said.append)
    logps, values = annotate(other, trained, ROWS, value=(HEAD, value_params), watch=watch)
    assert re.fullmatch(r"rows: \d\d% of the computed tokens are real", said[-1])
    for row, logp in enumerate(logps):
        close(logp, found[0][row])
    close(values, found[1])
    fresh = lm.trainable(jax.random.key(0))
    nats = divergence(other, trained, fresh, ROWS, watch=WATCH)
    assert (nats > 0.01).all()
    close(nats, divergence(lm, trained, fresh, ROWS, watch=WATCH), 1e-4)
    np.testing.assert_array_equal(divergence(other, fresh, fresh, ROWS, watch=WATCH), 0.0)


def test_rows_come_back_in_the_order_in_which_they_were_given(lm, trained, value_params, found):
    order = [4, 0, 3, 5, 1, 2]
    logps, values = annotate(
        lm,
        trained,
        ROWS.take(order),
        value=(HEAD, value_params),
        watch=WATCH,
    )
    assert [len(logp) for logp in logps] == [SIZES[n][1] for n in order]
    for place, n in enumerate(order):
        close(logps[place], found[0][n])
    close(values, found[1][order])
    assert len(np.unique(values.round(4))) == len(ROWS)


def test_the_value_of_a_prompt_does_not_depend_on_the_response(lm, trained, value_params, found):
    others = annotated_rows(
        dataclasses.replace(row, response=tuple((id + 7) % 256 for id in row.response[::-1]))
        for row in ROWS
    )
    logps, values = annotate(lm, trained, others, value=(HEAD, value_params), watch=WATCH)
    np.testing.assert_array_equal(values, found[1])
    assert not np.allclose(logps[1], found[0][1])


def test_a_longer_response_in_a_wider_grid_leaves_the_value_alone(lm, trained, value_params, found):
    longer = annotated_rows([dataclasses.replace(ROWS[0], response=ROWS[1].response)])
    _, values = annotate(lm, trained, longer, value=(HEAD, value_params), watch=WATCH)
    close(values, found[1][:1])


def narrow_rows():
    return ROWS.take(NARROW)


def test_without_a_head_the_values_are_zero_and_the_log_probabilities_the_same(lm, trained, found):
    logps, values = annotate(lm, trained, narrow_rows(), watch=WATCH)
    np.testing.assert_array_equal(values, [0.0, 0.0])
    for n, logp in zip(NARROW, logps, strict=True):
        close(logp, found[0][n], 1e-6)


def test_values_alone_are_the_same_values(lm, trained, value_params, found):
    asked = {"value": (HEAD, value_params), "watch": WATCH}
    logps, values = annotate(lm, trained, narrow_rows(), logp=False, **asked)
    close(values, found[1][list(NARROW)])
    assert [logp.shape for logp in logps] == [(0,), (0,)]


@pytest.mark.parametrize("logp", [True, False])
def test_values_alone_need_no_vocabulary(lm, value_params, logp):
    params = {**lm.frozen(), **lm.trainable(jax.random.key(0))}
    rows = narrow_rows()
    grid, _ = grid_of([row.prompt for row in rows], [[row.response] for row in rows])
    step = annotator(lm.transformer, HEAD, lm.logprob_chunk, logp)
    shapes = list(shapes_of(jax.make_jaxpr(step)(params, value_params, grid).jaxpr))
    size = lm.transformer.config.vocab_size
    assert any(size in shape for shape in shapes) == logp


def test_values_alone_read_the_prompts_alone(lm, trained, value_params, monkeypatch):
    seen = []

    def lay_out(*given):
        grid = to_grid(*given)
        seen.append(int((grid.segment > 0).sum()))
        return grid

    monkeypatch.setattr("alol_jax.training.annotate.to_grid", lay_out)
    asked = {"value": (HEAD, value_params), "watch": WATCH}
    annotate(lm, trained, ROWS, logp=False, **asked)
    assert sum(seen) == sum(p for p, _ in SIZES)
    seen.clear()
    annotate(lm, trained, ROWS, **asked)
    assert sum(seen) == sum(p + r for p, r in SIZES)


def shapes_of(jaxpr):
    """The shapes of all that the operations of a jaxpr make, at any depth."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_of(inner)


def test_eight_devices_say_what_one_says(trained, value_params, found):
    lm = tiny_lm(mesh=mesh_of(8, fsdp=2, tensor=2))
    asked = {"value": (HEAD, value_params), "watch": WATCH}
    logps, values = annotate(lm, trained, narrow_rows(), **asked)
    close(values, found[1][list(NARROW)])
    for n, logp in zip(NARROW, logps, strict=True):
        close(logp, found[0][n])


def test_full_fine_tuning_annotates_with_the_trained_weights_alone(lm, value_params):
    full, rows = tiny_lm(rank=0), narrow_rows()
    asked = {"value": (HEAD, value_params), "watch": WATCH}
    weights = full.trainable(jax.random.key(0))
    logps, values = annotate(full, weights, rows, **asked)
    fresh_logps, fresh_values = annotate(lm, lm.trainable(jax.random.key(5)), rows, **asked)
    close(values, fresh_values)
    for one, other in zip(logps, fresh_logps, strict=True):
        close(one, other)
    moved = {path: 1.5 * leaf for path, leaf in weights.items()}
    assert not np.allclose(annotate(full, moved, rows, **asked)[0][1], logps[1], atol=1e-3)


def test_no_rows_give_no_annotations(lm, trained):
    logps, values = annotate(lm, trained, ROWS[:0], watch=WATCH)
    assert len(logps) == 0 and values.shape == (0,)
