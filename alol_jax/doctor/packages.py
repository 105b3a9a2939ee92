"""Installed packages against the ranges that were tested."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from alol_jax.errors import UserError

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
SHOWN = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax")


def required() -> list[str]:
    """Return the tested ranges of the packages, like ``flax>=0.12.8,<0.13``."""
    if REQUIREMENTS.is_file():
        lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
        return [kept for line in lines if (kept := line.partition("#")[0].strip())]
    return [
        line for line in importlib.metadata.requires("alol_jax") or [] if "extra ==" not in line
    ]


def packages(ranges: Sequence[str], version_of: Callable[[str], str]) -> str:
    """Compare installed versions with the tested ranges.

    Args:
        version_of: the version of an installed package; raises PackageNotFoundError.

    Raises:
        UserError: a package is missing or of another version.
    """

    def installed(name: str) -> str:
        try:
            return version_of(name)
        except importlib.metadata.PackageNotFoundError:
            return ""

    wrong = []
    for requirement in map(Requirement, ranges):
        version = installed(requirement.name)
        if not version or not requirement.specifier.contains(version, prereleases=True):
            here = version or "not installed"
            wrong.append(f"{requirement.name} is {here}, tested is {requirement.specifier}")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}: pip install -r requirements.txt")
    shown = ", ".join(f"{name} {installed(name)}" for name in SHOWN if installed(name))
    return f"Python {platform.python_version()}, {shown}; all {len(ranges)} in the tested ranges"
