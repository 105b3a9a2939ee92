"""Typed fields of a Hugging Face config.json."""

from __future__ import annotations

from typing import Any

from alol_jax.errors import UserError

ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""The name in Hugging Face -> our name."""


class Fields:
    """Typed access to the fields of a config.json; ``where`` names the file in errors."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number; ``default`` if the field is missing or null."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{self.where}: {key} must be a whole number, found {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number; ``default`` if the field is missing."""
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{self.where}: {key} must be a number, found {value!r}")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float | None:
        """Return a number above 0, or None if the field is null; ``default`` if it is missing."""
        if self.values.get(key, default) is None:
            return None
        value = self.number(key, default)
        if not value > 0:
            raise UserError(f"{self.where}: {key} must be above 0, found {value:g}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean; ``default`` if the field is missing."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {key} must be true or false, found {value!r}")
        return value

    def one_of(self, key: str, known: dict[str, str], default: str) -> str:
        """Return the entry of ``known`` that a field names; ``default`` is a name too."""
        name = self.values.get(key, default)
        if name not in known:
            raise self.unimplemented(key, name, ", ".join(known))
        return known[name]

    def unimplemented(self, key: str, value: Any, instead: str) -> UserError:
        """Return the error for a value that is not implemented; ``instead`` lists what is."""
        return UserError(
            f"{self.where}: {key} = {value!r} is not implemented (only {instead} is): "
            "choose another checkpoint"
        )
