"""Settings of every test: 8 virtual CPU devices, no silent rank promotion, quick compilation."""

import gc
import itertools
import os
from importlib.util import find_spec

from tests.running import environment

os.environ.update(environment(devices=8))  # before jax is imported

import jax  # noqa: E402
import pytest  # noqa: E402

from alol_jax.paths import path_of  # noqa: E402
from tests import bucket as bucket_stand_in  # noqa: E402

gc.set_threshold(50_000, 20, 20)  # tracing makes many objects; a tenth of the time was their count
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)

PLACES = itertools.count()  # folders in the bucket, one for each test
NEEDS = {"parity": ("torch", "accelerate", "peft"), "lm_eval": ("lm_eval",), "tpu": ("libtpu",)}


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """The programs that a module compiled; dropped after it, as Linux maps 65,530 areas at most."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def bucket_server():
    """The bucket that all tests share; `bucket` gives each its own place in it."""
    with bucket_stand_in.serve() as faults:
        yield faults


@pytest.fixture
def faults(bucket_server):
    """What goes wrong in the bucket; nothing before and after the test."""
    bucket_server.clear()
    yield bucket_server
    bucket_server.clear()


@pytest.fixture
def bucket(faults, request, tmp_path, monkeypatch):
    """A folder in a bucket, with an empty cache of local copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path_of(f"gs://{bucket_stand_in.NAME}/{next(PLACES)}")


def pytest_collection_modifyitems(items):
    """Tests with a mark of NEEDS are skipped where what they need is not installed."""
    for mark, names in NEEDS.items():
        absent = [name for name in names if find_spec(name) is None]
        skip = pytest.mark.skip(reason=f"{' and '.join(absent)} not installed")
        for item in items:
            if absent and mark in item.keywords:
                item.add_marker(skip)
