"""A stage's result <-> files: rows as a table, parameters as a checkpoint, the rest as JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alol_jax.runs import checkpoint, tables
from alol_jax.types import Annotated, Example, Params, Scored

ROWS = (Example, Scored, Annotated)
"""A field that is a tuple of these is written as a table of its own."""


def save_result(folder: Path, result: Any) -> None:
    """Writes every field of a frozen dataclass: ``<field>/`` or a key of ``result.json``."""
    plain = {}
    hints = typing.get_type_hints(type(result))
    for field in dataclasses.fields(result):
        value, row_type = getattr(result, field.name), _row_type(hints[field.name])
        if row_type is not None:
            tables.write(_fresh(folder / field.name), row_type.__name__.lower(), value, row_type)
        elif hints[field.name] == Params:
            checkpoint.save_params(_fresh(folder / field.name), value)
        else:
            plain[field.name] = _plain(value)
    (folder / "result.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")


def load_result(folder: Path, result_type: type) -> Any:
    """What `save_result` wrote."""
    names = [field.name for field in dataclasses.fields(result_type)]
    return result_type(*load_fields(folder, result_type, names))


def load_fields(folder: Path, result_type: type, names: Sequence[str]) -> tuple[Any, ...]:
    """These fields of what `save_result` wrote, in the order of ``names``.

    The others are not read: a policy's curves come without its parameters.
    """
    plain = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    hints = typing.get_type_hints(result_type)
    return tuple(_field(folder, name, hints[name], plain) for name in names)


def _field(folder: Path, name: str, hint: Any, plain: dict[str, Any]) -> Any:
    row_type = _row_type(hint)
    if row_type is not None:
        return tables.read(folder / name, row_type)
    if hint == Params:
        return checkpoint.load_params(folder / name)
    return _revive(hint, plain[name])


def _row_type(hint: Any) -> type | None:
    arguments = typing.get_args(hint)
    return arguments[0] if len(arguments) == 2 and arguments[0] in ROWS else None


def _fresh(folder: Path) -> Path:
    """A place that a killed save may have half filled is emptied first."""
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _revive(hint: Any, value: Any) -> Any:
    """``value`` from JSON as the annotated type: dataclasses, tuples, optionals, scalars."""
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _revive(hints[name], item) for name, item in value.items()})
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else _revive(arguments[0], value)
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(_revive(arguments[0], item) for item in value)
        return tuple(_revive(a, item) for a, item in zip(arguments, value, strict=True))
    return value
