"""Settings of every test: 8 virtual CPU devices, no silent rank promotion, quick compilation."""

import gc
import os
from importlib.util import find_spec

from tests.running import environment

os.environ.update(environment(devices=8))  # before jax is imported

import jax  # noqa: E402
import pytest  # noqa: E402

gc.set_threshold(50_000, 20, 20)  # tracing makes many objects; a tenth of the time was their count
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)

NEEDS = {"parity": ("torch", "accelerate", "peft"), "tpu": ("libtpu",)}


def pytest_collection_modifyitems(items):
    """Tests with a mark of NEEDS are skipped where what they need is not installed."""
    for mark, names in NEEDS.items():
        absent = [name for name in names if find_spec(name) is None]
        skip = pytest.mark.skip(reason=f"{' and '.join(absent)} not installed")
        for item in items:
            if absent and mark in item.keywords:
                item.add_marker(skip)
