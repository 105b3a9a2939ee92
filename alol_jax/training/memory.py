"""An estimate of the memory of a training step, to choose how many rows a grid has.

`plan` knows better, because it compiles; this only has to stay on the safe side of it.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from alol_jax.devices import processes
from alol_jax.devices.sharding import bytes_per_device
from alol_jax.models.language_model import LanguageModel
from alol_jax.models.transformer import Transformer

ADAM = 4  # copies of what trains, in float32: weights, gradients, two moments
SAFETY = 0.6  # of what is left may be activations


def bytes_per_token(model: Transformer) -> float:
    """Return the bytes that a token needs in the backward pass, without logits.

    Every layer keeps its input, and what `transformer.REMAT` says. One layer at a time has all its
    activations and their gradients.
    """
    c = model.config
    attention = c.heads * c.head_width + 2 * c.kv_heads * c.head_width + c.width
    mlp = 2 * c.mlp_width + c.width
    every = 2 * (attention + mlp)  # norms, rotations and products besides the projections
    kept = {
        "none": every,
        "projections": attention + mlp,
        "attention": attention,
        "full": 0,
    }[model.remat]
    return (c.layers * (c.width + kept) + 2 * every) * jnp.dtype(model.dtype).itemsize


def fits_in_training(lm: LanguageModel, tokens: int, room: float | None = None) -> bool:
    """Return whether a device has room for the activations of a grid of ``tokens`` tokens on it.

    True where a device does not say how much memory it has.

    Args:
        room: bytes of memory on each device; None asks the devices.
    """
    if room is None:
        stats = [device.memory_stats() or {} for device in lm.mesh.local_devices]
        limits = [one.get("bytes_limit") for one in stats]
        here = math.inf if None in limits else min(limits)
        room = min(processes.gather("device memory", here))
    trained, frozen = lm.abstract()
    left = room - bytes_per_device(frozen) - ADAM * bytes_per_device(trained)
    logits = 3 * 4 * min(lm.logprob_chunk / lm.shards, tokens) * lm.transformer.config.vocab_size
    return tokens * bytes_per_token(lm.transformer) + logits < SAFETY * left
