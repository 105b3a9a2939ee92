"""Fitting the tiny Llama on steps of several grids: what trains, resuming, devices, programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.devices.sharding import make_mesh, place_like_params
from alol_jax.errors import Interrupted
from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.training.batches import read_ahead, shuffled
from alol_jax.training.fit import (
    Look,
    Plan,
    Validator,
    fit,
    fit_best,
    init_state,
    make_update,
    policy_forward,
)
from alol_jax.training.grids import packer_of
from alol_jax.training.items import single_items
from alol_jax.training.optim import make_optimizer
from configs import common
from tests.tiny_run import annotated, annotated_rows, context, mesh_of, tiny_lm

KEY = jax.random.key(7)


def _llama(mesh, *, rank=2, dropout=0.0, name="a_lol", width=64):
    """(state, frozen, update, batches) of an objective on rows that all differ."""
    lm = tiny_lm(mesh=mesh, rank=rank, dropout=dropout, width=width, rows=4)
    tx = make_optimizer(common.optimizer(3e-3), steps=10)
    state = place_like_params(init_state(lm.trainable(KEY), tx), mesh)
    hyper = {"clip": 0.9} if name in ("a_lol", "a_lol_seq") else {}
    forward = policy_forward(lm.transformer, chunk=128, branches=False)
    loss = functools.partial(OBJECTIVES[name].loss, **hyper)
    update = make_update(forward, loss, tx, KEY, state)
    lengths = [(2 + 5 * n % 29, 1 + 3 * n % 23) for n in range(16)]
    items = single_items(
        annotated_rows(annotated(n, prompt=p, response=r) for n, (p, r) in enumerate(lengths))
    )
    order = shuffled(np.ones(16, bool), size=11, seed=0)
    return (
        state,
        lm.frozen(),
        update,
        read_ahead(items, order, packer_of(lm, items, order), lm.mesh),
    )


def _five_losses(mesh, **options):
    state, frozen, update, batches = _llama(mesh, **options)
    before = jax.device_get(frozen)
    steps, losses = list(batches(0, 5)), []
    for _, reached, metrics in fit(state, frozen, steps, update):
        losses.append(float(metrics["loss"]))
        state = reached
    assert min(len(batch.grids) for batch in steps) > 1
    sizes = {grid.ids.shape for batch in steps for grid in batch.grids}
    assert update._cache_size() == len(sizes) == 2  # a whole grid and a half one, once each
    return np.array(losses), jax.device_get(state.trained), before, jax.device_get(frozen)


@pytest.fixture(scope="module")
def on_one_device():
    return _five_losses(mesh_of(1))


def test_a_lol_trains_the_adapters_and_leaves_the_base_alone(on_one_device):
    losses, trained, before, after = on_one_device
    assert losses[-1] < losses[0] - 0.01
    assert all(np.abs(leaf).max() > 0 for leaf in trained.values())
    assert before.keys() == after.keys() and not before.keys() & trained.keys()
    for path, leaf in before.items():
        np.testing.assert_array_equal(after[path], leaf)


def test_eight_devices_give_the_losses_of_one(on_one_device):
    losses, trained, *_ = _five_losses(make_mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
    for path, leaf in trained.items():
        np.testing.assert_allclose(leaf, on_one_device[1][path], atol=2e-4)


def test_full_training_on_eight_devices_gives_the_losses_of_one():
    one, *_ = _five_losses(mesh_of(1), rank=0, name="nll")
    eight, *_ = _five_losses(make_mesh(data=2, fsdp=2, tensor=2), rank=0, name="nll")
    assert one[-1] < one[0] - 0.01
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_adapter_dropout_changes_the_losses(on_one_device):
    dropped, *_ = _five_losses(mesh_of(1), dropout=0.5)
    assert dropped[0] == pytest.approx(on_one_device[0][0], rel=1e-6)  # B starts at zero
    assert np.abs(dropped[2:] - on_one_device[0][2:]).max() > 1e-4


def _fit(folder, *, stop_at=None):
    """`fit_best` of four steps with dropout; what is validated is the size of the adapters."""
    state, frozen, update, batches = _llama(mesh_of(1), dropout=0.1)
    reached = []

    def counted(start, stop):
        for step, batch in enumerate(batches(start, stop), start + 1):
            reached.append(step)
            yield batch

    return fit_best(
        state,
        frozen,
        counted,
        update,
        Plan(4, frozenset({2, 4}), 100),
        Validator("size", lambda trained: Look(sum(jnp.abs(x).sum() for x in trained.values()))),
        context(folder, stopping=lambda: reached[-1:] == [stop_at]),
        label="fit",
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return _fit(folder), (folder / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_resumed_fit_is_the_undisturbed_fit_bit_by_bit(tmp_path, undisturbed, stop_at):
    whole, log = undisturbed
    with pytest.raises(Interrupted, match=f"saved at step {stop_at} of 4"):
        _fit(tmp_path, stop_at=stop_at)
    parts = _fit(tmp_path)
    assert whole.step == 4 and whole.trained.keys() == parts.trained.keys()
    for path, leaf in whole.trained.items():
        np.testing.assert_array_equal(parts.trained[path], leaf)
    assert (parts.validations, parts.curves) == (whole.validations, whole.curves)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == log


def _products(name):
    """How many matrix products the lowered pass over a grid has."""
    state, frozen, update, batches = _llama(mesh_of(1), name=name)
    grids, targets, _ = next(iter(batches(0, 1)))
    given = (state.trained, frozen, grids[0], targets)
    lowered = update.add.lower(update.zeros(*given), *given, state.step, jnp.int32(0))
    return lowered.as_text().count("stablehlo.dot_general")


def test_an_a_lol_step_multiplies_as_many_matrices_as_an_nll_step():
    nll = _products("nll")
    assert nll > 2 * 7  # forward and backward of seven projections at least
    assert {name: _products(name) for name in ("a_lol", "a_lol_seq")} == {
        "a_lol": nll,
        "a_lol_seq": nll,
    }
