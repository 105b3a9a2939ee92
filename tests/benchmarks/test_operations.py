"""benchmarks.operations: where time goes, by XLA operation."""

import jax
import jax.numpy as jnp
import pytest

from alol_jax.devices.sharding import make_mesh
from alol_jax.models.language_model import open_language_model
from benchmarks.operations import decoding, report, traced, training
from configs import quickstart


@pytest.fixture(scope="module")
def opened():
    config = quickstart.get_config("debug")
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return open_language_model(config.model, mesh), config


@pytest.mark.parametrize("load", ["training", "decoding"])
def test_the_operations_of_a_pass_take_no_longer_than_the_cores_have(opened, load):
    lm, config = opened
    name, run = training(lm, config) if load == "training" else decoding(lm, config, 64)
    times = traced(run)
    assert times.whole > 0 and load in name
    assert 0 < sum(times.kinds.values()) < 64 * times.whole
    assert list(times.kinds.values()) == sorted(times.kinds.values(), reverse=True)
    assert not any(kind.startswith("while") for kind in times.kinds)


def test_a_matrix_product_is_found_and_shown():
    x = jnp.ones((512, 512))
    product = jax.jit(lambda x: x @ x)

    def run() -> int:
        jax.block_until_ready(product(x))
        return 1

    times = traced(run)
    (kind, *_) = times.kinds
    text = report("product", times)
    assert text.startswith("| product |") and f"| {kind} |" in text and "| all others | " in text
