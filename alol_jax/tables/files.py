"""Tables on disk: one Arrow file each, mapped into memory and read only where it is looked at.

Every round trip is exact, NaN and infinities included. Any Arrow library reads the file:
``pyarrow.ipc.open_file(pyarrow.memory_map(file)).read_all()``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from alol_jax.errors import UserError
from alol_jax.tables.columns import CHUNK
from alol_jax.tables.table import Row, Table, schema_of

VERSION = "2"  # of the columns; in the file's metadata


def write(file: Path, table: Table) -> None:
    """Write the rows in order. A table that a file beside this one holds is only renamed.

    Raises:
        FileExistsError: the file exists.
        OSError: the disk is full.
    """
    if table.file is not None and table.file.parent == file.parent and not file.exists():
        table.file.rename(file)
    else:
        _write(file, [table], table.row_type)


def collect(file: Path, parts: Iterable[Table[Row]], row_type: type[Row]) -> Table[Row]:
    """Write the rows of all parts, made one after the other, and map the file into memory.

    What an interrupted call left is written over.

    Raises:
        OSError: the disk is full.
    """
    file.unlink(missing_ok=True)
    _write(file, parts, row_type)
    return read(file, row_type)


def _write(file: Path, parts: Iterable[Table], row_type: type) -> None:
    if file.exists():
        raise FileExistsError(f"{file} exists")
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"version": VERSION, "byteorder": sys.byteorder, "rows": row_type.__name__}
    schema = schema_of(row_type).with_metadata(about)
    with pa.OSFile(str(file), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        for part in parts:
            writer.write_table(part.arrow, max_chunksize=CHUNK)


def read(file: Path, row_type: type[Row]) -> Table[Row]:
    """Map the file into memory and return its rows.

    Raises:
        UserError: there is no such file, it is damaged, of another version or byte order, or has
            other columns.
    """
    again = "delete its folder and run that stage again"
    if not file.is_file():
        raise UserError(f"{file}: no such table: {again}")
    try:
        arrow = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
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
