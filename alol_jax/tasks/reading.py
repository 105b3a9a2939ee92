"""Reading the rows of a source as examples, whatever their form.

A form of texts and numbers is read by whole columns. Nested forms, and files in which something
is not the same in every row, are read row by row, which knows what is wrong where.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.columns import Ragged, Texts
from alol_jax.tables.table import Table
from alol_jax.tasks import columnar, fields, forms, turns
from alol_jax.tasks.bad_rows import BadRows
from alol_jax.tasks.forms import FORMS, SCORES, Form
from alol_jax.tasks.listed import Opened, Source
from alol_jax.tasks.renaming import Renaming
from alol_jax.types import Example, Progress, unseen

LOOKED_AT = 100  # first rows in which a form is looked for

OF_EVERY_FORM = ("source", "id")
FIELDS = tuple(dict.fromkeys(name for form in FORMS.values() for name in form.fields))
"""All fields that some form reads."""


class Found:
    """What was found while reading, for the notes.

    Attributes:
      rows: (form, its fields that are there) -> rows.
      unread: field that is not read -> rows that have it.
      counted: what the forms count.
    """

    def __init__(self) -> None:
        self.rows: collections.Counter[tuple[str, tuple[str, ...]]] = collections.Counter()
        self.unread: collections.Counter[str] = collections.Counter()
        self.counted: forms.Counts = collections.Counter()

    def add(self, name: str, filled: Mapping[str, int], rows: Table[Example]) -> None:
        """Add the rows of a form, of which ``filled`` says how many have each field."""
        form = FORMS[name]
        scored = len(rows) and rows["rewards"].lengths[0]
        score = next((one for one in SCORES if scored and one in filled), None)
        others = {one for one in SCORES if one != score and one in form.may}
        read = [one for one in form.fields if one in filled and one not in others]
        self.rows[name, tuple(read)] += len(rows)
        known = {*read, *OF_EVERY_FORM}
        self.unread.update({one: count for one, count in filled.items() if one not in known})

    def notes(self) -> list[str]:
        """One sentence for each finding."""
        read = [
            f"Read as {name} ({', '.join(names)}): {count} rows."
            for (name, names), count in self.rows.items()
        ]
        unread = [
            f"Field {name!r} of {count} rows is not read." for name, count in self.unread.items()
        ]
        return [*read, *unread, *(f"{what}: {count}." for what, count in self.counted.items())]


class Read(NamedTuple):
    """What was read of a source."""

    examples: Table[Example]
    first: str  # the place of its first row
    note: str | None  # how it was read, where that is not plain


def read(
    source: Source,
    prefix: str,
    renaming: Renaming,
    bad: BadRows,
    found: Found,
    progress: Progress = unseen,
) -> Read:
    """Read all rows of a source.

    Args:
      prefix: of the ids of rows that have none.
      renaming: which columns are the fields of a form.
      bad: is called with rows that cannot be read.
      found: gets what is to be noted.
      progress: shows how much of a big source has been read.

    Raises:
      UserError: the source cannot be read, its rows have no known form, or `bad` raises it.
    """
    numbers = renaming.numbers((*SCORES, *forms.PAIR_SCORES))
    opened = Opened(source, numbers, progress)
    name, where, first = _form_of(opened, renaming)
    try:
        filled, examples = _by_columns(opened, prefix, renaming, FORMS[name], first)
        if not filled.keys() & set(forms.PAIR_SCORES) and _is_unscored(FORMS[name]):
            found.counted[forms.NO_SCORES] += len(examples)
    except columnar.Irregular:
        filled = collections.Counter()
        rows = _by_rows(opened, prefix, renaming, name, bad, filled, found.counted)
        examples = Table.of(rows, Example)
    found.add(name, filled, examples)
    return Read(examples, where, opened.note())


def _is_unscored(form: Form) -> bool:
    return form.flat is not None and bool(form.flat.unscored)


def _form_of(opened: Opened, renaming: Renaming) -> tuple[str, str, Mapping[str, Any]]:
    """Return the form of the first row that has one, the place of the first row, and that row.

    Raises:
      UserError: there are no rows, none can be read or none of the first has a form; a renamed
        column is not there.
    """
    there: dict[str, None] = {}
    faults: list[UserError] = []
    first = None
    rows = opened.rows(lambda where, error: faults.append(error))
    for where, raw in itertools.islice(rows, LOOKED_AT):
        first = first or where
        there.update(dict.fromkeys(raw))
        row = renaming.row(where, raw)
        name = forms.recognise([one for one in row if fields.has(row, one)])
        if name is not None:
            renaming.check(opened.source.name, there)
            return name, first, row
    if first is None:
        raise faults[0] if faults else UserError(f"{opened.source.name}: the file has no rows")
    renaming.check(opened.source.name, there)
    raise forms.unknown(first, there)


def _by_columns(
    opened: Opened, prefix: str, renaming: Renaming, form: Form, first: Mapping[str, Any]
) -> tuple[dict[str, int], Table[Example]]:
    """Read the source by columns: how many rows have each field, and the examples.

    Args:
      first: a row, which says of what kind an id is.

    Raises:
      Irregular: the form is nested, the rows have different fields, or something is wrong with
        one: `_by_rows` says what.
    """
    if form.flat is None or any(isinstance(first.get(name), list) for name in _texts_of(form)):
        raise columnar.Irregular("a nested form")
    raw = columnar.renamed(opened.table(_kinds(form, renaming, first)), renaming)
    filled = columnar.filled(raw)
    if any(name in filled for name in forms.BEFORE):
        raise columnar.Irregular("turns before the prompt")
    if columnar.whole_numbers(raw, "id"):
        raw = columnar.as_texts(raw, "id")
    prompts, responses, rewards = columnar.flat(raw, form.flat)
    columns = {
        "id": columnar.texts(raw, "id", Texts.numbered(prefix, len(prompts))),
        "prompt": prompts,
        "responses": responses,
        "source": columnar.texts(raw, "source", Texts.repeated(opened.source.label, len(prompts))),
        "rewards": Ragged.empty(len(prompts), np.float64) if rewards is None else rewards,
    }
    return filled, Table(Example, columns)


def _texts_of(form: Form) -> tuple[str, ...]:
    return (*form.flat.prompt, *form.flat.responses)


def _kinds(form: Form, renaming: Renaming, first: Mapping[str, Any]) -> dict[str, type]:
    """Return what the columns of JSON lines hold, so that no parser has to guess."""
    flat = form.flat
    kinds: dict[str, type] = dict.fromkeys((*_texts_of(form), "source"), str)
    kinds |= {name: float for names in flat.scores for name in names if name != "label"}
    kinds |= dict(zip(flat.lists, (list[str], list[float]), strict=False))
    if type(first.get("id")) in (str, int):
        kinds["id"] = type(first["id"])
    for name, column in renaming.columns.items():
        kind = kinds.pop(name, None)
        if isinstance(column, str) and kind is not None:
            kinds[column] = kind
        elif not isinstance(column, str):
            kinds |= dict.fromkeys(column, float)
    return kinds


def _by_rows(
    opened: Opened,
    prefix: str,
    renaming: Renaming,
    name: str,
    bad: BadRows,
    filled: collections.Counter[str],
    counted: forms.Counts,
) -> Iterator[Example]:
    """Yield the examples of the source, and count how many rows have each field."""
    first: tuple[str, bool] | None = None
    form_of = functools.cache(forms.recognise)
    for number, (where, raw) in enumerate(opened.rows(bad), start=1):
        try:
            row = renaming.row(where, raw)
            there = tuple(one for one in row if row[one] is not None)
            _check_form(where, form_of(there), name)
            said = FORMS[name].read(where, row, counted)
            row_id, label = _id(where, row, f"{prefix}{number}"), opened.source.label
            here = (where, bool(said.rewards))
            check_both_or_neither(first or here, here)
            source = fields.field(where, row, "source", str) if "source" in there else label
        except UserError as error:
            bad(where, error)
            continue
        first = first or here
        filled.update(there)
        if turns.is_transcript(said.prompt):
            counted[turns.SEVERAL] += 1
        yield Example(row_id, said.prompt, said.responses, source, said.rewards)


def _check_form(where: str, found: str | None, name: str) -> None:
    """Check that a row is of the form ``name``, or of none, whose fault reading it says."""
    if found not in (None, name):
        raise UserError(
            f"{where}: reads as {found}, but earlier rows as {name}: one form a file, or name the "
            "fields in task.columns"
        )


def _id(where: str, row: Mapping[str, Any], default: str) -> str:
    if not fields.has(row, "id"):
        return default
    if isinstance(row["id"], int):
        return str(fields.field(where, row, "id", int))
    return fields.field(where, row, "id", str)


def check_both_or_neither(one: tuple[str, bool], other: tuple[str, bool]) -> None:
    """Check that two rows, (place, whether it has a reward), are alike.

    Raises:
      UserError: one has a reward, the other has not.
    """
    if one[1] != other[1]:
        with_reward, without = (one[0], other[0]) if one[1] else (other[0], one[0])
        raise UserError(
            f"{without}: no field 'reward', but {with_reward} has one; give all rows a reward, "
            "or none and score them"
        )
