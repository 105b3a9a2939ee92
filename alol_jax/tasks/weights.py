"""How often the rows of a source are read: a share of them, or some of them more than once.

A weight below 1 keeps that share of the rows, before the data is split. A weight above 1 repeats
training rows, after the data is split, so that it moves no prompt from one split to another. Both
choose by hash order, so that a choice is the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alol_jax.tables.table import Table, concatenate
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.listed import Source
from alol_jax.types import Example


def shared(source: Source, rows: Table[Example], notes: list[str]) -> Table[Example]:
    """Return the source's share of its rows, in their order, and note how many they are."""
    count = round(min(source.weight, 1.0) * len(rows))
    if count == len(rows):
        return rows
    notes.append(f"{source.name}: {count} of {len(rows)} rows taken, its share.")
    return rows.take(np.sort(splitting.in_hash_order(rows)[:count]))


def repeated(
    train: Table[Example], rows: Sequence[tuple[Source, Table[Example]]], notes: list[str]
) -> Table[Example]:
    """Repeat the training rows of sources with a weight above 1, and note how many are added.

    A row of a source of weight 2.5 is there twice, and half of these rows a third time. Every
    repetition of a prompt is an example of its own, with those of its responses that are read so
    often; so the objectives that compare the responses of a prompt repeat its pairs, too.

    Args:
      train: the training examples, one per prompt.
      rows: of each source, before they are joined by prompt.

    Returns:
      The examples, followed by the second times, the third times, …, with ids like "a (time 2)".
    """
    prompts = set(train["prompt"])
    again: dict[int, list[Table[Example]]] = {}
    for source, its_rows in rows:
        if source.weight <= 1:
            continue
        here = its_rows.where(np.fromiter((p in prompts for p in its_rows["prompt"]), bool))
        added = round((source.weight - 1) * len(here))
        order = splitting.in_hash_order(here)
        for time, start in enumerate(range(0, added, max(len(here), 1)), start=2):
            again.setdefault(time, []).append(here.take(np.sort(order[: added - start])))
        notes.append(
            f"{source.name}: its {len(here)} training rows have weight {source.weight:g}: "
            f"{added} added."
        )
    parts = [train]
    for time, tables in sorted(again.items()):
        part = concatenate(tables)
        part = splitting.group_by_prompt(part, part["prompt"])
        parts.append(part.replace(id=[f"{name} (time {time})" for name in part["id"]]))
    return concatenate(parts)
