"""Reading raw rows, with their places, from files and from the Hugging Face hub.

Imports ``datasets`` only when a file needs it: JSON lines do not.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from alol_jax.errors import UserError, reason
from alol_jax.paths import check_no_pointer
from alol_jax.tasks import hub_source, tfds_source
from alol_jax.tasks.watched_file import open_watched
from alol_jax.types import Progress, read_at, silent, unseen

FORMATS = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""File suffix (before an optional ``.gz`` or ``.zst``) -> file format."""

Bad = Callable[[str, UserError], None]
"""What becomes of a row that cannot be read: called with its place and the error."""

DELIMITERS = ",;\t|"
SAMPLE = 2**16  # bytes of a CSV file in which the delimiter is looked for
PIECE = 2**24  # characters of a JSON list that are read at a time

# What stands before the first object of a JSON list, before another, and at the end.
_OPENING, _COMMA = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")
_EMPTY, _CLOSING = re.compile(r"\s*\[\s*\]"), re.compile(r"\s*\]")


def refuse(where: str, error: UserError) -> None:
    """Raise the error of a row: what most readers do with it."""
    raise error


def read_json_lines(
    path: Path, bad: Bad = refuse, progress: Progress = unseen
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) of a UTF-8 JSON lines file, plain, .gz or .zst.

    Blank lines are skipped.

    Args:
      bad: is called with (place, error) for a line that is no JSON object, which is left out.
      progress: shows how much of a big file has been read.

    Raises:
      UserError: the file cannot be read, or a line is not a JSON object; names file and line.
    """
    number = 0
    try:
        with open_binary(path, progress) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not line.strip():
                    continue
                try:
                    row = _parse(f"{path}, line {number}", line)
                except UserError as error:
                    bad(f"{path}, line {number}", error)
                    continue
                yield number, row
    except (OSError, EOFError, zlib.error) as error:
        where = f"{path}, after line {number}" if number else str(path)
        raise UserError(f"{where}: cannot be read ({reason(error)})") from error


def _is_array(path: Path) -> bool:
    """Whether a JSON file begins with a list."""
    try:
        with open_binary(path) as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except (OSError, EOFError, zlib.error):
        return False  # whoever reads it says what is wrong


def read_json_array(path: Path, progress: Progress = unseen) -> Iterator[dict[str, Any]]:
    """Yield the objects of a UTF-8 file that is one JSON list, a piece of it in memory at a time.

    Raises:
      UserError: the file cannot be read, or is not a list of objects; names the object.
    """
    decoder, number, text, at = json.JSONDecoder(), 0, "", 0
    try:
        with io.TextIOWrapper(open_binary(path, progress), encoding="utf-8-sig") as file:
            while True:
                before, end = (_COMMA, _CLOSING) if number else (_OPENING, _EMPTY)
                if ended := end.match(text, at):
                    if (text[ended.end() :] + file.read()).strip():
                        raise UserError(f"{path}: text after the list of {number} rows")
                    return
                try:
                    if (found := before.match(text, at)) is None:
                        raise ValueError("expected ',' or ']'" if number else "expected '['")
                    row, after = decoder.raw_decode(text, found.end())
                except (ValueError, RecursionError) as error:
                    more = file.read(PIECE)
                    if not more:
                        raise UserError(
                            f"{path}, row {number + 1}: not valid JSON: {reason(error)}"
                        ) from error
                    text, at = text[at:] + more, 0
                    continue
                number, at = number + 1, after
                if not isinstance(row, dict):
                    raise UserError(
                        f"{path}, row {number}: expected a JSON object, got {type(row).__name__}"
                    )
                yield row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}, row {number + 1}: cannot be read ({reason(error)})") from error


def read_file(
    path: Path,
    *,
    texts: Sequence[str] = (),
    bad: Bad = refuse,
    progress: Progress = unseen,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a JSON lines, CSV, Parquet or Arrow file, by its suffix, plain, .gz or
    .zst; or of a data set of tensorflow-datasets, see `tfds_source`.

    A place is like "data.jsonl, line 3" or "data.csv, row 2" (rows count from 1, without header).

    Args:
      texts: of a CSV file, the columns to read, as texts even if they look like numbers. Without
        it, all are read, and pandas guesses their kinds.
      bad, progress: see `read_json_lines`.

    Raises:
      UserError: the file is missing, unreadable, malformed or of an unknown format.
    """
    if tfds_source.is_source(str(path)):
        yield from tfds_source.read(str(path))
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    form = form_of(path)
    if form is None:
        raise UserError(
            f"{path}: expected a file name ending in {', '.join(FORMATS)} (or .gz, .zst)"
        )
    if form == "json lines" and _is_array(path):
        for number, row in enumerate(read_json_array(path, progress), start=1):
            yield f"{path}, row {number}", row
        return
    if form == "json lines":
        for number, row in read_json_lines(path, bad, progress):
            yield f"{path}, line {number}", row
        return
    check_no_pointer(path)
    try:
        for number, row in enumerate(stream(path, form, texts), start=1):
            yield f"{path}, row {number}", row
    except Exception as error:  # its readers raise pandas', pyarrow's and their own errors
        raise UserError(f"{path}: cannot be read as {form} ({reason(error)})") from error


def read_tab_separated(
    path: Path, names: Sequence[str], progress: Progress = unseen
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a UTF-8 file of tab-separated columns without a header, plain or .gz.

    Args:
      names: of the columns.
      progress: see `read_json_lines`.

    Raises:
      UserError: the file is missing or unreadable, or a line has another number of columns.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        opened = open_binary(path, progress)
        with io.TextIOWrapper(opened, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                values = line.rstrip("\r\n").split("\t")
                if not line.strip():
                    continue
                if len(values) != len(names):
                    raise UserError(
                        f"{path}, line {number}: {len(values)} columns, expected {len(names)} "
                        f"({', '.join(names)}), separated by tabs"
                    )
                yield f"{path}, line {number}", dict(zip(names, values, strict=True))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error


def delimiter_of(path: Path) -> str:
    """Return what is between the columns of a CSV file, by its beginning: one of `DELIMITERS`.

    Raises:
      OSError, EOFError, zlib.error: the file cannot be read.
    """
    with open_binary(path) as file:
        text = file.read(SAMPLE).decode("utf-8", errors="replace")
    header = text.partition("\n")[0]
    there = [one for one in DELIMITERS if one in header]
    if len(there) < 2:
        return there[0] if there else ","
    try:
        return csv.Sniffer().sniff(text, "".join(there)).delimiter
    except csv.Error:
        return max(there, key=header.count)


def stream(path: Path, form: str, texts: Sequence[str] = ()) -> Iterable[dict[str, Any]]:
    """Open a CSV, Parquet or Arrow file as a stream of the `datasets` library.

    Args:
      texts: see `read_file`.

    Raises:
      Exception: what its readers raise: errors of pandas, pyarrow and its own.
    """
    import datasets

    columns: dict[str, Any] = {}
    if form == "csv":
        columns = {"sep": delimiter_of(path)}
    if form == "csv" and texts:
        kinds = datasets.Features({name: datasets.Value("string") for name in texts})
        columns |= {"usecols": list(texts), "features": kinds}
    return datasets.load_dataset(
        form, data_files=str(path), split="train", streaming=True, **columns
    )


def is_file(name: str) -> bool:
    """Whether a name means a file: it has a known suffix, or the path exists."""
    known = form_of(Path(name)) is not None or tfds_source.is_source(name)
    return known or (name != "" and Path(name).exists())


PREPARE = "`python -m alol_jax.prepare --config=…` brings it"


def check_published(key: str, name: str) -> None:
    """Raise UserError, with the program that brings it, if a published file is not there.

    Args:
      key: its key of ``config.task``.
      name: a file; names of hub data sets pass.
    """
    if is_file(name) and not Path(name).is_file() and not tfds_source.is_source(name):
        what = "a folder: name its files" if Path(name).is_dir() else "no such file"
        raise UserError(f"task.{key}: {name}: {what}; {PREPARE}")


def on_disk(path: Path | str) -> Path:
    """Return the file or directory that has the bytes of what `read_file` reads.

    Raises:
      UserError: it is the name of a tensorflow-datasets data set that cannot be prepared.
    """
    name = str(path)
    return tfds_source.folder_of(name) if tfds_source.is_source(name) else path


def stem(path: Path | str) -> str:
    """Return the bare name of what `read_file` reads, without folder and suffixes."""
    name = str(path)
    return tfds_source.stem(name) if tfds_source.is_source(name) else path.name.split(".")[0]


def read_rows(
    name: str, split: str, noted: Callable[[str], None] = silent, progress: Progress = unseen
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a file (see ``read_file``) or of a split of a hub data set.

    A file (see ``is_file``) has one split, "train". A hub data set is "owner/name", or
    "owner/name:part" for one of its configs or folders (see `hub_source`).

    Args:
      noted: is called with a note of the commit that is read of a hub data set.
      progress: see `read_json_lines`.

    Raises:
      UserError: as in ``read_file``; there is no such data set or split, or no connection.
    """
    if is_file(name):
        if split != "train":
            raise UserError(f"{name}: a file has only the split 'train', not {split!r}")
        yield from read_file(Path(name), progress=progress)
        return
    dataset = hub_source.load(name, split)
    if commit := hub_source.commit_of(dataset):
        noted(read_at(name, commit))
    for number, row in enumerate(dataset, start=1):
        yield f"{name} [{split}], row {number}", row


def read_listed(
    name: str, noted: Callable[[str], None] = silent, progress: Progress = unseen
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Call ``read_rows`` for a single name: a file, or "owner/name:folder:split" on the hub.

    Without a folder, a hub split is "owner/name:split"; "@revision" may stand at the end.

    Raises:
      UserError: as in ``read_rows``; the name is neither a file nor a hub split.
    """
    if is_file(name):
        return read_file(Path(name), progress=progress)
    named = hub_source.parse(name)
    if not named.parts or not all((named.dataset, *named.parts)):
        raise UserError(
            f"{name!r} is neither a file (ending in {', '.join(FORMATS)}, or these with .gz) nor a "
            "split on the Hugging Face hub, like 'Anthropic/hh-rlhf:helpful-base:train'"
        )
    *folder, split = named.parts
    at = f"@{named.revision}" if named.revision else ""
    return read_rows(":".join((named.dataset, *folder)) + at, split, noted, progress)


def form_of(path: Path) -> str | None:
    """Return the format of a file by its suffix, a value of `FORMATS`; None for others."""
    bare = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    return FORMATS.get(bare.suffix)


def open_binary(path: Path, progress: Progress = unseen) -> IO[bytes]:
    """Open a file, plain, .gz or .zst.

    Args:
      progress: see `open_watched`.

    Raises:
      UserError: it is a pointer of Git LFS.
      OSError: it cannot be opened.
    """
    check_no_pointer(path)
    file = open_watched(path, progress)
    if path.suffix == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))
    if path.suffix != ".gz":
        return file
    unpacked = gzip.GzipFile(fileobj=file)
    unpacked.myfileobj = file  # which it closes with itself
    return unpacked


def _parse(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8 and endless numbers are ValueErrors
        raise UserError(f"{where}: not valid JSON: {reason(error)}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object per line, got {type(row).__name__}")
    return row
