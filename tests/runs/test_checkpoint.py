"""Checkpoints: every bit comes back, only the latest and the best stay, half a save is none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alol_jax.devices.sharding import make_mesh, place_like_params, place_params
from alol_jax.runs.checkpoint import Checkpoints, load_params, save_params
from alol_jax.training.fit import init_state

RECORD = {"seen": [[0, "reward", 0.1], [2, "reward", 1 / 3]]}


def _params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "layers/q_proj/kernel": jnp.float32(rng.normal(size=(2, 8, 4))),
        "layers/q_proj/lora_a": jnp.asarray(rng.normal(size=(2, 8, 2)), jnp.bfloat16),
        "query": jnp.float32([np.inf, -0.0, np.nan, 1e-42]),
    }


def _state(seed=0):
    return init_state(_params(seed), optax.adam(0.1))


def _bits(tree):
    return [(a.dtype, a.shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(tree)]


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    yield made
    made.close()


def test_parameters_come_back_bit_by_bit(tmp_path):
    params = _params()
    save_params(tmp_path / "params", params)
    loaded = load_params(tmp_path / "params")
    assert loaded.keys() == params.keys()
    assert _bits(loaded) == _bits(params)


def test_parameters_spread_over_devices_come_back_on_the_host(tmp_path):
    params = _params()
    save_params(tmp_path / "params", place_params(params, make_mesh(data=2, fsdp=2, tensor=2)))
    loaded = load_params(tmp_path / "params")
    assert _bits(loaded) == _bits(params)
    assert {type(leaf) for leaf in loaded.values()} == {np.ndarray}


def test_saving_over_something_is_refused(tmp_path):
    save_params(tmp_path / "params", _params())
    with pytest.raises(ValueError, match="exists"):
        save_params(tmp_path / "params", _params(1))


def test_a_state_comes_back_with_its_record_and_layout(checkpoints):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    state = place_like_params(_state(), mesh)
    checkpoints.save(3, state, RECORD, best=3)
    restored, record = checkpoints.restore(3, place_like_params(_state(1), mesh))
    assert _bits(restored) == _bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert record == RECORD
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert ours.sharding == theirs.sharding


def test_only_the_latest_and_the_best_stay(tmp_path, checkpoints):
    kept = []
    for step, best in ((0, 0), (2, 2), (3, 2), (5, 2), (6, 6), (8, 6)):
        checkpoints.save(step, _state(step), {"step": step}, best=best)
        checkpoints.wait()
        kept.append({int(p.name) for p in (tmp_path / "checkpoints").iterdir()})
    assert kept == [{0}, {2}, {2, 3}, {2, 5}, {6}, {6, 8}]
    assert checkpoints.latest() == 8
    restored, record = checkpoints.restore(6, _state())
    assert record == {"step": 6} and _bits(restored) == _bits(_state(6))


def test_a_state_that_is_donated_while_it_is_written_was_saved_as_it_was(checkpoints):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    for number in range(4):
        state, expected = _state(number), _bits(_state(number))
        checkpoints.save(number, state, {}, best=number)
        jax.block_until_ready(step(state))
        assert _bits(checkpoints.restore(number, _state(9))[0]) == expected


def test_an_older_checkpoint_stays_until_the_newer_one_is_complete(tmp_path, checkpoints):
    checkpoints.save(1, _state(1), {}, best=1)
    checkpoints.save(2, _state(2), {}, best=2)
    assert (tmp_path / "checkpoints" / "1").is_dir()
    checkpoints.wait()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_new_folder_has_no_latest_step(checkpoints):
    assert checkpoints.latest() is None


def test_saving_a_step_again_keeps_the_first(checkpoints):
    checkpoints.save(2, _state(0), {}, best=2)
    checkpoints.save(2, _state(1), {}, best=2)
    assert _bits(checkpoints.restore(2, _state(2))[0]) == _bits(_state(0))


def test_half_a_save_is_no_checkpoint_and_is_cleared_away(tmp_path):
    folder = tmp_path / "checkpoints"
    first = Checkpoints(folder)
    first.save(2, _state(), {"step": 2}, best=2)
    first.close()
    # What a kill leaves in the middle of a save: the folder before it got its final name.
    half = folder / "4.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    (half / "state" / "d").write_bytes(b"half")
    second = Checkpoints(folder)
    assert second.latest() == 2
    assert _bits(second.restore(2, _state(1))[0]) == _bits(_state())
    assert not half.exists()
    second.save(4, _state(4), {"step": 4}, best=2)
    assert second.latest() == 4
    second.close()
