"""Reading data sets of tensorflow-datasets, by name or by directory, without TensorFlow.

A source is a directory that tensorflow-datasets wrote, or ``tfds:NAME`` for one that it knows, like
``tfds:imdb_reviews`` or ``tfds:my_dataset/config:1.0.0``. ``tfds:NAME@SPLIT`` and
``tfds:DIRECTORY@SPLIT`` name a split; without one it is "train".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alol_jax.errors import UserError, reason

PREFIX = "tfds:"


def is_source(name: str) -> bool:
    """Whether ``name`` means such a data set."""
    return name.startswith(PREFIX) or (name != "" and _described(Path(name)))


def stem(name: str) -> str:
    """Return the bare name of the data set."""
    return Path(_parts(name)[0].split(":")[0]).parts[0 if name.startswith(PREFIX) else -1]


def folder_of(name: str) -> Path:
    """Return the directory of the data set; one that is not there yet is downloaded and prepared.

    Raises:
      UserError: tensorflow-datasets knows no such name, or cannot prepare it.
    """
    import tensorflow_datasets as tfds

    bare, _ = _parts(name)
    if _described(Path(bare)):
        return Path(bare)
    try:
        builder = tfds.builder(bare)
        if not builder.is_prepared():
            builder.download_and_prepare(file_format="array_record")
        return Path(builder.data_path)
    except Exception as error:  # tfds raises its own errors, and the network's
        raise UserError(
            f"{name}: tensorflow-datasets cannot prepare it ({reason(error)}): name a data "
            "set that it knows, or the directory of one"
        ) from error


def is_prepared(name: str) -> bool:
    """Whether the data set is here; False also for names that tensorflow-datasets does not know."""
    import tensorflow_datasets as tfds

    bare, _ = _parts(name)
    if _described(Path(bare)):
        return True
    try:
        return tfds.builder(bare).is_prepared()
    except Exception:  # tfds raises its own errors; `folder_of` says which
        return False


def read(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a split, with values as JSON would have them.

    Raises:
      UserError: it cannot be read, or has no such split.
    """
    import tensorflow_datasets as tfds

    folder, split = folder_of(name), _parts(name)[1]
    try:
        rows = tfds.builder_from_directory(str(folder)).as_data_source(split=split)
        for number, row in enumerate(rows, start=1):
            yield f"{name}, row {number}", {key: _plain(value) for key, value in row.items()}
    except Exception as error:  # tfds raises its own errors and those of its file formats
        raise UserError(
            f"{name}: split {split!r} cannot be read by tensorflow-datasets ({reason(error)})"
        ) from error


def _parts(name: str) -> tuple[str, str]:
    """The name without its prefix, and the split."""
    if not name.startswith(PREFIX):
        return name, "train"
    bare, _, split = name.removeprefix(PREFIX).partition("@")
    return bare, split or "train"


def _described(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("dataset_info.json", "features.json"))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(item) for item in value] if isinstance(value, list) else value
