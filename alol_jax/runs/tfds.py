"""Write rows as a tensorflow-datasets dataset in ArrayRecord form.

A folder written here describes itself (``features.json``, ``dataset_info.json``), keeps the order
of the rows, and is read without TensorFlow:
``tfds.builder_from_directory(folder).as_data_source()["train"][number]``.

Text becomes ``Text``; numbers and truth values become scalars, float64 as raw bytes because
tf.Example itself keeps only float32; tuples become ``Tensor`` or ``Sequence``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from alol_jax.runs.tables import columns_of
from alol_jax.types import UserError

Row = TypeVar("Row")

SPLIT = "train"  # the only split of a table; the name that readers of tfds data try first
ROWS_PER_SHARD = 10_000


class _Column(NamedTuple):
    """How values of one annotation are stored."""

    feature: Callable[[Any], Any]  # tfds.features -> feature connector
    encode: Callable[[Any], Any]


_COLUMNS: dict[Any, _Column] = {
    str: _Column(
        lambda features: features.Text(),
        lambda text: text.encode("utf-8"),
    ),
    int: _Column(lambda features: features.Scalar(np.int64), int),
    bool: _Column(lambda features: features.Scalar(np.bool_), bool),
    float: _Column(
        lambda features: features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
        np.float64,
    ),
    tuple[int, ...]: _Column(
        lambda features: features.Tensor(shape=(None,), dtype=np.int32),
        lambda values: np.array(values, np.int32),
    ),
    tuple[float, ...]: _Column(
        lambda features: features.Tensor(shape=(None,), dtype=np.float64, encoding="bytes"),
        lambda values: np.array(values, np.float64),
    ),
    tuple[str, ...]: _Column(
        lambda features: features.Sequence(features.Text()),
        lambda texts: [text.encode("utf-8") for text in texts],
    ),
}


def write(folder: Path, name: str, rows: Sequence[Row], row_type: type[Row]) -> None:
    """Write ``rows`` in order as the dataset ``name`` (lower case, underscores) into ``folder``.

    Raises:
        UserError: a text is not valid Unicode (a lone surrogate), or the disk is full.
      FileExistsError: the folder already holds a table.
      TypeError: ``row_type`` has a field whose annotation is not in the table above.
    """
    import tensorflow_datasets as tfds

    columns = columns_of(row_type, _COLUMNS)
    if _info_file(folder).exists():
        raise FileExistsError(f"{folder} holds a table already")
    folder.mkdir(parents=True, exist_ok=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=f"alol_jax {row_type.__name__} rows",
        features=tfds.features.FeaturesDict(
            {field: column.feature(tfds.features) for field, column in columns.items()}
        ),
        disable_shuffling=True,
    )
    with _quiet():
        writer = tfds.core.SequentialWriter(info, ROWS_PER_SHARD, file_format="array_record")
        writer.initialize_splits([SPLIT])
        encoded = (_encode(row, number, columns) for number, row in enumerate(rows))
        try:
            writer.add_examples({SPLIT: encoded})
            writer.close_all()
        except RuntimeError as error:  # what array_record raises on a full disk
            raise UserError(f"{folder} cannot be written: {error}") from error


def _encode(row: Any, number: int, columns: dict[str, _Column]) -> dict[str, Any]:
    encoded = {}
    for field, column in columns.items():
        try:
            encoded[field] = column.encode(getattr(row, field))
        except UnicodeEncodeError as error:
            raise UserError(
                f"{type(row).__name__} row {number}, field {field!r}: the text is not valid "
                f"Unicode ({error.reason}); fix it in the data"
            ) from error
    return encoded


def _info_file(folder: Path) -> Path:
    return folder / "dataset_info.json"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence tfds's log line for every file; restore absl's verbosity afterwards."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
