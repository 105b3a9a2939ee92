"""The annotated training rows as files that others read: JSON lines, Arrow, tensorflow-datasets.

Each is also a data file of the task ``own``, which reads ``id``, ``prompt``, ``response``,
``source`` and ``reward``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
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
