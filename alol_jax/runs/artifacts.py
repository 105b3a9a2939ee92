"""Save and load a stage's result: rows as tables, parameters as checkpoints, the rest as JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Sequence
from typing import Any

from alol_jax import paths
from alol_jax.devices import processes
from alol_jax.paths import AnyPath
from alol_jax.runs import checkpoint
from alol_jax.tables import files
from alol_jax.tables.table import Table
from alol_jax.types import Params


def save_result(folder: AnyPath, result: Any) -> None:
    """Save a frozen dataclass: fields as ``<field>.arrow``, ``<field>/`` or in ``result.json``.

    Of several processes the first one writes; of parameters each writes its part.
    """
    plain = {}
    hints = _hints(type(result))
    for field in dataclasses.fields(result):
        value, row_type = getattr(result, field.name), _row_type(hints[field.name])
        if hints[field.name] == Params:
            place = folder / field.name  # a killed save may have left something there
            processes.from_first(f"saving {field.name}", functools.partial(paths.remove, place))
            checkpoint.save_params(place, value)
        elif not processes.is_first():
            continue
        elif row_type is not None:
            paths.remove(_table(folder, field.name))
            files.write(_table(folder, field.name), value)
        else:
            plain[field.name] = _to_json(value)
    if processes.is_first():
        paths.write_text(folder / "result.json", json.dumps(plain, indent=1))


def load_result(folder: AnyPath, result_type: type) -> Any:
    """Load a result saved by `save_result`."""
    names = [field.name for field in dataclasses.fields(result_type)]
    return result_type(*load_fields(folder, result_type, names))


def load_fields(folder: AnyPath, result_type: type, names: Sequence[str]) -> tuple[Any, ...]:
    """Load only the fields ``names`` of a saved result, in that order.

    This can read, say, a policy's curves without its parameters.
    """
    plain = json.loads(paths.read_text(folder / "result.json"))
    hints = _hints(result_type)
    return tuple(_field(folder, name, hints[name], plain) for name in names)


def _hints(result_type: type) -> dict[str, Any]:
    """Return the type of each field; `types` knows tables by name alone, so that it needs none."""
    return typing.get_type_hints(result_type, localns={"Table": Table})


def _field(folder: AnyPath, name: str, hint: Any, plain: dict[str, Any]) -> Any:
    row_type = _row_type(hint)
    if row_type is not None:
        return files.read(_table(folder, name), row_type)
    if hint == Params:
        return checkpoint.load_params(folder / name)
    return _from_json(hint, plain[name])


def _row_type(hint: Any) -> type | None:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Table else None


def _table(folder: AnyPath, name: str) -> AnyPath:
    return folder / f"{name}.arrow"


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(hint: Any, value: Any) -> Any:
    """Convert a JSON value to the annotated type: dataclass, tuple, optional or scalar."""
    if dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return hint(**{name: _from_json(hints[name], item) for name, item in value.items()})
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return None if value is None else _from_json(arguments[0], value)
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(_from_json(arguments[0], item) for item in value)
        return tuple(_from_json(a, item) for a, item in zip(arguments, value, strict=True))
    return value
