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
from typing import Any, NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.runs.workers import map_in_processes, workers_for
from alol_jax.tables.table import Table, columns_of

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
    tuple[np.float32, ...]: _Column(
        lambda features: features.Tensor(shape=(None,), dtype=np.float32, encoding="bytes"),
        lambda values: np.array(values, np.float32),
    ),
    tuple[str, ...]: _Column(
        lambda features: features.Sequence(features.Text()),
        lambda texts: [text.encode("utf-8") for text in texts],
    ),
}


def write(folder: Path, name: str, rows: Table) -> None:
    """Write ``rows`` in order as the dataset ``name`` (lower case, underscores) into ``folder``.

    Several processes write the shards.

    Raises:
        UserError: the disk is full.
        FileExistsError: the folder already holds a table.
        TypeError: the row type has a field whose annotation is not in the table above.
    """
    import tensorflow_datasets as tfds

    if _info_file(folder).exists():
        raise FileExistsError(f"{folder} holds a table already")
    folder.mkdir(parents=True, exist_ok=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=f"alol_jax {rows.row_type.__name__} rows",
        features=_features(rows.row_type),
        disable_shuffling=True,
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=SPLIT, filetype_suffix="array_record"
    )
    starts = range(0, max(len(rows), 1), ROWS_PER_SHARD)
    shards = [rows[start : start + ROWS_PER_SHARD] for start in starts]
    with _quiet():
        info.set_file_format("array_record")
        sizes = _write_shards([*map(str, template.sharded_filepaths(len(shards)))], shards)
        lengths = [len(shard) for shard in shards]
        split = tfds.core.SplitInfo(SPLIT, lengths, sum(sizes), filename_template=template)
        info.set_splits(tfds.core.SplitDict([split]))
        info.write_to_directory(str(folder))


def _write_shards(files: Sequence[str], shards: Sequence[Table]) -> list[int]:
    """Write each shard to its file, and return their sizes in bytes."""
    workers = workers_for(len(shards))
    if workers == 1:
        return [_write_shard(*pair) for pair in zip(files, shards, strict=True)]
    pieces = zip(files, shards, strict=True)
    return list(map_in_processes(_write_shard, pieces, workers=workers))


def _write_shard(file: str, rows: Table) -> int:
    from array_record.python.array_record_module import ArrayRecordWriter

    columns, features, size = columns_of(rows.row_type, _COLUMNS), _features(rows.row_type), 0
    writer = ArrayRecordWriter(file, "group_size:1")
    try:
        for row in rows:
            encoded = {name: one.encode(getattr(row, name)) for name, one in columns.items()}
            record = features.serialize_example(encoded)
            size += len(record)
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # what array_record raises on a full disk
        raise UserError(f"{file} cannot be written: {error}") from error
    return size


def _features(row_type: type) -> Any:
    import tensorflow_datasets as tfds

    columns = columns_of(row_type, _COLUMNS).items()
    return tfds.features.FeaturesDict(
        {name: column.feature(tfds.features) for name, column in columns}
    )


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
