"""The training loop: grids, randomness, donation, resuming, the best step."""

import functools
import itertools
import json
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from alol_jax.devices.sharding import place_like_params
from alol_jax.errors import Interrupted
from alol_jax.training.fit import (
    Look,
    Plan,
    Validator,
    _FirstSteps,
    best,
    fit,
    fit_best,
    init_state,
    long_save_warning,
    make_update,
    plan_epochs,
)
from alol_jax.training.metrics import MetricLog
from alol_jax.types import Batch, Pace, Validation, Work, untold
from tests.tiny_run import context, mesh_of

KEY = jax.random.key(7)


# a regression: no language model


class Inputs(NamedTuple):
    """The grid of a regression."""

    x: np.ndarray  # [rows, 4]
    place: np.ndarray  # [rows], in the batch


class Observed(NamedTuple):
    """The targets of a regression."""

    y: np.ndarray  # [B, 3]
    weight: np.ndarray  # [B]


def _regression(trained, frozen, grid, targets, key):
    """Predictions for the rows of the grid, 0 for the others."""
    predicted = grid.x @ (frozen["scale"] * trained["layers/q_proj/kernel"])[0]
    return jnp.zeros_like(targets.y).at[grid.place].add(predicted)


def _squared(predicted, targets):
    """Weighted squared error; its denominator is the sum of the weights."""
    error = jnp.sum((predicted - targets.y) ** 2, axis=-1)
    loss = jnp.sum(targets.weight * error) / jnp.sum(targets.weight)
    return loss, {"loss": loss}


def _noisy(trained, frozen, grid, targets, key):
    """The gradient of its sum is a draw from the key."""
    noise = jax.random.normal(key, trained["layers/q_proj/kernel"].shape)
    return noise * trained["layers/q_proj/kernel"]


def _sum(outputs, targets):
    return jnp.sum(outputs), {}


def _rows(count, grids, seed=0):
    """A batch of so many rows, in so many grids."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(count, 4)), rng.normal(size=(count, 3))
    targets = Observed(np.float32(y), np.float32(rng.uniform(0.1, 5.0, size=count)))
    places = np.array_split(np.arange(count), grids)
    cut = tuple(Inputs(np.float32(x[place]), place) for place in places)
    return Batch(cut, targets, Work(tokens=3 * count, computed=4 * count, flops=0.5))


def _start(tx):
    kernel = jax.random.normal(KEY, (1, 4, 3))
    return place_like_params(init_state({"layers/q_proj/kernel": kernel}, tx), mesh_of(1))


def _update(tx, state, forward=_regression, loss=_squared):
    return make_update(forward, loss, tx, KEY, state)


FROZEN = {"scale": jnp.full((1, 1, 1), 2.0)}


def _losses(batch, steps=4):
    tx = optax.adam(0.1)
    state = _start(tx)
    losses = []
    for _, reached, metrics in fit(state, FROZEN, [batch] * steps, _update(tx, state)):
        state = reached
        losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(losses), jax.device_get(state.trained)


@pytest.mark.parametrize("weights", ["equal", "different"])
def test_four_grids_of_two_rows_are_one_grid_of_eight(weights):
    def batch(grids):
        made = _rows(8, grids)
        weight = np.ones_like(made.targets.weight) if weights == "equal" else made.targets.weight
        return made._replace(targets=made.targets._replace(weight=weight))

    whole, trained_whole = _losses(batch(1))
    parts, trained_parts = _losses(batch(4))
    assert whole[-1, 0] < whole[0, 0]
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        trained_parts["layers/q_proj/kernel"], trained_whole["layers/q_proj/kernel"], atol=1e-6
    )


def test_randomness_differs_by_step_and_by_grid():
    tx = optax.sgd(1.0)
    seen = []
    for grids in (1, 2):  # the sum of the grids' draws is what moves the kernel
        state = _start(tx)
        before = np.asarray(state.trained["layers/q_proj/kernel"])
        update = _update(tx, state, _noisy, _sum)
        for _, reached, _ in fit(state, FROZEN, [_rows(2, grids)] * 2, update):
            after = np.asarray(reached.trained["layers/q_proj/kernel"])
            seen.append(before - after)
            before = after
    one_first, one_second, two_first, _ = seen
    draws = [one_first, one_second, two_first - one_first]
    for a in range(3):
        for b in range(a):
            assert np.abs(draws[a] - draws[b]).max() > 0.1


def test_the_state_is_donated_and_what_does_not_train_is_not():
    tx = optax.adam(0.1)
    given = {"layers/q_proj/kernel": jnp.ones((1, 4, 3))}
    state = init_state(given, tx)
    new, _ = _update(tx, state)(state, FROZEN, _rows(2, 2))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, FROZEN, given)))
    np.testing.assert_array_equal(FROZEN["scale"], np.full((1, 1, 1), 2.0))


def test_steps_are_counted_on_from_the_state():
    tx = optax.sgd(0.1)
    state = _start(tx)
    state = state._replace(step=jax.device_put(jnp.int32(5), state.step.sharding))
    batches = [_rows(2, 1)] * 3
    steps = [(n, int(s.step)) for n, s, _ in fit(state, FROZEN, batches, _update(tx, state))]
    assert steps == [(6, 6), (7, 7), (8, 8)]


def test_each_size_of_a_grid_compiles_once():
    tx = optax.sgd(0.1)
    state = _start(tx)
    update = _update(tx, state)
    batches = [_rows(12, grids, seed) for seed, grids in enumerate((2, 3, 2, 3, 6, 2))]
    assert len(list(fit(state, FROZEN, batches, update))) == 6
    assert update._cache_size() == 3


def test_the_metrics_of_a_step_have_the_work_of_its_batch():
    tx = optax.sgd(0.1)
    state = _start(tx)
    _, metrics = _update(tx, state)(state, FROZEN, _rows(6, 2))
    work = {"tokens": 18, "computed_tokens": 24, "flops": 0.5}
    assert metrics.items() >= work.items() and metrics.keys() - work.keys() == {
        "loss",
        "grad_norm",
    }


# plans, and the best step


def test_a_plan_counts_steps_and_spreads_validations_up_to_the_last():
    options = ConfigDict({"epochs": 2.5, "batch_size": 8, "validations": 3, "checkpoint_every": 9})
    assert plan_epochs(options, 30) == Plan(10, frozenset({3, 7, 10}), 9)
    assert plan_epochs(options, 1) == Plan(1, frozenset({1}), 9)
    options.validations = 0
    assert plan_epochs(options, 30).validate_at == {10}


def test_a_save_that_may_outlast_the_notice_of_a_cloud_is_said_beforehand():
    plan, million = Plan(10, frozenset({10}), 7), np.zeros(1_000_000, np.float32)
    small = {"kernel": np.zeros((4, 4), np.float32)}
    assert long_save_warning([small, *[million] * 249], plan) == ""
    said = long_save_warning([small, *[million] * 300], plan)
    assert said.startswith("a checkpoint has 1.1 GiB, 12 s at 100 MB/s")
    assert said.endswith("loses up to 7 steps (checkpoint_every)")


def test_a_fit_says_so_at_its_start(tmp_path, monkeypatch):
    monkeypatch.setattr("alol_jax.training.fit.SLOW_DISK", 1.0)
    said = []
    _run(tmp_path, said=said)
    assert said[0].startswith("a checkpoint has 0.0 GiB")


def test_the_first_of_equally_good_validations_is_the_best():
    seen = [Validation(step, "m", score) for step, score in ((0, 1.0), (4, 3.0), (8, 3.0))]
    assert best(seen).step == 4


def _run(folder, scores=None, *, stop_at=(), steps=6, said=None, killed_at=None, pace=None):
    """`fit_best` of the regression; interrupted after each step of ``stop_at`` and called again."""
    tx = optax.adam(0.05)
    validated = []

    def validate(trained):
        kernel = np.asarray(trained["layers/q_proj/kernel"])
        validated.append(kernel)
        score = -float(np.abs(kernel).sum()) if scores is None else scores[len(validated) - 1]
        return Look(score, kl=2.0 * len(kernel))

    stops = [*stop_at, None]
    reached = {}
    for stop in stops:

        def batches(start, end, stop=stop):
            for step in range(start, end):
                if step == killed_at:
                    raise MemoryError
                reached["step"] = step + 1
                yield _rows(4, 2, seed=step)

        state = _start(tx)
        run = functools.partial(
            fit_best,
            state,
            FROZEN,
            batches,
            _update(tx, state),
            Plan(steps, frozenset({2, 4, 6}), 100),
            Validator("smallness", validate),
            context(
                folder,
                said=said,
                stopping=lambda stop=stop: stop is not None and reached["step"] >= stop,
            )._replace(pace=untold if pace is None else pace),
            label="fit",
        )
        if stop is None:
            return run()
        with pytest.raises(Interrupted, match=f"saved at step {stop} of {steps}"):
            run()


def test_a_fit_tells_its_pace_once_from_the_shorter_of_two_steps(tmp_path, monkeypatch):
    now = iter(itertools.accumulate([100.0, 30.0, 7.0, 5.0], initial=0.0))
    clock = type("Clock", (), {"monotonic": staticmethod(time.monotonic)})
    monkeypatch.setattr("alol_jax.training.fit.time", clock)
    told = []
    stamps = _FirstSteps(Plan(9, frozenset(), 1), context(tmp_path)._replace(pace=told.append))
    clock.monotonic = lambda: next(now)
    for step in range(1, 6):
        stamps.written(step, {"tokens": 12.0 * step})
    assert told == [Pace(seconds=7.0, tokens=48.0, left=6)]


def test_the_pace_of_a_resumed_fit_counts_the_steps_that_are_left(tmp_path):
    told = []
    _run(tmp_path, stop_at=(1,), pace=told.append)
    (pace,) = told
    assert pace.left == 2 and pace.tokens > 0 and pace.seconds > 0


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
    assert [line.split(":")[0] for line in said] == ["resuming at step 6/6", "step 6/6", "fit"]
    np.testing.assert_array_equal(
        again.trained["layers/q_proj/kernel"], first.trained["layers/q_proj/kernel"]
    )
    assert again.curves == first.curves and again.validations == first.validations
    assert again.cost.tokens == first.cost.tokens


def test_the_cost_is_the_work_of_all_steps_however_often_it_was_interrupted(tmp_path):
    for stop_at in ((), (1, 3)):
        said = []
        cost = _run(tmp_path / str(len(stop_at)), stop_at=stop_at, said=said).cost
        assert (cost.tokens, cost.computed, cost.flops) == (6 * 12, 6 * 16, 6 * 0.5)
        assert cost.real == 12 / 16 and cost.seconds > 0
        assert said[-1] == f"fit: real tokens 75%, {72 / cost.seconds:.0f} real tokens/s"


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
