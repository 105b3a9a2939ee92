"""Sliding windows in config.json: which layers have one, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alol_jax.errors import UserError
from alol_jax.models.config import Local, ModelConfig, period_of
from alol_jax.models.families.fields import Fields
from alol_jax.models.rotary import Rotary

KINDS = {"full_attention": False, "sliding_attention": True}
"""``layer_types`` in config.json -> whether the layer is local."""
WINDOW = frozenset({"sliding_window"})
LAYER_TYPES = WINDOW | {"layer_types"}


def window_size(fields: Fields, default: int | None) -> int | None:
    """Read ``sliding_window``; None if it is null, ``default`` if it is missing."""
    if fields.values.get("sliding_window", default) is None:
        return None
    return fields.size("sliding_window", default)


def read_window(fields: Fields, default: int | None) -> Local | None:
    """Read the window that all layers have; None: none has one."""
    window = window_size(fields, default)
    return None if window is None else Local(window)


def read_local(
    fields: Fields, default: Sequence[bool], *, window: int | None, rotary: Rotary | None = None
) -> Local | None:
    """Read which layers have the sliding window.

    Args:
        default: whether each layer has it, where ``layer_types`` is missing or null.
        window: its size; None: there is none.
        rotary: the rotary positions of local layers, if they differ.

    Raises:
        UserError: a layer is of another kind, their number is wrong, or there is no window for
            the layers that have one.
    """
    named = fields.values.get("layer_types")
    kinds = list(default)
    if named is not None:
        if not isinstance(named, list) or any(kind not in KINDS for kind in named):
            raise fields.unimplemented("layer_types", named, ", ".join(KINDS))
        if len(named) != len(kinds):
            raise UserError(
                f"{fields.where}: layer_types names {len(named)} layers, but there are {len(kinds)}"
            )
        kinds = [KINDS[kind] for kind in named]
    if not any(kinds):
        return None
    if window is None:
        raise UserError(
            f"{fields.where}: layers of sliding_attention, but no sliding_window: give its size, "
            "or name full_attention in layer_types"
        )
    return Local(window, period_of(kinds), rotary)


def write_window(config: ModelConfig) -> dict[str, Any]:
    """Return ``sliding_window``, null without one."""
    local = config.attention.local
    return {"sliding_window": None if local is None else local.window}


def write_layer_types(config: ModelConfig) -> dict[str, Any]:
    """Return ``sliding_window`` and ``layer_types``."""
    names = {local: name for name, local in KINDS.items()}
    return write_window(config) | {"layer_types": [names[bool(x)] for x in config.local_layers]}
