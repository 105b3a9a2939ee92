"""Records of what a result was made from: the content of files, hashes, and differences."""

from __future__ import annotations

import hashlib
import json
import textwrap
from typing import Any, NamedTuple

from alol_jax import paths
from alol_jax.paths import AnyPath


def content_of(path: AnyPath) -> str | dict[str, str]:
    """Hash a file's bytes, or those of each file in a folder.

    What is missing is "absent" here; whoever reads it raises the error.
    """
    path = paths.local_copy(path)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): content_of(file) for file in inside}
    if not path.is_file():
        return "absent"
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def digest(record: dict[str, Any]) -> str:
    """Return the hash that identifies a record."""
    text = json.dumps(record, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def as_stored(record: dict[str, Any]) -> Any:
    """Return the record as it is read back from its file."""
    return json.loads(json.dumps(record))


class Difference(NamedTuple):
    """A field in which two records differ, and its two values, shortened."""

    field: str
    one: str
    other: str


def first_difference(one: Any, other: Any, where: str = "") -> Difference | None:
    """Return the first field in which two records differ, or None if they are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key) or (key in one) != (key in other):
                inner = key if where in ("", "inputs", "lm", "scoring") else f"{where}.{key}"
                return first_difference(one.get(key), other.get(key), inner)
    if one == other:
        return None
    return Difference(where, *(textwrap.shorten(json.dumps(value), 100) for value in (one, other)))
