"""The training loop: accumulation, randomness, donation, resuming, the best step, devices."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from alol_jax.devices.sharding import make_mesh, place_like_params
from alol_jax.errors import Interrupted
from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.training.batches import read_ahead, shuffled, single_items
from alol_jax.training.fit import (
    Plan,
    Validator,
    best,
    fit,
    fit_best,
    init_state,
    make_update,
    plan_epochs,
    policy_loss,
)
from alol_jax.training.metrics import MetricLog
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Validation
from configs import common
from tests.tiny_run import annotated, annotated_rows, context, mesh_of, tiny_lm

KEY = jax.random.key(7)
SHAPE = ((8, 6),)


# a regression: no language model


def _regression(trained, frozen, batch, key):
    """Weighted squared error; its denominator is the sum of the weights."""
    x, y, weight = batch
    error = x @ (frozen["scale"] * trained["layers/q_proj/kernel"])[0] - y
    total = jnp.sum(weight)
    loss = jnp.sum(weight * jnp.sum(error**2, axis=-1)) / total
    return loss, (total, {"loss": loss})


def _noisy(trained, frozen, batch, key):
    """The gradient is a draw from the key."""
    noise = jax.random.normal(key, trained["layers/q_proj/kernel"].shape)
    return jnp.sum(noise * trained["layers/q_proj/kernel"]), (jnp.float32(1), {})


def _rows(count, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(count, 4)), rng.normal(size=(count, 3))
    return tuple(np.float32(a) for a in (x, y, rng.uniform(0.1, 5.0, size=count)))


def _start(tx):
    kernel = jax.random.normal(KEY, (1, 4, 3))
    return place_like_params(init_state({"layers/q_proj/kernel": kernel}, tx), mesh_of(1))


FROZEN = {"scale": jnp.full((1, 1, 1), 2.0)}


def _micro(rows, accumulate):
    return jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), rows)


def _losses(accumulate, rows, steps=4):
    tx = optax.adam(0.1)
    state = _start(tx)
    update = make_update(_regression, tx, KEY, state)
    losses = []
    for _, reached, metrics in fit(state, FROZEN, [_micro(rows, accumulate)] * steps, update):
        state = reached
        losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(losses), jax.device_get(state.trained)


@pytest.mark.parametrize("weights", ["equal", "different"])
def test_four_micro_batches_of_two_rows_are_one_batch_of_eight(weights):
    x, y, weight = _rows(8)
    if weights == "equal":
        weight = np.ones_like(weight)
    whole, trained_whole = _losses(1, (x, y, weight))
    parts, trained_parts = _losses(4, (x, y, weight))
    assert whole[-1, 0] < whole[0, 0]
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        trained_parts["layers/q_proj/kernel"], trained_whole["layers/q_proj/kernel"], atol=1e-6
    )


def test_randomness_differs_by_step_and_by_micro_batch():
    tx = optax.sgd(1.0)
    seen = []
    for accumulate in (1, 2):  # the mean of the micro-batches' draws is what moves the kernel
        state = _start(tx)
        before = np.asarray(state.trained["layers/q_proj/kernel"])
        update = make_update(_noisy, tx, KEY, state)
        rows = [_micro(_rows(2), accumulate)] * 2
        for _, reached, _ in fit(state, FROZEN, rows, update):
            after = np.asarray(reached.trained["layers/q_proj/kernel"])
            seen.append(before - after)
            before = after
    one_first, one_second, two_first, _ = seen
    second_micro = 2 * two_first - one_first
    draws = [one_first, one_second, second_micro]
    for a in range(3):
        for b in range(a):
            assert np.abs(draws[a] - draws[b]).max() > 0.1


def test_the_state_is_donated_and_what_does_not_train_is_not():
    tx = optax.adam(0.1)
    given = {"layers/q_proj/kernel": jnp.ones((1, 4, 3))}
    state = init_state(given, tx)
    update = make_update(_regression, tx, KEY, state)
    new, _ = update(state, FROZEN, _micro(_rows(2), 1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, FROZEN, given)))
    np.testing.assert_array_equal(FROZEN["scale"], np.full((1, 1, 1), 2.0))


def test_steps_are_counted_on_from_the_state():
    tx = optax.sgd(0.1)
    state = _start(tx)
    state = state._replace(step=jax.device_put(jnp.int32(5), state.step.sharding))
    update = make_update(_regression, tx, KEY, state)
    steps = [(n, int(s.step)) for n, s, _ in fit(state, FROZEN, [_micro(_rows(2), 1)] * 3, update)]
    assert steps == [(6, 6), (7, 7), (8, 8)]


def test_each_batch_shape_compiles_once():
    tx = optax.sgd(0.1)
    state = _start(tx)
    update = make_update(_regression, tx, KEY, state)
    batches = [_micro(_rows(count), 1) for count in (2, 4, 2, 4, 6, 2)]
    assert len(list(fit(state, FROZEN, batches, update))) == 6
    assert update._cache_size() == 3


def test_a_second_compilation_for_a_shape_is_an_error():
    tx = optax.sgd(0.1)
    state = _start(tx)
    update = make_update(_regression, tx, KEY, state)
    x, y, weight = _micro(_rows(2), 1)
    batches = [(x, y, weight), (x, y, weight.astype(np.int32))]  # the same shape, another dtype
    with pytest.raises(RuntimeError, match="2 compilations for 1 shapes"):
        list(fit(state, FROZEN, batches, update))


# plans, and the best step


def test_a_plan_counts_steps_and_spreads_validations_up_to_the_last():
    options = ConfigDict(
        {"epochs": 2.5, "batch_size": 4, "accumulate": 2, "validations": 3, "checkpoint_every": 9}
    )
    assert plan_epochs(options, 30) == Plan(10, frozenset({3, 7, 10}), 9)
    assert plan_epochs(options, 1) == Plan(1, frozenset({1}), 9)
    options.validations = 0
    assert plan_epochs(options, 30).validate_at == {10}


def test_the_first_of_equally_good_validations_is_the_best():
    seen = [Validation(step, "m", score) for step, score in ((0, 1.0), (4, 3.0), (8, 3.0))]
    assert best(seen).step == 4


def _run(folder, scores=None, *, stop_at=(), steps=6, said=None, killed_at=None):
    """`fit_best` of the regression; interrupted after each step of ``stop_at`` and called again."""
    tx = optax.adam(0.05)
    validated = []

    def validate(trained):
        kernel = np.asarray(trained["layers/q_proj/kernel"])
        validated.append(kernel)
        return -float(np.abs(kernel).sum()) if scores is None else scores[len(validated) - 1]

    stops = [*stop_at, None]
    reached = {}
    for stop in stops:

        def batches(start, end, stop=stop):
            for step in range(start, end):
                if step == killed_at:
                    raise MemoryError
                reached["step"] = step + 1
                yield _micro(_rows(4, seed=step), 2)

        state = _start(tx)
        run = functools.partial(
            fit_best,
            state,
            FROZEN,
            batches,
            make_update(_regression, tx, KEY, state),
            Plan(steps, frozenset({2, 4, 6}), 100),
            Validator("smallness", validate),
            context(
                folder,
                said=said,
                stopping=lambda stop=stop: stop is not None and reached["step"] >= stop,
            ),
            label="fit",
        )
        if stop is None:
            return run()
        with pytest.raises(Interrupted, match=f"saved at step {stop} of {steps}"):
            run()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return _run(folder), (folder / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("stop_at", [(2,), (1, 3, 4)])
def test_a_resumed_run_is_the_undisturbed_run_bit_by_bit(tmp_path, undisturbed, stop_at):
    policy, log = undisturbed
    said = []
    resumed = _run(tmp_path, stop_at=stop_at, said=said)
    assert [line for line in said if "resuming" in line] == [
        f"resuming at step {step}/6" for step in stop_at
    ]
    for path, leaf in policy.trained.items():
        np.testing.assert_array_equal(resumed.trained[path], leaf)
    assert resumed.validations == policy.validations
    assert (resumed.step, resumed.curves) == (policy.step, policy.curves)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == log
    assert [json.loads(line)["step"] for line in log.splitlines()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("killed_at", [1, 5])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, undisturbed, killed_at):
    policy, log = undisturbed
    with pytest.raises(MemoryError):
        _run(tmp_path, killed_at=killed_at)
    said = []
    resumed = _run(tmp_path, said=said)
    assert f"resuming at step {killed_at - 1}/6" in said  # a step before: of the validation there
    for path, leaf in policy.trained.items():
        np.testing.assert_array_equal(resumed.trained[path], leaf)
    assert (resumed.validations, resumed.curves) == (policy.validations, policy.curves)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == log


def test_a_finished_fit_that_is_called_again_trains_no_more(tmp_path):
    first = _run(tmp_path)
    said = []
    again = _run(tmp_path, said=said)
    assert [line.split(":")[0] for line in said] == ["resuming at step 6/6", "step 6/6"]
    np.testing.assert_array_equal(
        again.trained["layers/q_proj/kernel"], first.trained["layers/q_proj/kernel"]
    )
    assert again.curves == first.curves and again.validations == first.validations


def test_the_starting_point_is_kept_if_nothing_beats_it(tmp_path):
    policy = _run(tmp_path, scores=[1.0, 0.5, 1.0, 0.25])
    assert policy.step == 0
    np.testing.assert_array_equal(
        policy.trained["layers/q_proj/kernel"], jax.random.normal(KEY, (1, 4, 3))
    )


@pytest.mark.parametrize(("scores", "step"), [([0.0, 1.0, 3.0, 2.0], 4), ([0.0, 3.0, 1.0, 2.0], 2)])
def test_the_best_of_several_steps_is_returned_and_the_others_are_dropped(tmp_path, scores, step):
    policy = _run(tmp_path, scores=scores, stop_at=(3,))
    assert [v.step for v in policy.validations] == [0, 2, 4, 6]
    assert [v.score for v in policy.validations] == scores
    assert policy.step == step
    again = _run(tmp_path / "short", scores=scores[: 1 + step // 2], steps=step)
    np.testing.assert_array_equal(
        policy.trained["layers/q_proj/kernel"], again.trained["layers/q_proj/kernel"]
    )
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {step, 6}


def test_an_interrupted_run_closes_its_logs(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(MetricLog, "close", lambda log: closed.append(log))
    _run(tmp_path, stop_at=(3,))
    assert len(closed) == 2  # the interrupted one and the one that went on


# objectives on the tiny Llama


def _policy_rows(responses: int):
    lengths = [(3 + n % 5, 2 + n % 4) for n in range(8)]
    return annotated_rows(
        annotated(n, prompt=p, response=r, example_id=str(n // responses))
        for n, (p, r) in enumerate(lengths)
    )


def _llama(mesh, *, rank=2, dropout=0.0, name="a_lol"):
    """(state, frozen, update, batches) of an objective on rows that all differ."""
    lm = tiny_lm(mesh=mesh, rank=rank, shapes=SHAPE, dropout=dropout)
    tx = make_optimizer(common.optimizer(3e-3), steps=10)
    state = place_like_params(init_state(lm.trainable(KEY), tx), mesh)
    hyper = {"clip": 0.9} if name in ("a_lol", "a_lol_seq") else {}
    loss = functools.partial(OBJECTIVES[name].loss, **hyper)
    update = make_update(policy_loss(lm.transformer, loss, chunk=64), tx, KEY, state)
    items = single_items(_policy_rows(1), SHAPE)
    order = shuffled(items, np.ones(8, bool), size=8, seed=0, steps=10)
    return state, lm.frozen(), update, read_ahead(items, order, 1, 258, mesh)


def _five_losses(mesh, **options):
    state, frozen, update, batches = _llama(mesh, **options)
    before = jax.device_get(frozen)
    losses = []
    for _, reached, metrics in fit(state, frozen, batches(0, 5), update):
        losses.append(float(metrics["loss"]))
        state = reached
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
    one, *_ = _five_losses(mesh_of(1), rank=0)
    eight, *_ = _five_losses(make_mesh(data=2, fsdp=2, tensor=2), rank=0)
    assert one[-1] < one[0] - 0.01
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_adapter_dropout_changes_the_losses(on_one_device):
    dropped, *_ = _five_losses(mesh_of(1), dropout=0.5)
    assert dropped[0] == pytest.approx(on_one_device[0][0], rel=1e-6)  # B starts at zero
    assert np.abs(dropped[2:] - on_one_device[0][2:]).max() > 1e-4


def _products(name):
    """How many matrix products the lowered update has."""
    state, frozen, update, batches = _llama(mesh_of(1), name=name)
    text = update.lower(state, frozen, next(iter(batches(0, 1)))).as_text()
    return text.count("stablehlo.dot_general")


def test_an_a_lol_step_multiplies_as_many_matrices_as_an_nll_step():
    nll = _products("nll")
    assert nll > 2 * 7  # forward and backward of seven projections at least
    assert {name: _products(name) for name in ("a_lol", "a_lol_seq")} == {
        "a_lol": nll,
        "a_lol_seq": nll,
    }
