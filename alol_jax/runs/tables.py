"""Tables of rows: one memory-mapped Arrow file each, read only where it is looked at.

Columns follow the annotations of the row's dataclass:

====================  ===================
annotation            Arrow type
====================  ===================
``str``               large_string
``int``               int64
``bool``              bool
``float``             float64
``tuple[int, ...]``   large_list<int32>
``tuple[float, ...]`` large_list<float64>
``tuple[str, ...]``   large_list<large_string>
====================  ===================

Every round trip is exact, NaN and infinities included. Any Arrow library reads the file:
``pyarrow.ipc.open_file(pyarrow.memory_map(file)).read_all()``.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, get_type_hints, overload

import numpy as np
import pyarrow as pa

from alol_jax.types import UserError

Row = TypeVar("Row")
Column = TypeVar("Column")

VERSION = "1"  # of the columns; in the file's metadata
BATCH = 65_536  # rows that are converted together


class _Column(NamedTuple):
    """How one annotation is stored."""

    arrow: pa.DataType
    encode: Callable[[list, pa.DataType], pa.Array]
    decode: Callable[[pa.Array], Sequence]


def _encode_plain(values: list, arrow: pa.DataType) -> pa.Array:
    return pa.array(values, arrow)


def _encode_lists(values: list, arrow: pa.DataType) -> pa.Array:
    """Tuples as one flat array with offsets."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    items = itertools.chain.from_iterable(values)
    if pa.types.is_large_string(arrow.value_type):
        flat = pa.array(list(items), arrow.value_type)
    else:
        flat = pa.array(np.fromiter(items, arrow.value_type.to_pandas_dtype(), offsets[-1]))
    return pa.LargeListArray.from_arrays(pa.array(offsets), flat)


def _decode_lists(array: pa.LargeListArray) -> list[tuple]:
    ends = (array.offsets.to_numpy() - array.offsets[0].as_py()).tolist()
    flat = _decode_plain(array.flatten())
    return [tuple(flat[start:end]) for start, end in itertools.pairwise(ends)]


def _decode_plain(array: pa.Array) -> list:
    if pa.types.is_large_string(array.type):
        return array.to_pylist()
    return array.to_numpy(zero_copy_only=False).tolist()


def _plain(arrow: pa.DataType) -> _Column:
    return _Column(arrow, _encode_plain, _decode_plain)


def _lists(arrow: pa.DataType) -> _Column:
    return _Column(pa.large_list(arrow), _encode_lists, _decode_lists)


_COLUMNS: dict[Any, _Column] = {
    str: _plain(pa.large_string()),
    int: _plain(pa.int64()),
    bool: _plain(pa.bool_()),
    float: _plain(pa.float64()),
    tuple[int, ...]: _lists(pa.int32()),
    tuple[float, ...]: _lists(pa.float64()),
    tuple[str, ...]: _lists(pa.large_string()),
}


class Rows(Sequence, Generic[Row]):
    """The rows of a table on disk, in order. A row is made when it is looked at."""

    def __init__(self, batches: Sequence[pa.RecordBatch], row_type: type[Row]) -> None:
        self._batches, self._type = tuple(batches), row_type
        self._ends = tuple(itertools.accumulate(batch.num_rows for batch in self._batches))
        columns = _columns(row_type)
        self._decode = [columns[field.name].decode for field in dataclasses.fields(row_type)]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index]  # raises IndexError, counts from the end
        number = bisect.bisect_right(self._ends, place)
        start = self._ends[number] - self._batches[number].num_rows
        return next(self._made(self._batches[number].slice(place - start, 1)))

    def __iter__(self) -> Iterator[Row]:
        return itertools.chain.from_iterable(map(self._made, self._batches))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def __repr__(self) -> str:
        return f"Rows({len(self)} × {self._type.__name__})"

    def _made(self, batch: pa.RecordBatch) -> Iterator[Row]:
        columns = [d(c) for d, c in zip(self._decode, batch.columns, strict=True)]
        return map(self._type, *columns)


def write(file: Path, rows: Sequence[Row], row_type: type[Row]) -> None:
    """Write ``rows`` in order.

    Raises:
        UserError: a text is not valid Unicode (a lone surrogate).
        OverflowError: a token id has more than 32 bits.
        FileExistsError: the file exists.
        TypeError: ``row_type`` has a field with an annotation that is not in the table above.
        OSError: the disk is full.
    """
    schema = _schema(row_type)
    if file.exists():
        raise FileExistsError(f"{file} exists")
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(file), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        ahead, first = iter(rows), 0
        while batch := list(itertools.islice(ahead, BATCH)):
            writer.write_batch(_record_batch(batch, first, row_type, schema))
            first += len(batch)


def read(file: Path, row_type: type[Row]) -> Rows[Row]:
    """Map the file into memory and return its rows.

    Raises:
        UserError: there is no such file, it is damaged, of another version, or has other columns.
    """
    again = "delete its folder and run that stage again"
    if not file.is_file():
        raise UserError(f"{file}: no such table: {again}")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is damaged, perhaps cut short ({reason}): {again}") from error
    version = (reader.schema.metadata or {}).get(b"version", b"none").decode()
    if version != VERSION:
        raise UserError(f"{file} has version {version}, this program reads {VERSION}: {again}")
    odd = sorted({*reader.schema.names} ^ {*_columns(row_type)})
    if odd or reader.schema.types != _schema(row_type).types:
        what = ", ".join(odd) or "the types"
        raise UserError(f"{file} holds no {row_type.__name__} rows ({what} differ): {again}")
    return Rows(batches, row_type)


def _record_batch(rows: list, first: int, row_type: type, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for name, column in _columns(row_type).items():
        values = [getattr(row, name) for row in rows]
        try:
            arrays.append(column.encode(values, column.arrow))
        except (UnicodeEncodeError, pa.ArrowInvalid) as error:
            if column not in (_COLUMNS[str], _COLUMNS[tuple[str, ...]]):
                raise
            place, reason = _bad_text(values)
            raise UserError(
                f"{row_type.__name__} row {first + place}, field {name!r}: the text is not valid "
                f"Unicode ({reason}); fix it in the data"
            ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _bad_text(values: list) -> tuple[int, str]:
    """The first value that is, or holds, a text that UTF-8 cannot encode, and the reason."""
    for place, value in enumerate(values):
        for text in (value,) if isinstance(value, str) else value:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                return place, error.reason
    raise AssertionError("every text is valid")


def _schema(row_type: type) -> pa.Schema:
    fields = [pa.field(name, column.arrow) for name, column in _columns(row_type).items()]
    return pa.schema(fields, metadata={"version": VERSION, "rows": row_type.__name__})


def columns_of(row_type: type, known: Mapping[Any, Column]) -> dict[str, Column]:
    """Return the entry of ``known`` for the annotation of each field of a dataclass.

    Raises:
        TypeError: an annotation is not in ``known``.
    """
    hints = get_type_hints(row_type)
    columns = {}
    for field in dataclasses.fields(row_type):
        if hints[field.name] not in known:
            raise TypeError(f"{row_type.__name__}.{field.name}: cannot store {hints[field.name]}")
        columns[field.name] = known[hints[field.name]]
    return columns


def _columns(row_type: type) -> dict[str, _Column]:
    return columns_of(row_type, _COLUMNS)
