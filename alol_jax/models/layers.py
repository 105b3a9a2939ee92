"""What differs from layer to layer besides the weights, stacked for the scan over the layers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from alol_jax.models.config import ModelConfig


class Layer(NamedTuple):
    """One layer, or all of them, stacked on the first axis.

    Attributes:
        index: i32[].
        local: bool[], whether it has the sliding window; None: all layers are alike.
        frequency: f32[W/2], of its rotary positions; None: all layers rotate alike, or none does.
        magnitude: f32[], likewise.
    """

    index: jax.Array
    local: jax.Array | None = None
    frequency: jax.Array | None = None
    magnitude: jax.Array | None = None


def stacked_layers(config: ModelConfig) -> Layer:
    """Return the layers of a model, stacked: numpy arrays [L, …]."""
    index, local = np.arange(config.layers, dtype=np.int32), config.local_layers
    if local.all() or not local.any():
        return Layer(index)
    rotary = [config.rotary_of(bool(here)) for here in local]
    if len(set(rotary)) == 1:
        return Layer(index, local)
    frequency = np.stack([one.frequencies() for one in rotary])
    return Layer(index, local, frequency, np.array([one.magnitude for one in rotary], np.float32))
