"""`Table`: the rows of a dataclass, stored by columns."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, get_type_hints, overload

import numpy as np
import pyarrow as pa

from alol_jax.errors import UserError
from alol_jax.paths import AnyPath
from alol_jax.tables.columns import ARROW, CHUNK, Column, take, to_arrow, to_python, view

Row = TypeVar("Row")
Kind = TypeVar("Kind")


class Table(Sequence, Generic[Row]):
    """N rows of a frozen dataclass, stored by columns.

    ``table[3]`` is row 3, made when it is looked at; ``table["reward"]`` is a column:

    ===========================  =====================  ==================================
    annotation of the field      Arrow type             ``table[name]``
    ===========================  =====================  ==================================
    ``str``                      large_string           `Texts`, a sequence of str
    ``int``, ``float``, ``bool`` int64, float64, bool   i64[N], f64[N], bool[N]
    ``tuple[int, ...]``          large_list<int32>      `Ragged` of i32
    ``tuple[np.float32, ...]``   large_list<float32>    `Ragged` of f32
    ``tuple[float, ...]``        large_list<float64>    `Ragged` of f64
    ``tuple[str, ...]``          large_list of strings  `Ragged` of `Texts`
    ===========================  =====================  ==================================

    Tables are never changed; `replace`, `take` and slices return others that share what they can.
    """

    def __init__(self, row_type: type[Row], columns: Mapping[str, Any]) -> None:
        """Make a table of one column for each field.

        Args:
            columns: a `Column`, or a sequence of Python values, for each field.

        Raises:
            TypeError: a column is missing, unknown or of another kind.
            ValueError: the columns have different lengths.
        """
        schema = schema_of(row_type)
        if {*columns} != {*schema.names}:
            odd = ", ".join(sorted({*columns} ^ {*schema.names}))
            raise TypeError(f"columns of {row_type.__name__} differ: {odd}")
        arrays = [to_arrow(columns[field.name], field.type) for field in schema]
        self.row_type = row_type
        self.arrow = pa.Table.from_arrays(arrays, schema=schema)
        self.file: AnyPath | None = None  # that holds exactly these rows, mapped into memory
        self._views: dict[str, Column] = {}

    @classmethod
    def of(cls, rows: Iterable[Row], row_type: type[Row]) -> Table[Row]:
        """Collect rows, a chunk at a time.

        Raises:
            UserError: a text is not valid Unicode (a lone surrogate).
            OverflowError: a token id has more than 32 bits.
            TypeError: ``row_type`` has a field that cannot be stored.
        """
        if isinstance(rows, Table):
            return rows
        schema, ahead, batches, first = schema_of(row_type), iter(rows), [], 0
        while chunk := list(itertools.islice(ahead, CHUNK)):
            batches.append(_collected(chunk, first, row_type, schema))
            first += len(chunk)
        return cls.wrap(pa.Table.from_batches(batches, schema), row_type)

    @classmethod
    def wrap(cls, arrow: pa.Table, row_type: type[Row], file: AnyPath | None = None) -> Table[Row]:
        """Wrap an Arrow table of the right schema, which ``file`` holds if it is given."""
        table = cls.__new__(cls)
        table.row_type, table.arrow, table.file, table._views = row_type, arrow, file, {}
        return table

    def __len__(self) -> int:
        return self.arrow.num_rows

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> Table[Row]: ...
    @overload
    def __getitem__(self, key: str) -> Column: ...
    def __getitem__(self, key):
        if isinstance(key, str):
            if key not in self._views:
                self._views[key] = view(self.arrow[key])
            return self._views[key]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self.wrap(self.arrow.slice(start, max(stop - start, 0)), self.row_type)
            return self.take(np.arange(start, stop, step))
        place = range(len(self))[key]  # raises IndexError, counts from the end
        return next(self._rows(self.arrow.slice(place, 1)))

    def __iter__(self) -> Iterator[Row]:
        return self._rows(self.arrow)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Table):
            return self.arrow.equals(other.arrow)
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def __repr__(self) -> str:
        return f"Table({len(self)} × {self.row_type.__name__})"

    def take(self, indices: np.ndarray) -> Table[Row]:
        """Return the rows at these places, in this order."""
        arrays = [take(column, indices) for column in self.arrow.columns]
        return self.wrap(pa.Table.from_arrays(arrays, schema=self.arrow.schema), self.row_type)

    def where(self, mask: np.ndarray) -> Table[Row]:
        """Return the rows whose mask, bool[N], is true."""
        return self if mask.all() else self.take(np.flatnonzero(mask))

    def replace(self, **columns: Any) -> Table[Row]:
        """Return the table with other columns in the place of these."""
        old = dict(zip(self.arrow.column_names, self.arrow.columns, strict=True))
        return Table(self.row_type, old | columns)

    def _rows(self, arrow: pa.Table) -> Iterator[Row]:
        for batch in arrow.to_batches(max_chunksize=CHUNK):
            yield from map(self.row_type, *map(to_python, batch.columns))


def concatenate(tables: Sequence[Table[Row]]) -> Table[Row]:
    """Return the rows of all tables, one table after the other; nothing is copied."""
    return Table.wrap(pa.concat_tables([one.arrow for one in tables]), tables[0].row_type)


@functools.lru_cache
def schema_of(row_type: type) -> pa.Schema:
    """Return the Arrow schema of a dataclass.

    Raises:
        TypeError: a field has an annotation that cannot be stored.
    """
    return pa.schema(list(columns_of(row_type, ARROW).items()))


def columns_of(row_type: type, known: Mapping[Any, Kind]) -> dict[str, Kind]:
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


def _collected(rows: list, first: int, row_type: type, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        values = [getattr(row, field.name) for row in rows]
        try:
            arrays.append(to_arrow(values, field.type).chunk(0))
        except (UnicodeEncodeError, pa.ArrowInvalid) as error:
            place, reason = _bad_text(values)
            raise UserError(
                f"{row_type.__name__} row {first + place}, field {field.name!r}: the text is not "
                f"valid Unicode ({reason}); fix it in the data"
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
