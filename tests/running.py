"""Runs the program as its users do: a process, a config, a workdir."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEBUG = "configs/quickstart.py:debug"
SMALL = (  # fewer rows than :debug, enough for every stage
    "--config.task.limit=20",
    "--config.task.validation=8",
    "--config.task.test=8",
    "--config.decode.max_new_tokens=4",
    "--config.model.lora.rank=2",
    "--config.model.lora.dropout=0.1",
)


def command(workdir: Path, *arguments: str, config: str = DEBUG) -> list[str]:
    """The command line of a run."""
    program = [sys.executable, "-m", "alol_jax.main"]
    return [*program, f"--config={config}", f"--workdir={workdir}", *arguments]


def environment(cache: Path) -> dict[str, str]:
    """One CPU device, and compiled programs kept in ``cache`` from run to run."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return plain | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HF_HUB_OFFLINE": "1",
    }


def run(
    workdir: Path, cache: Path, *arguments: str, config: str = DEBUG
) -> subprocess.CompletedProcess:
    """Runs to the end and returns what it printed."""
    return subprocess.run(
        command(workdir, *arguments, config=config),
        cwd=ROOT,
        env=environment(cache),
        capture_output=True,
        text=True,
        timeout=600,
    )
