"""``config.task.columns``: which columns of the data are the fields of a form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from alol_jax.errors import UserError
from alol_jax.tasks import fields


class Renaming(NamedTuple):
    """Field -> its column, or several columns of numbers with the weights of their sum."""

    columns: Mapping[str, str | Mapping[str, float]]

    @classmethod
    def of(cls, options: Mapping[str, Any], known: Collection[str]) -> Renaming:
        """Read the option.

        Args:
          options: field -> a column, several of them, or several with their weights.
          known: the fields that a row can have.

        Raises:
          UserError: a field is unknown, or its value is none of the three.
        """
        columns: dict[str, str | dict[str, float]] = {}
        for name, value in options.items():
            if name not in known:
                raise UserError.unknown(f"task.columns: no form has a field {name!r}", name, known)
            if isinstance(value, str):
                columns[name] = value
            elif isinstance(value, tuple | list) and value and all(map(_is_name, value)):
                columns[name] = dict.fromkeys(value, 1.0)
            elif hasattr(value, "items") and all(map(_is_weighted, value.items())) and len(value):
                columns[name] = {column: float(weight) for column, weight in value.items()}
            else:
                shown = dict(value) if hasattr(value, "items") else value
                raise UserError(
                    f"task.columns: {name!r} is {shown!r}: expected the name of a column, several "
                    "names, whose numbers are added, or {name: weight}"
                )
        return cls(columns)

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are named."""
        values = self.columns.values()
        each = [(value,) if isinstance(value, str) else tuple(value) for value in values]
        return tuple(dict.fromkeys(name for names in each for name in names))

    def numbers(self, names: Collection[str]) -> set[str]:
        """Return the columns that are these fields, or parts of a sum."""
        renamed = (self.columns.get(name, name) for name in names)
        return {one for value in renamed for one in ((value,) if _is_name(value) else value)}

    def check(self, where: str, names: Collection[str]) -> None:
        """Check that each named column is among ``names``.

        Raises:
          UserError: one is not; says what is there.
        """
        for column in self.used:
            if column not in names:
                raise UserError.unknown(
                    f"{where}: task.columns names {column!r}, which is not there", column, names
                )

    def row(self, where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row with the fields of a form.

        Raises:
          UserError: a column of a sum holds something else than numbers.
        """
        if not self.columns:
            return row
        named = {self.kept(name): row[name] for name in row if name not in self.used}
        for name, columns in self.columns.items():
            if isinstance(columns, str):
                named[name] = row.get(columns)
            elif all(fields.has(row, column) for column in columns):
                parts = (w * fields.field(where, row, c, float) for c, w in columns.items())
                named[name] = sum(parts)
        return named

    def kept(self, name: str) -> str:
        """Return what a column that is not named is called: another one if its name is taken."""
        return f"{name} (not renamed)" if name in self.columns else name


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_weighted(item: tuple[Any, Any]) -> bool:
    return isinstance(item[1], int | float) and not isinstance(item[1], bool)
