"""Reading a checkpoint never holds it twice: measured in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.load_memory import write
from tests.running import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_the_peak_is_the_parameters_and_a_few_tensors(quantisation, tmp_path):
    write(tmp_path, 1.0)
    arguments = [f"--read={tmp_path}", f"--quantisation={quantisation}"]
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_memory", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = json.loads(said)
    stored = 1.0e9 / 2**20
    assert (found["parameters"] > 0.9 * stored) == (quantisation == "none")
    # Compiling the writers takes about 150 MiB, whatever the size of the checkpoint.
    assert found["peak"] < found["parameters"] + 4 * found["largest tensor"] + 200
    if quantisation == "none":
        assert found["peak"] < 1.7 * found["parameters"]
