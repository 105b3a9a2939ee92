"""Reading a data file by whole columns.

Whatever is not the same in every row raises `Irregular`: the file is then read row by row, by
`sources`, which knows what is wrong where.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet

from alol_jax.tables.columns import TEXT, Ragged, Texts
from alol_jax.tasks import sources, watched_file
from alol_jax.tasks.forms import Flat
from alol_jax.tasks.renaming import Renaming
from alol_jax.types import Progress, Watch, unseen

BLOCK = 16 * 2**20  # bytes of JSON lines that one thread parses at a time
ROWS = 2**16  # of a Parquet or Arrow file that are read at a time

KINDS: dict[type | tuple, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    list[str]: pa.list_(pa.string()),
    list[float]: pa.list_(pa.float64()),
}
"""What a field of JSON lines may be declared as."""


class Irregular(Exception):
    """The file cannot be read by columns: read it row by row."""


def read(path: Path, kinds: Mapping[str, type], progress: Progress = unseen) -> pa.Table:
    """Read a JSON lines, CSV, Parquet or Arrow file.

    Args:
      kinds: the kinds of known fields, keys of `KINDS`. Others are inferred.
      progress: shows how much of a big file has been read, but for CSV.

    Raises:
      Irregular: see above; also for what only `sources` reads or knows to be missing.
    """
    form = sources.form_of(path)
    if form is None or not path.is_file():
        raise Irregular(f"{path} is no file of a known form")
    try:
        if form == "json lines":
            table = _read_json(path, kinds, progress)
        else:
            table = _read_others(path, form, progress)
        table.validate(full=True)  # of UTF-8, too
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
        raise Irregular(str(error)) from error
    return table


def _read_json(path: Path, kinds: Mapping[str, type], progress: Progress) -> pa.Table:
    schema = pa.schema([(name, KINDS[kind]) for name, kind in kinds.items()])
    with sources.open_binary(path, progress) as file:
        table = pyarrow.json.read_json(
            file,
            pyarrow.json.ReadOptions(block_size=BLOCK),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer"),
        )
    with sources.open_binary(path, progress) as file:
        lines = sum(not line.isspace() for line in file)
    if lines != len(table):  # the parser takes objects that share a line, or break it
        raise Irregular(f"{lines} lines, {len(table)} rows")
    return table


def _read_others(path: Path, form: str, progress: Progress) -> pa.Table:
    batches = sources.stream(path, form).with_format("arrow").iter(batch_size=ROWS)
    if form != "csv" and watched_file.is_big(path):
        total = -(-_count(path, form) // ROWS)
        batches = progress(batches, Watch(f"reading {path.name}, {ROWS} rows"), total=total)
    return pa.concat_tables(batches, promote_options="permissive")


def _count(path: Path, form: str) -> int:
    """The rows of a Parquet or Arrow file, without reading their values."""
    if form == "parquet":
        return pyarrow.parquet.read_metadata(path).num_rows
    with pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:  # a stream, as `datasets` writes them
            return sum(batch.num_rows for batch in pa.ipc.open_stream(file))
        return sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches))


def filled(table: pa.Table) -> dict[str, int]:
    """Return how many rows have a value for each field; without the fields that none has."""
    counts = {name: len(table) - table[name].null_count for name in table.column_names}
    return {name: count for name, count in counts.items() if count}


def texts(table: pa.Table, name: str, default: Texts | None = None) -> Texts | None:
    """Return a field of texts; None if no row has it and there is no default.

    Args:
      default: for rows without a value. Without it, all rows must have one.

    Raises:
      Irregular: the field is of another kind, or only some rows have it.
    """
    column = _column(table, name, needed=default is None)
    if column is None:
        return default
    column = _as(column, TEXT, pa.types.is_string, pa.types.is_large_string)
    if default is not None and column.null_count:
        column = pc.coalesce(column, default.arrow)
    return Texts(column)


def renamed(table: pa.Table, renaming: Renaming) -> pa.Table:
    """Return the table with the fields of a form.

    Raises:
      Irregular: only some rows have a column of a sum, or it holds no numbers.
    """
    if not renaming.columns:
        return table
    columns = {
        renaming.kept(name): table[name] for name in table.column_names if name not in renaming.used
    }
    for name, column in renaming.columns.items():
        if isinstance(column, str):
            columns[name] = table[column]
        else:
            parts = [weight * _needed(table, one) for one, weight in column.items()]
            columns[name] = pa.chunked_array([pa.array(sum(parts))])
    return pa.table(columns)


def _needed(table: pa.Table, name: str) -> np.ndarray:
    found = numbers(table, name)
    if found is None:
        raise Irregular(f"no row has {name!r}")
    return found


def flat(table: pa.Table, form: Flat) -> tuple[Texts, Ragged, Ragged | None]:
    """Return the prompts, responses and rewards of a form of texts and numbers.

    Rewards are None if no row has any.

    Raises:
      Irregular: only some rows have a field, or it is of another kind; or a text is empty.
    """
    prompts = _paragraphs(table, form.prompt)
    parts = [texts(table, name) for name in form.responses]
    scores = [[_scores(table, name) for name in names] for names in form.scores]
    rewards = _side_by_side(next((one for one in scores if one[0] is not None), scores[0]))
    responses = _side_by_side(parts)
    if form.lists:
        responses = _either(responses, text_lists(table, form.lists[0]))
        rewards = _either(rewards, number_lists(table, form.lists[1]))
    if prompts is None or responses is None:
        raise Irregular("no prompt or no response")
    if rewards is None and form.unscored:
        values = np.tile(np.array(form.unscored), len(prompts))
        rewards = Ragged.of(values, np.full(len(prompts), len(form.unscored)))
    if rewards is not None and (rewards.lengths != responses.lengths).any():
        raise Irregular("other numbers of rewards than of responses")
    if not all(map(str.strip, prompts)) or not all(map(str.strip, responses.flat)):
        raise Irregular("an empty text")
    return prompts, responses, rewards


def _paragraphs(table: pa.Table, names: tuple[str, ...]) -> Texts | None:
    """The texts of the first field, with those of others that are there after a blank line."""
    first = texts(table, names[0])
    if first is None:
        return None
    for name in names[1:]:
        more = texts(table, name, Texts.repeated("", len(first)))
        glue = pc.if_else(pc.equal(more.arrow, ""), "", "\n\n").cast(TEXT)
        nothing = pa.scalar("", TEXT)
        first = Texts(pc.binary_join_element_wise(first.arrow, glue, more.arrow, nothing))
    return first


def _scores(table: pa.Table, name: str) -> np.ndarray | None:
    """A field of numbers; a label may be true or false, and is none if it is a text."""
    if name == "label" and name in table.column_names:
        place, kind = table.column_names.index(name), table[name].type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return None
        if pa.types.is_boolean(kind):
            table = table.set_column(place, name, table[name].cast(pa.int8()))
    return numbers(table, name)


def _side_by_side(parts: list[Texts] | list[np.ndarray] | list[None]) -> Ragged | None:
    """One list a row, with an element of each part; None if no part is there."""
    there = [part is not None for part in parts]
    if not any(there):
        return None
    if not all(there):
        raise Irregular("only some fields of several are there")
    if len(parts) == 1:
        return Ragged.one_each(parts[0])
    count = len(parts[0])
    lengths = np.full(count, len(parts))
    if isinstance(parts[0], np.ndarray):
        return Ragged.of(np.stack(parts, axis=1).reshape(-1), lengths)
    order = np.arange(count * len(parts)).reshape(len(parts), count).T.reshape(-1)
    return Ragged.of(Texts.joined(parts).take(order), lengths)


def _either(one: Ragged | None, other: Ragged | None) -> Ragged | None:
    if one is not None and other is not None:
        raise Irregular("both forms of a field")
    return one if other is None else other


def whole_numbers(table: pa.Table, name: str) -> bool:
    """Whether the field holds whole numbers."""
    return name in table.column_names and pa.types.is_signed_integer(table[name].type)


def as_texts(table: pa.Table, name: str) -> pa.Table:
    """Return the table with a field of whole numbers as texts."""
    place = table.column_names.index(name)
    return table.set_column(place, name, table[name].cast(TEXT))


def numbers(table: pa.Table, name: str) -> np.ndarray | None:
    """Return a field of finite numbers, f64[N]; None if no row has it.

    Raises:
      Irregular: as in `texts`; or a number is not finite.
    """
    column = _column(table, name)
    return None if column is None else _finite(column)


def text_lists(table: pa.Table, name: str) -> Ragged | None:
    """Return a field of lists of texts, none of them empty; None if no row has it.

    Raises:
      Irregular: as in `texts`; or a list is empty.
    """
    found = _lists(table, name)
    if found is None:
        return None
    flat, lengths = found
    return Ragged.of(Texts(_as(flat, TEXT, pa.types.is_string, pa.types.is_large_string)), lengths)


def number_lists(table: pa.Table, name: str) -> Ragged | None:
    """Return a field of lists of finite numbers, none of them empty; None if no row has it.

    Raises:
      Irregular: as in `text_lists` and `numbers`.
    """
    found = _lists(table, name)
    return None if found is None else Ragged.of(_finite(found[0]), found[1])


def _column(table: pa.Table, name: str, *, needed: bool = True) -> pa.ChunkedArray | None:
    """The field; None if no row has it."""
    if name not in table.column_names or table[name].null_count == len(table):
        return None
    if needed and table[name].null_count:
        raise Irregular(f"only some rows have {name!r}")
    return table[name]


def _lists(table: pa.Table, name: str) -> tuple[pa.ChunkedArray, np.ndarray] | None:
    """The elements of a field of lists, and the length of each list."""
    column = _column(table, name)
    if column is None:
        return None
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise Irregular(f"{name!r} is no list")
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    flat = pc.list_flatten(column)
    if not lengths.all() or flat.null_count:
        raise Irregular(f"{name!r} has an empty list or element")
    return flat, lengths


def _finite(column: pa.ChunkedArray) -> np.ndarray:
    real = _as(column, pa.float64(), pa.types.is_integer, pa.types.is_floating).to_numpy()
    if not np.isfinite(real).all():
        raise Irregular("a number is not finite")
    return real


def _as(column: pa.ChunkedArray, wanted: pa.DataType, *kinds) -> pa.ChunkedArray:
    if not any(kind(column.type) for kind in kinds):
        raise Irregular(f"{column.type} where {wanted} is expected")
    return column.cast(wanted, safe=False)
