"""What the requirements resolve to, by Python, extra of JAX and platform; needs the network."""

import functools
import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from uv import find_uv_bin

from tests.running import ROOT

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = {"": None, "tpu": "libtpu", "cuda12": "jax-cuda12-plugin", "cuda13": "jax-cuda13-plugin"}
"""Extra of jax -> the package that it brings."""
LINUX, OTHERS = "x86_64-manylinux_2_31", ("aarch64-manylinux_2_28", "aarch64-apple-darwin")
BUILT = {"promise"}  # no wheels; pure Python, so that it needs no compiler
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
JAX = Requirement(re.search(r"^jax>=.*", REQUIREMENTS, re.MULTILINE)[0])

pytestmark = pytest.mark.network


def compiled(requirements, python, platform):
    """The result of `uv pip compile`."""
    program = [find_uv_bin(), "pip", "compile", "--quiet", "--format=pylock.toml"]
    return subprocess.run(
        [*program, f"--python-version={python}", f"--python-platform={platform}", "-"],
        input=requirements,
        capture_output=True,
        text=True,
        timeout=300,
    )


@functools.cache
def index_error():
    """Why no package index can be reached; "" if one can."""
    result = compiled("pip", PYTHONS[0], LINUX)
    return "" if result.returncode == 0 else result.stderr.strip().splitlines()[0]


def resolved(extra, python, platform=LINUX):
    """Name -> the locked package."""
    if index_error():
        pytest.skip(f"no package index: {index_error()}")
    wanted = f"{REQUIREMENTS}\njax[{extra}]\n" if extra else REQUIREMENTS
    result = compiled(wanted, python, platform)
    assert result.returncode == 0, result.stderr
    return {package["name"]: package for package in tomllib.loads(result.stdout)["packages"]}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_the_requirements_resolve_with_each_extra_of_jax(extra, python):
    packages = resolved(extra, python)
    assert packages["jax"]["version"] in JAX.specifier
    assert EXTRAS[extra] is None or EXTRAS[extra] in packages
    assert {name for name, package in packages.items() if "wheels" not in package} <= BUILT


@pytest.mark.parametrize("python", (PYTHONS[0], PYTHONS[-1]))
@pytest.mark.parametrize("platform", OTHERS)
def test_they_resolve_to_wheels_on_other_platforms(platform, python):
    packages = resolved("", python, platform)
    assert {name for name, package in packages.items() if "wheels" not in package} <= BUILT
