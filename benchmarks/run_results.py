"""The results of a finished run as hashes, without what differs between equal runs."""

import hashlib
import json
from pathlib import Path

import numpy as np

from alol_jax.runs.checkpoint import load_params

LEFT_OUT = {
    "cost.seconds in result.json": "the time that a fit took",
    "files of trained/ and params/": "Orbax names them at random and notes the time of saving; "
    "path, dtype, shape and bytes of every array in them are hashed",
    ".lock": "empty",
}
"""What is not compared, and why."""


def digests(workdir: Path) -> dict[str, str]:
    """Return the sha256 of every result below ``workdir``, by its relative path.

    A folder of parameters is one result.
    """
    saved = {path.parent for path in workdir.rglob("_CHECKPOINT_METADATA")}
    found = {_name(workdir, path): _of_params(path) for path in saved}
    for path in workdir.rglob("*"):
        inside = saved & {path, *path.parents}
        if path.is_file() and path.name != ".lock" and not inside:
            found[_name(workdir, path)] = _of_file(path)
    return found


def _name(workdir: Path, path: Path) -> str:
    return str(path.relative_to(workdir))


def _of_params(path: Path) -> str:
    """Hash path, dtype, shape and bytes of every array."""
    whole = hashlib.sha256()
    for name, leaf in sorted(load_params(path).items()):
        array = np.ascontiguousarray(leaf)
        whole.update(f"{name} {array.dtype} {array.shape}\n".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def _of_file(path: Path) -> str:
    """Hash the bytes; of a result.json without the seconds of its cost."""
    content = path.read_bytes()
    if path.name == "result.json":
        result = json.loads(content)
        if "cost" in result:
            result["cost"].pop("seconds")
        content = json.dumps(result, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()
