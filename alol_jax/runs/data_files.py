"""The annotated training rows as files that others read: JSON lines, Arrow, and two data sets.

Each is also a data file of the task ``own``, which reads ``id``, ``prompt``, ``response``,
``source`` and ``reward``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from alol_jax.runs import tfds
from alol_jax.tables import files
from alol_jax.tables.table import Table
from alol_jax.types import Annotated


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """One training row with what `select` found about it."""

    id: str
    prompt: str
    response: str
    source: str
    reward: float
    value: float
    advantage: float
    kept: bool
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    ref_logp: tuple[np.float32, ...]


_RENAMED = {
    "example_id": "id",
    "prompt_text": "prompt",
    "response_text": "response",
    "prompt": "prompt_ids",
    "response": "response_ids",
}


def _training_rows(rows: Table[Annotated]) -> Table[TrainingRow]:
    names = [field.name for field in dataclasses.fields(Annotated)]
    return Table(TrainingRow, {_RENAMED.get(name, name): rows[name] for name in names})


def _jsonl(folder: Path, rows: Table[TrainingRow]) -> None:
    with (folder / "train.jsonl").open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(vars(row), ensure_ascii=False) + "\n")


def _arrow(folder: Path, rows: Table[TrainingRow]) -> None:
    files.write(folder / "train.arrow", rows)


def _tfds(folder: Path, rows: Table[TrainingRow]) -> None:
    tfds.write(folder, "training_rows", rows)


FORMATS: dict[str, Callable[[Path, Table[TrainingRow]], None]] = {
    "jsonl": _jsonl,
    "arrow": _arrow,
    "tfds": _tfds,
}
"""``--format`` -> (folder, rows) -> None."""


def write_training_rows(folder: Path, rows: Table[Annotated], form: str) -> None:
    """Write all rows, kept and dropped, in the form ``form``, a key of `FORMATS`."""
    FORMATS[form](folder, _training_rows(rows))


# for readers of the hub

DATASETS = "datasets"
"""``--format`` of a folder that the library `datasets` loads."""


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One training row for readers: numbers of the whole response, no tokens."""

    id: str
    prompt: str
    response: str
    source: str
    reward: float
    kept: bool
    ref_logp: float  # the sum over the response
    response_tokens: int
    value: float
    advantage: float


_COMPUTED = {"ref_logp": ("ref_logp", "response_tokens"), "advantage": ("value", "advantage")}
"""Column that `select` computes only if it is read -> its columns in a `PublishedRow`."""


def published_columns(reads: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a `PublishedRow` that are known if `select` computed ``reads``."""
    unknown = {name for read, names in _COMPUTED.items() if read not in reads for name in names}
    names = [field.name for field in dataclasses.fields(PublishedRow)]
    return tuple(name for name in names if name not in unknown)


def write_data_set(folder: Path, rows: Table[Annotated], reads: Sequence[str]) -> None:
    """Write data/train-00000-of-00001.parquet with the `published_columns`."""
    same = ("source", "reward", "kept", "value", "advantage")
    columns = {name: rows[name] for name in same} | {
        "id": rows["example_id"],
        "prompt": rows["prompt_text"],
        "response": rows["response_text"],
        "ref_logp": rows["ref_logp"].sums(),
        "response_tokens": rows["response"].lengths,
    }
    (folder / "data").mkdir()
    file = folder / "data" / "train-00000-of-00001.parquet"
    files.write_parquet(file, Table(PublishedRow, columns), published_columns(reads))
