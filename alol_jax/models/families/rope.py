"""Rotary embeddings in config.json: the fields of transformers 4 and of 5, read and written.

transformers 4 has ``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling`` at the top level;
transformers 5 has all of them in ``rope_parameters``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from alol_jax.errors import UserError
from alol_jax.models.families.fields import Fields
from alol_jax.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rotary,
    Scaling,
    YarnScaling,
)

_BASES = ("rope_theta", "rotary_emb_base")
_SHARES = ("partial_rotary_factor", "rotary_pct")
ORIGINAL = "original_max_position_embeddings"
ROPE = frozenset({"rope_parameters", "rope_scaling", *_BASES, *_SHARES})
"""The fields of config.json that `read_rotary` uses."""


def _linear(rope: Fields, fields: Fields) -> Scaling:
    return LinearScaling(rope.number("factor"))


def _dynamic(rope: Fields, fields: Fields) -> Scaling:
    return DynamicScaling(rope.number("factor"), fields.size("max_position_embeddings"))


def _llama3(rope: Fields, fields: Fields) -> Scaling:
    return Llama3Scaling(
        factor=rope.number("factor"),
        low=rope.number("low_freq_factor"),
        high=rope.number("high_freq_factor"),
        original=_original(rope, fields),
    )


def _yarn(rope: Fields, fields: Fields) -> Scaling:
    original = _original(rope, fields)
    factor = rope.positive("factor") or fields.size("max_position_embeddings") / original
    given, scales = rope.positive("attention_factor"), ("mscale", "mscale_all_dim")
    one, every = (rope.number(key, 0.0) if rope.values.get(key) else 0.0 for key in scales)
    if given is None and one and every:
        given = _yarn_magnitude(factor, one) / _yarn_magnitude(factor, every)
    return YarnScaling(
        factor=factor,
        original=original,
        fast=rope.positive("beta_fast") or 32.0,
        slow=rope.positive("beta_slow") or 1.0,
        whole=rope.flag("truncate", True),
        magnitude=_yarn_magnitude(factor, 1.0) if given is None else given,
    )


def _yarn_magnitude(factor: float, scale: float) -> float:
    """YaRN's factor of cosine and sine (section 3.4 of the paper)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(rope: Fields, fields: Fields) -> Scaling:
    original = _original(rope, fields)
    factor = rope.positive("factor") or fields.size("max_position_embeddings") / original
    magnitude = rope.positive("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + max(math.log(factor), 0.0) / math.log(original))
    return LongRope(
        short=_numbers(rope, "short_factor"),
        long=_numbers(rope, "long_factor"),
        original=original,
        magnitude=magnitude,
    )


def _original(rope: Fields, fields: Fields) -> int:
    """Return the positions of pre-training, which some files state outside of ``rope_scaling``."""
    outside = fields.size(ORIGINAL, fields.size("max_position_embeddings"))
    return rope.size(ORIGINAL, outside)


def _numbers(rope: Fields, key: str) -> tuple[float, ...]:
    values = rope.values.get(key)
    if not isinstance(values, list) or not values:
        raise UserError(f"{rope.where}: {key} must be a list of numbers, found {values!r}")
    return tuple(Fields({key: value}, rope.where).number(key) for value in values)


class _Kind(NamedTuple):
    """A value of ``rope_type``: its further fields, and its reader."""

    keys: frozenset[str]
    read: Callable[[Fields, Fields], Scaling]


_KINDS: dict[str, _Kind] = {
    "linear": _Kind(frozenset({"factor"}), _linear),
    "dynamic": _Kind(frozenset({"factor"}), _dynamic),
    "llama3": _Kind(
        frozenset({"factor", "low_freq_factor", "high_freq_factor", ORIGINAL}), _llama3
    ),
    "yarn": _Kind(
        frozenset(
            "factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate".split()
        )
        | {ORIGINAL},
        _yarn,
    ),
    "longrope": _Kind(
        frozenset({"factor", "attention_factor", "short_factor", "long_factor", ORIGINAL}),
        _longrope,
    ),
}


_KINDS["su"] = _KINDS["longrope"]  # its first name


def read_rotary(
    fields: Fields, head_width: int, *, share: float = 1.0, theta: float = 1e4
) -> Rotary:
    """Read the rotary embeddings: base, rotated share of a head, and scaling.

    Args:
        share: the default for the rotated share.
        theta: the default for the base.
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
    return Rotary(thetas[0] if thetas else theta, width, scalings[0] if scalings else None)


def _stated(fields: Fields, keys: Sequence[str]) -> list[float]:
    """Return the numbers under ``keys`` that are present and not null."""
    return [fields.number(key) for key in keys if fields.values.get(key) is not None]


def _scaling(rope: Fields, fields: Fields, key: str) -> Scaling | None:
    kind = rope.values.get("rope_type", rope.values.get("type", "default"))
    others = set(rope.values) - {"rope_type", "type", *_BASES, *_SHARES}
    if kind == "default" and not others:
        return None
    if kind not in _KINDS or others - _KINDS[kind].keys:
        raise fields.unimplemented(key, rope.values, f"rope_type default, {', '.join(_KINDS)}")
    return _KINDS[kind].read(rope, fields)


def rope_parameters(rotary: Rotary) -> dict[str, Any]:
    """Return ``rope_parameters`` for ``rotary``, without the rotated share."""
    return {"rope_theta": rotary.theta} | _written(rotary.scaling)


def _written(scaling: Scaling | None) -> dict[str, Any]:
    match scaling:
        case None:
            return {"rope_type": "default"}
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor, _):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling(factor, low, high, original):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                ORIGINAL: original,
            }
        case YarnScaling(factor, original, fast, slow, whole, magnitude):
            return {
                "rope_type": "yarn",
                "factor": factor,
                "attention_factor": magnitude,
                "beta_fast": fast,
                "beta_slow": slow,
                "truncate": whole,
                ORIGINAL: original,
            }
        case LongRope(short, long, original, magnitude):
            return {
                "rope_type": "longrope",
                "short_factor": list(short),
                "long_factor": list(long),
                "attention_factor": magnitude,
                ORIGINAL: original,
            }
    raise ValueError(f"no rope_parameters for {scaling!r}")
