"""What ``config.task.train_file`` and its like name: files, folders, globs and hub data sets.

Several are separated by commas. ``name=what`` gives the rows a `source`; without it, the source is
the file's stem or the data set's name. ``name:0.5=what`` and ``name:2.5=what`` give its
rows a weight (`weights`).
"""

from __future__ import annotations

import functools
import glob
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from alol_jax.errors import UserError, reason
from alol_jax.paths import local_copy
from alol_jax.tasks import columnar, csv_file, hub_source, sources, tfds_source
from alol_jax.types import Progress, Watch, read_at, unseen

NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files beside data that are not data."""

MANY = 64  # batches of rows of which is shown how many have been read
MOST = 100
"""The largest weight of a source."""

_LABEL = re.compile(r"([\w.-]+)(?::([\d.]+))?=(.+)")


class Source(NamedTuple):
    """A file, a data set of tensorflow-datasets or of the hub."""

    label: str  # the `source` of its rows
    name: str  # a path, or the name of a data set
    on_hub: bool = False
    weight: float = 1.0  # how often its rows are read

    @property
    def path(self) -> Path:
        """Where it is, unless it is on the hub."""
        return Path(self.name)


class Opened:
    """The rows of a source: by whole columns or one by one."""

    def __init__(
        self, source: Source, numbers: Collection[str], progress: Progress = unseen
    ) -> None:
        """Open a source.

        Args:
          numbers: columns of a CSV file that hold numbers.
          progress: shows how much of a big one has been read.
        """
        self.source, self._numbers, self._progress = source, numbers, progress
        self._form = None if source.on_hub else sources.form_of(source.path)
        self._lines = self._form == "json lines" or tfds_source.is_source(source.name)

    def table(self, kinds: Mapping[str, type]) -> pa.Table:
        """Read it by columns; see `columnar.read`.

        Args:
          kinds: of the fields of JSON lines; other files say it themselves.
        """
        if self._lines:
            return columnar.read(self.source.path, kinds, self._progress)
        table, odd = self._table
        if odd:
            raise columnar.Irregular("rows of other lengths")
        return table

    def rows(self, bad: sources.Bad = sources.refuse) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (place, row); see `sources.read_file`."""
        if not self._lines:
            try:
                yield from self._rows_of_table(bad)
                return
            except columnar.Irregular:
                pass  # the other reader says what is wrong
        yield from sources.read_file(self.source.path, bad=bad, progress=self._progress)

    def note(self) -> str | None:
        """Return what the user should know about how it was read, if anything."""
        name = self.source.name
        if self.source.on_hub:
            commit = hub_source.commit_of(self._dataset)
            return read_at(name, commit) if commit else None
        if self._form != "csv" or tfds_source.is_source(name):
            return None
        delimiter = sources.delimiter_of(self.source.path)
        return None if delimiter == "," else f"{name}: columns separated by {delimiter!r}."

    def _rows_of_table(self, bad: sources.Bad) -> Iterator[tuple[str, dict[str, Any]]]:
        table, odd = self._table
        number, batches = 0, table.to_batches(max_chunksize=1024)
        if len(batches) >= MANY:
            watch = Watch(f"reading {self.source.path.name}, 1024 rows")
            batches = self._progress(batches, watch, total=len(batches))
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                while number in odd:
                    bad(f"{self.source.name}, row {number}", odd[number])
                    number += 1
                yield f"{self.source.name}, row {number}", row
        for last in odd:
            if last > number:
                bad(f"{self.source.name}, row {last}", odd[last])

    @functools.cached_property
    def _table(self) -> tuple[pa.Table, dict[int, UserError]]:
        """All rows, and what is wrong with those of a CSV file that are not among them."""
        if self.source.on_hub:
            return self._dataset.with_format("arrow")[:], {}
        path = self.source.path
        if self._form != "csv" or not path.is_file():
            return columnar.read(path, {}, self._progress), {}
        try:
            return csv_file.read(path, self._numbers, self._progress)
        except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read as csv ({reason(error)})") from error

    @functools.cached_property
    def _dataset(self) -> Any:
        return hub_source.load(self.source.name)


def sources_of(key: str, text: str) -> list[Source]:
    """Return what the text names, a folder's files one by one.

    Args:
      key: of ``config.task``, for messages.

    Raises:
      UserError: a folder has no data files, or a glob matches none.
    """
    found = []
    for part in [text] if Path(text).exists() else filter(None, map(str.strip, text.split(","))):
        labelled = None if Path(part).exists() else _LABEL.fullmatch(part)
        label, weight, name = labelled.groups() if labelled else ("", None, part)
        found += [
            one._replace(label=label or one.label, weight=_weight(key, part, weight or "1"))
            for one in _expanded(key, name)
        ]
    if not found:
        raise UserError(f"task.{key} is empty: name a data file")
    return found


def _weight(key: str, part: str, text: str) -> float:
    """Read the weight of a source's rows."""
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= MOST:
        raise UserError(f"task.{key}: {part}: {text} is no weight, above 0 and up to {MOST}")
    if weight > 1 and key != "train_file":
        raise UserError(
            f"task.{key}: {part}: only training rows can be read more than once: give it a weight "
            "up to 1"
        )
    return weight


def _expanded(key: str, name: str) -> list[Source]:
    """The sources that one name stands for."""
    if tfds_source.is_source(name):
        return [Source(sources.stem(name), name)]
    path = local_copy(name)
    if path.is_dir():
        if tfds_source.is_source(str(path)):
            return [Source(sources.stem(path), str(path))]
        inside = (file for file in path.rglob("*") if not _is_hidden(file.relative_to(path)))
        return _files(f"task.{key}: {name}", sorted(inside))
    if path.is_file():
        return [Source(sources.stem(path), str(path))]
    if any(mark in name for mark in "*?["):
        return _files(
            f"task.{key}: {name}", sorted(map(Path, glob.glob(str(path), recursive=True)))
        )
    if sources.form_of(path) is None and hub_source.NAME.fullmatch(name):
        return [Source(hub_source.parse(name).stem, name, on_hub=True)]
    return [Source(sources.stem(path), str(path))]  # whoever reads it says that it is not there


def _files(where: str, paths: list[Path]) -> list[Source]:
    """The data files among the paths."""
    data = [
        path
        for path in paths
        if path.is_file() and sources.form_of(path) and path.name not in NOT_DATA
    ]
    if not data:
        raise UserError(f"{where}: no data files there, ending in {', '.join(sources.FORMATS)}")
    return [Source(sources.stem(path), str(path)) for path in data]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
