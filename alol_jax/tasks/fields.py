"""The fields of a raw row, checked: what is missing or of another kind is named with its place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from alol_jax.errors import UserError

Kind = TypeVar("Kind", str, int, float, list, dict)

_SURROGATE = re.compile("[\ud800-\udfff]")
_KIND_NAMES = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a map"}


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
