"""The optimizer: schedules, what decays, and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.training.optim import SCHEDULES, make_optimizer
from configs import common
from tests.tiny_run import tiny_lm

PEAK, STEPS = 0.25, 40


def _options(**changes):
    options = common.optimizer(PEAK)
    options.update({"schedule": "constant"} | changes)
    return options


def _moved(options, params, grads, steps=STEPS):
    """What one update adds to the parameters."""
    tx = make_optimizer(options, steps=steps)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    return updates


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("warmup", [0, 10])
def test_a_schedule_rises_to_its_peak_and_never_above(name, warmup):
    rates = np.array([SCHEDULES[name](PEAK, warmup, STEPS)(step) for step in range(STEPS + 20)])
    np.testing.assert_allclose(rates[:warmup], PEAK / 10 * np.arange(warmup), rtol=1e-6)
    assert rates[warmup] == PEAK == rates.max()
    assert (np.diff(rates[warmup:]) <= 0).all()


@pytest.mark.parametrize(
    ("name", "middle", "end"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_a_schedule_ends_where_the_run_ends(name, middle, end):
    schedule = SCHEDULES[name](PEAK, 10, STEPS)
    assert schedule(25) == pytest.approx(PEAK * middle, rel=1e-5)
    assert schedule(STEPS) == pytest.approx(PEAK * end, abs=1e-7)
    assert schedule(STEPS + 5) == pytest.approx(PEAK * end, abs=1e-7)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_warm_up_as_long_as_the_run_is_finite(name):
    rates = [float(SCHEDULES[name](PEAK, STEPS, STEPS)(step)) for step in range(STEPS + 1)]
    assert np.isfinite(rates).all() and max(rates) <= PEAK


def test_the_first_step_has_the_size_of_the_learning_rate():
    grads = {"layers/q_proj/kernel": jnp.array([[0.3, -2.0]])}
    moved = _moved(_options(), jax.tree.map(jnp.ones_like, grads), grads)
    np.testing.assert_allclose(moved["layers/q_proj/kernel"], [[-PEAK, PEAK]], rtol=1e-5)


def test_weight_decay_falls_on_matrices_not_on_norms_biases_and_queries():
    lm = tiny_lm()
    paths = [*lm.base, *lm.trainable(jax.random.key(0))]
    paths += ["query", "q_proj/bias", "summary/kernel"]  # the value head's
    params = {path: jnp.full((2, 2), 4.0) for path in paths}
    still = {path: jnp.zeros((2, 2)) for path in paths}
    moved = _moved(_options(weight_decay=0.5), params, still)
    decayed = {path for path, update in moved.items() if np.any(update)}
    assert decayed == {p for p in paths if p.endswith(("kernel", "embedding", "lora_a", "lora_b"))}
    np.testing.assert_allclose(moved["summary/kernel"], np.full((2, 2), -PEAK * 0.5 * 4.0))
    assert not any(np.any(u) for u in _moved(_options(), params, still).values())


def test_clipping_scales_the_whole_gradient_to_its_largest_norm():
    grads = {"a/kernel": jnp.array([3.0, 0.0]), "b/kernel": jnp.array([0.0, 4.0])}  # norm 5
    params = jax.tree.map(jnp.zeros_like, grads)
    large = {"epsilon": 1.0, "b1": 0.0}  # update = −rate · g / (|g| + 1), so that scale shows
    clipped = _moved(_options(max_grad_norm=1.0, **large), params, grads)
    same = _moved(
        _options(max_grad_norm=0.0, **large), params, jax.tree.map(lambda g: g / 5, grads)
    )
    free = _moved(_options(max_grad_norm=0.0, **large), params, grads)
    loose = _moved(_options(max_grad_norm=5.1, **large), params, grads)
    for path in grads:
        np.testing.assert_allclose(clipped[path], same[path], rtol=1e-5)
        np.testing.assert_allclose(loose[path], free[path], rtol=1e-6)
    assert float(free["a/kernel"][0]) < 1.5 * float(clipped["a/kernel"][0])  # both are negative


def test_an_unknown_schedule_names_the_ones_there_are():
    with pytest.raises(UserError, match="no schedule 'cosin': did you mean 'cosine'"):
        make_optimizer(_options(schedule="cosin"), steps=1)
