"""Runs the program as its users do: a process, a config, a workdir. Or within this process."""

import contextlib
import functools
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from unittest import mock

from packaging.version import Version

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
# They take longer to compile than all the rest; from jaxlib 0.11.2 on they cannot be switched off.
HAS_SWITCH = Version(version("jaxlib")) < Version("0.11.2")
NO_EMITTERS = ("--xla_cpu_use_fusion_emitters=false",) if HAS_SWITCH else ()


def command(workdir: Path, *arguments: str, config: str = DEBUG) -> list[str]:
    """The command line of a run."""
    program = [sys.executable, "-m", "alol_jax.main"]
    return [*program, f"--config={config}", f"--workdir={workdir}", *arguments]


def limited(words: list[str], *, kilobytes: int) -> list[str]:
    """The command line with a disk that is full: no file that it writes can be larger."""
    return ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "limited", *words]


def environment(*, devices: int = 1) -> dict[str, str]:
    """Virtual CPU devices; quick compilation, for compiling is most of what the tests cost; and
    what one process has compiled, the others read, those of a later run too."""
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *NO_EMITTERS,
        "--xla_cpu_parallel_codegen_split_count=1",  # no threads for programs this small
    )
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
    return os.environ | {
        "XLA_FLAGS": " ".join(flags),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": kept,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HF_HUB_OFFLINE": "1",
    }


def run(
    workdir: Path, *arguments: str, config: str = DEBUG, **variables: str
) -> subprocess.CompletedProcess:
    """Runs to the end and returns what it printed; with other environment variables."""
    return subprocess.run(
        command(workdir, *arguments, config=config),
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_here(
    workdir: Path, *arguments: str, config: str = DEBUG, devices: int = 1
) -> subprocess.CompletedProcess:
    """`run` without a process of its own, whose start takes seconds; on the first devices."""
    from alol_jax import main

    words = command(workdir, *arguments, config=config)[2:]
    return called(lambda: main.entry(main.main), words, devices=devices)


def called(
    program: Callable[[], None], words: list[str], *, devices: int = 1
) -> subprocess.CompletedProcess:
    """What a program prints in this process, with this command line, and how it ends."""
    import jax
    from absl.testing import flagsaver

    from alol_jax.devices.sharding import make_mesh

    make = functools.partial(make_mesh, devices=jax.devices()[:devices])
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", words),
        mock.patch("alol_jax.main.make_mesh", make),
        mock.patch("alol_jax.main.stop_on_signals", return_value=lambda: False),
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),  # ml_collections'
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            program()
        except SystemExit as ended:
            code = ended.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def refused(result: subprocess.CompletedProcess) -> str:
    """The one line that a refused run prints on stderr."""
    lines = result.stderr.splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]
