"""What the requirements resolve to, by Python, extra of JAX and platform; needs the network."""

import re
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor

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


ENDS = (PYTHONS[0], PYTHONS[-1])
CASES = (
    *(("", python, LINUX) for python in PYTHONS),
    *((extra, python, LINUX) for extra in EXTRAS if extra for python in ENDS),
    *(("", python, platform) for platform in OTHERS for python in ENDS),
)


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


def wanted(extra):
    """The requirements, with an extra of jax."""
    return f"{REQUIREMENTS}\njax[{extra}]\n" if extra else REQUIREMENTS


@pytest.fixture(scope="module")
def results():
    """Case -> the future result of `compiled`: nearly all of the time is the index's."""
    probe = compiled("pip", PYTHONS[0], LINUX)
    if probe.returncode:
        pytest.skip(f"no package index: {probe.stderr.strip().splitlines()[0]}")
    with ThreadPoolExecutor(8) as pool:
        yield {
            (extra, *where): pool.submit(compiled, wanted(extra), *where) for extra, *where in CASES
        }


@pytest.fixture
def packages(results, extra, python, platform):
    """Name -> the locked package."""
    result = results[extra, python, platform].result()
    assert result.returncode == 0, result.stderr
    return {package["name"]: package for package in tomllib.loads(result.stdout)["packages"]}


@pytest.mark.parametrize(("extra", "python", "platform"), CASES)
def test_the_requirements_resolve_to_wheels(packages, extra):
    assert packages["jax"]["version"] in JAX.specifier
    assert EXTRAS[extra] is None or EXTRAS[extra] in packages
    assert {name for name, package in packages.items() if "wheels" not in package} <= BUILT
