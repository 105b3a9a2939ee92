"""Reading raw rows, with their places, from files and from the Hugging Face hub.

The only module that imports ``datasets``, and only when a source needs it: JSON lines do not.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from alol_jax.errors import UserError, reason
from alol_jax.tasks import tfds_source

Kind = TypeVar("Kind", str, int, float, list, dict)

FORMATS = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""File suffix (before an optional ``.gz``) -> file format."""

PIECE = 2**24  # characters of a JSON list that are read at a time

# What stands before the first object of a JSON list, before another, and at the end.
_OPENING, _COMMA = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")
_EMPTY, _CLOSING = re.compile(r"\s*\[\s*\]"), re.compile(r"\s*\]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a map"}


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) of a UTF-8 JSON lines file, plain or .gz.

    Blank lines are skipped.

    Raises:
      UserError: the file cannot be read, or a line is not a JSON object; names file and line.
    """
    number = 0
    try:
        with open_binary(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, _parse(f"{path}, line {number}", line)
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


def read_json_array(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a UTF-8 file that is one JSON list, a piece of it in memory at a time.

    Raises:
      UserError: the file cannot be read, or is not a list of objects; names the object.
    """
    decoder, number, text, at = json.JSONDecoder(), 0, "", 0
    try:
        with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig") as file:
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


def read_file(path: Path, *, texts: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a JSON lines, CSV, Parquet or Arrow file, by its suffix, plain or .gz;
    or of a data set of tensorflow-datasets, see `tfds_source`.

    A place is like "data.jsonl, line 3" or "data.csv, row 2" (rows count from 1, without header).

    Args:
      texts: of a CSV file, the columns to read, as texts even if they look like numbers. Without
        it, all are read, and pandas guesses their kinds.

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
        raise UserError(f"{path}: expected a file name ending in {', '.join(FORMATS)} (or .gz)")
    if form == "json lines" and _is_array(path):
        for number, row in enumerate(read_json_array(path), start=1):
            yield f"{path}, row {number}", row
        return
    if form == "json lines":
        for number, row in read_json_lines(path):
            yield f"{path}, line {number}", row
        return
    try:
        for number, row in enumerate(stream(path, form, texts), start=1):
            yield f"{path}, row {number}", row
    except Exception as error:  # its readers raise pandas', pyarrow's and their own errors
        raise UserError(f"{path}: cannot be read as {form} ({reason(error)})") from error


def read_tab_separated(path: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a UTF-8 file of tab-separated columns without a header, plain or .gz.

    Args:
      names: of the columns.

    Raises:
      UserError: the file is missing or unreadable, or a line has another number of columns.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="\n") as file:
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


def stream(path: Path, form: str, texts: Sequence[str] = ()) -> Iterable[dict[str, Any]]:
    """Open a CSV, Parquet or Arrow file as a stream of the `datasets` library.

    Args:
      texts: see `read_file`.

    Raises:
      Exception: what its readers raise: errors of pandas, pyarrow and its own.
    """
    import datasets

    columns: dict[str, Any] = {}
    if form == "csv" and texts:
        kinds = datasets.Features({name: datasets.Value("string") for name in texts})
        columns = {"usecols": list(texts), "features": kinds}
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


def read_rows(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a file (see ``read_file``) or of a split of a hub dataset.

    A file (see ``is_file``) has one split, "train". A hub dataset is "owner/name", or
    "owner/name:folder" for one folder of its files (``data_dir``).

    Raises:
      UserError: as in ``read_file``; there is no such dataset or split, or no connection.
    """
    if is_file(name):
        if split != "train":
            raise UserError(f"{name}: a file has only the split 'train', not {split!r}")
        yield from read_file(Path(name))
        return
    import datasets

    dataset, _, folder = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, data_dir=folder or None, split=split)
    except Exception as error:  # the hub client's, the network's and the readers' own errors
        raise UserError(
            f"{name}: cannot load split {split!r} from the Hugging Face hub ({reason(error)}); "
            "name local files instead where there is no connection"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{name} [{split}], row {number}", row


def read_listed(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Call ``read_rows`` for a single name: a file, or "owner/name:folder:split" on the hub.

    Without a folder, a hub split is "owner/name:split".

    Raises:
      UserError: as in ``read_rows``; the name is neither a file nor a hub split.
    """
    if is_file(name):
        return read_file(Path(name))
    dataset, _, split = name.rpartition(":")
    if not dataset or not split:
        raise UserError(
            f"{name!r} is neither a file (ending in {', '.join(FORMATS)}, or these with .gz) nor a "
            "split on the Hugging Face hub, like 'Anthropic/hh-rlhf:helpful-base:train'"
        )
    return read_rows(dataset, split)


def cache(name: str) -> None:
    """Download a hub split, named as in ``read_listed``, or with "owner/name" all its splits.

    Raises:
      UserError: there is no such dataset or split, it is not for everyone, or no connection.
    """
    import datasets

    dataset, folder, split = _hub_parts(name)
    try:
        datasets.load_dataset(dataset, data_dir=folder or None, split=split or None)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{name}: no such data set on the Hugging Face hub, or not for everyone: check the "
            f"name; or accept its terms at https://huggingface.co/datasets/{dataset} and log in "
            "with `hf auth login`"
        ) from error
    except Exception as error:  # the hub client's, the network's and the readers' own errors
        raise UserError(
            f"{name}: cannot be loaded from the Hugging Face hub ({reason(error)}): run the same "
            "command again where there is a connection"
        ) from error


def is_cached(name: str) -> bool:
    """Whether a hub split, named as in ``cache``, is here in the version that the hub has now."""
    import datasets

    dataset, folder, split = _hub_parts(name)
    try:
        builder = datasets.load_dataset_builder(dataset, data_dir=folder or None)
    except Exception:  # not here, and not to be had: `cache` says why
        return False
    here = Path(builder.cache_dir).is_dir()
    return here and (not split or split in (builder.info.splits or {split: None}))


def _hub_parts(name: str) -> tuple[str, str, str]:
    """Split "owner/name:folder:split", "owner/name:split" or "owner/name" into its parts."""
    dataset, *rest = name.split(":")
    folder, split = ("", *rest)[-2:] if rest else ("", "")
    return dataset, folder, split


def has(row: Mapping[str, Any], name: str) -> bool:
    """Whether the row has a value for the field. Null (an empty CSV cell) is no value."""
    return row.get(name) is not None


def field(where: str, row: Mapping[str, Any], name: str, kind: type[Kind]) -> Kind:
    """Return the field's value, checked to be a ``kind``; whole numbers pass as numbers.

    Raises:
      UserError: the value is missing, null or of another kind, a number is not finite, or a text
        has lone surrogates; names place, field, the expected and the actual value.
    """
    if not has(row, name):
        present = ", ".join(sorted(key for key in row if has(row, key))) or "none"
        raise UserError(
            f"{where}: no field {name!r}; expected {_KIND_NAMES[kind]} (found: {present})"
        )
    return _checked(f"{where}, field {name!r}", row[name], kind)


def elements(where: str, row: Mapping[str, Any], name: str, kind: type[Kind]) -> tuple[Kind, ...]:
    """Return the elements of the field's list, each checked as in ``field``."""
    values = field(where, row, name, list)
    return tuple(
        _checked(f"{where}, field {name!r}, element {number}", value, kind)
        for number, value in enumerate(values, start=1)
    )


def _checked(place: str, value: Any, kind: type[Kind]) -> Kind:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool)):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise UserError(
            f"{place}: expected {_KIND_NAMES[kind]}, got {type(value).__name__} {shown}"
        )
    if kind is float:
        return _finite(place, value)
    if kind is str and _SURROGATE.search(value):
        raise UserError(f"{place}: the text is not valid Unicode (a lone surrogate)")
    return value


def _finite(place: str, value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{place}: expected a finite number, got {number}")
    return number


def form_of(path: Path) -> str | None:
    """Return the format of a file by its suffix, a value of `FORMATS`; None for others."""
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    return FORMATS.get(bare.suffix)


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, plain or .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _parse(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8 and endless numbers are ValueErrors
        raise UserError(f"{where}: not valid JSON: {reason(error)}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object per line, got {type(row).__name__}")
    return row
