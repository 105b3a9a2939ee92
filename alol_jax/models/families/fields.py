"""Typed fields of a Hugging Face config.json, and its two formats for rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alol_jax.errors import UserError
from alol_jax.models.config import LinearScaling, Llama3Scaling, Rotary

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


_BASES = ("rope_theta", "rotary_emb_base")
_SHARES = ("partial_rotary_factor", "rotary_pct")
ROPE = frozenset({"rope_parameters", "rope_scaling", *_BASES, *_SHARES})
_ROPE_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        }
    ),
}


def read_rotary(fields: Fields, head_width: int, *, share: float) -> Rotary:
    """Read the rotary embeddings: base, rotated share of a head, and scaling.

    They are at the top level (transformers 4) or in ``rope_parameters`` (5). ``share`` is the
    default for the rotated share.
    """
    thetas, shares, scalings = _stated(fields, _BASES), _stated(fields, _SHARES), []
    for key in ("rope_parameters", "rope_scaling"):
        rope = fields.values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise fields.unimplemented(key, rope, "an object")
        inner = Fields(rope, f"{fields.where}: {key}")
        scalings.append(_scaling(inner, fields, key))
        thetas += _stated(inner, _BASES)
        shares += _stated(inner, _SHARES)
    for name, said in (
        ("rope_theta", thetas),
        ("partial_rotary_factor", shares),
        ("rotary scaling", scalings),
    ):
        if len(set(said)) > 1:
            raise UserError(f"{fields.where}: {name} is stated twice and differs: {said}")
    width = int(head_width * (shares[0] if shares else share))
    return Rotary(thetas[0] if thetas else 1e4, width, scalings[0] if scalings else None)


def _stated(fields: Fields, keys: Sequence[str]) -> list[float]:
    """Return the numbers under ``keys`` that are present and not null."""
    return [fields.number(key) for key in keys if fields.values.get(key) is not None]


def _scaling(rope: Fields, fields: Fields, key: str) -> LinearScaling | Llama3Scaling | None:
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    known = _ROPE_KEYS.get(kind, frozenset())
    others = set(rope.values) - {"rope_type", "type", *_BASES, *_SHARES}
    if kind not in _ROPE_KEYS or others - known:
        raise fields.unimplemented(key, rope.values, f"rope_type {', '.join(_ROPE_KEYS)}")
    if kind == "default":
        return None
    factor = rope.number("factor")
    if kind == "linear":
        return LinearScaling(factor)
    return Llama3Scaling(
        factor=factor,
        low=rope.number("low_freq_factor"),
        high=rope.number("high_freq_factor"),
        original=rope.size(
            "original_max_position_embeddings", fields.values.get("max_position_embeddings")
        ),
    )


def rope_parameters(rotary: Rotary) -> dict[str, Any]:
    """Return ``rope_parameters`` for ``rotary``, without the rotated share."""
    found: dict[str, Any] = {"rope_theta": rotary.theta, "rope_type": "default"}
    if isinstance(rotary.scaling, LinearScaling):
        found |= {"rope_type": "linear", "factor": rotary.scaling.factor}
    if isinstance(rotary.scaling, Llama3Scaling):
        found |= {
            "rope_type": "llama3",
            "factor": rotary.scaling.factor,
            "low_freq_factor": rotary.scaling.low,
            "high_freq_factor": rotary.scaling.high,
            "original_max_position_embeddings": rotary.scaling.original,
        }
    return found
