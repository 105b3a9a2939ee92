"""Tables on disk: one Arrow file each, mapped into memory and read only where it is looked at.

A table in a bucket is mapped from its local copy.

Every round trip is exact, NaN and infinities included. Any Arrow library reads the file:
``pyarrow.ipc.open_file(pyarrow.memory_map(file)).read_all()``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alol_jax import paths
from alol_jax.errors import UserError
from alol_jax.paths import AnyPath
from alol_jax.tables.columns import CHUNK
from alol_jax.tables.table import Row, Table, schema_of

VERSION = "2"  # of the columns; in the file's metadata


def write(file: AnyPath, table: Table) -> None:
    """Write the rows in order. A table that a file beside this one holds is only renamed.

    Raises:
        FileExistsError: the file exists.
        OSError: the disk is full.
    """
    if table.file is not None and table.file.parent == file.parent and not paths.exists(file):
        paths.move(table.file, file)
    else:
        _write(file, [table], table.row_type)


def collect(file: AnyPath, parts: Iterable[Table[Row]], row_type: type[Row]) -> Table[Row]:
    """Write the rows of all parts, made one after the other, and map the file into memory.

    What an interrupted call left is written over.

    Raises:
        OSError: the disk is full.
    """
    paths.remove(file)
    _write(file, parts, row_type)
    return read(file, row_type)


def _write(file: AnyPath, parts: Iterable[Table], row_type: type) -> None:
    if paths.exists(file):
        raise FileExistsError(f"{file} exists")
    paths.make_folder(file.parent)
    about = {"version": VERSION, "byteorder": sys.byteorder, "rows": row_type.__name__}
    schema = schema_of(row_type).with_metadata(about)
    with paths.written(file) as local:
        with pa.OSFile(str(local), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
            for part in parts:
                writer.write_table(part.arrow, max_chunksize=CHUNK)


def read(file: AnyPath, row_type: type[Row]) -> Table[Row]:
    """Map the file into memory and return its rows.

    Raises:
        UserError: there is no such file, it is damaged, of another version or byte order, or has
            other columns.
    """
    again = "delete its folder and run that stage again"
    local = paths.local_copy(file)
    if not local.is_file():
        raise UserError(f"{file}: no such table: {again}")
    try:
        arrow = pa.ipc.open_file(pa.memory_map(str(local))).read_all()
        arrow.validate()
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is damaged, perhaps cut short ({reason}): {again}") from error
    about = arrow.schema.metadata or {}
    for name, ours in (("version", VERSION), ("byteorder", sys.byteorder)):
        theirs = about.get(name.encode(), b"none").decode()
        if theirs != ours:
            raise UserError(f"{file} has {name} {theirs}, this program reads {ours}: {again}")
    wanted = schema_of(row_type)
    if not wanted.equals(arrow.schema):
        odd = ", ".join(sorted({*wanted.names} ^ {*arrow.schema.names})) or "the types"
        raise UserError(f"{file} holds no {row_type.__name__} rows ({odd} differ): {again}")
    return Table.wrap(arrow.replace_schema_metadata(None), row_type, file)


def write_parquet(file: Path, table: Table, columns: Sequence[str]) -> None:
    """Write some columns of the rows for other tools."""
    pq.write_table(table.arrow.select(columns), file, row_group_size=CHUNK)
