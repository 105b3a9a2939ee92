"""Reading a CSV file by columns: texts stay texts, whatever they look like.

An empty cell is no value, an empty text in quotes is one.
"""

from __future__ import annotations

import collections
import csv
import io
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from alol_jax.errors import UserError
from alol_jax.tasks import sources
from alol_jax.types import Progress, unseen


def read(
    path: Path, numbers: Collection[str], progress: Progress = unseen
) -> tuple[pa.Table, dict[int, UserError]]:
    """Read a CSV file, plain, .gz or .zst.

    Args:
      numbers: columns that are numbers, or true and false, where all of their cells are.
      progress: shows how much of a big file has been read.

    Returns:
      All rows that have as many cells as the header; and the others: number from 1 -> what is wrong
      with the row.

    Raises:
      UserError: two columns have the same name.
      pyarrow.ArrowException, OSError, EOFError, zlib.error, ValueError: the file cannot be read.
    """
    delimiter, odd = sources.delimiter_of(path), {}
    names = _header(path, delimiter)

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        number = row.number - 1  # the header is the first
        odd[number] = UserError(
            f"{path}, row {number}: {row.actual_columns} columns, expected {row.expected_columns}"
        )
        return "skip"

    with sources.open_binary(path, progress) as file:
        table = pyarrow.csv.read_csv(
            file,
            pyarrow.csv.ReadOptions(use_threads=False),  # so that rows have numbers
            pyarrow.csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip
            ),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    for place, name in enumerate(table.column_names):
        if name in numbers:
            table = table.set_column(place, name, _as_numbers(table[name]))
    return table, odd


def _header(path: Path, delimiter: str) -> list[str]:
    with io.TextIOWrapper(sources.open_binary(path), encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=delimiter), [])
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: two columns are called {twice[0]!r}")
    return names


def _as_numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as numbers, or as true and false; as it is if a cell is neither."""
    for kind in (pa.float64(), pa.bool_()):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    return texts
