"""The annotated training rows as files that others read: JSON lines, Arrow, tensorflow-datasets.

Each is also a data file of the task ``jsonl``, which reads ``id``, ``prompt``, ``response``,
``source`` and ``reward``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from alol_jax.runs import tables, tfds
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
    ref_logp: tuple[float, ...]


def _training_row(row: Annotated) -> TrainingRow:
    return TrainingRow(
        id=row.example_id,
        prompt=row.prompt_text,
        response=row.response_text,
        source=row.source,
        reward=row.reward,
        value=row.value,
        advantage=row.advantage,
        kept=row.kept,
        prompt_ids=row.prompt,
        response_ids=row.response,
        ref_logp=row.ref_logp,
    )


def _jsonl(folder: Path, rows: Sequence[TrainingRow]) -> None:
    with (folder / "train.jsonl").open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")


def _arrow(folder: Path, rows: Sequence[TrainingRow]) -> None:
    tables.write(folder / "train.arrow", rows, TrainingRow)


def _tfds(folder: Path, rows: Sequence[TrainingRow]) -> None:
    tfds.write(folder, "training_rows", rows, TrainingRow)


FORMATS: dict[str, Callable[[Path, Sequence[TrainingRow]], None]] = {
    "jsonl": _jsonl,
    "arrow": _arrow,
    "tfds": _tfds,
}
"""``--format`` -> (folder, rows) -> None."""


def write_training_rows(folder: Path, rows: Sequence[Annotated], form: str) -> None:
    """Write all rows, kept and dropped, in the form ``form``, a key of `FORMATS`."""
    FORMATS[form](folder, [_training_row(row) for row in rows])
