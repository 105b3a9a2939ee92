"""Settings of every test: 8 virtual CPU devices, no silent rank promotion, little optimisation.

Compiling is most of what these tests cost, so the compiler is told not to try hard.
"""

import os
from importlib.util import find_spec

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)


@pytest.fixture(scope="module")
def quick_compiles():
    """Compile without much optimisation: half the time, for tests whose arrays are tiny."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


NEEDS = {"parity": ("torch", "accelerate", "peft"), "tpu": ("libtpu",)}


def pytest_collection_modifyitems(items):
    """Tests with a mark of NEEDS are skipped where what they need is not installed."""
    for mark, names in NEEDS.items():
        absent = [name for name in names if find_spec(name) is None]
        skip = pytest.mark.skip(reason=f"{' and '.join(absent)} not installed")
        for item in items:
            if absent and mark in item.keywords:
                item.add_marker(skip)
