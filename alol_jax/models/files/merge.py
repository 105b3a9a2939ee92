"""Merging adapters into their base, and a model as Hugging Face tensors, one at a time, in float32.

With base W and adapter A B, a merged kernel is W + alpha/r · A B, computed in float32. At most one
stored tensor of the base is in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.blocks import LoRA
from alol_jax.models.config import ModelConfig
from alol_jax.models.families.layouts import Row, rows_of
from alol_jax.models.families.registry import ARCHITECTURES, FAMILIES
from alol_jax.models.files.convert import Checkpoint
from alol_jax.models.nf4 import NF4, dequantise, quantise
from alol_jax.models.transformer import is_block_kernel, param_shapes

Weight = Callable[[str, int], np.ndarray]
"""(path of a parameter, layer) -> its value in float32; layer 0 for parameters without layers."""


def weights_from_params(params: Mapping[str, Any]) -> Weight:
    """Return the weights of parameters in memory."""

    def weight(path: str, layer: int) -> np.ndarray:
        leaf = params[path][layer] if path.startswith("layers/") else params[path]
        return np.asarray(leaf, np.float32)

    return weight


def weights_from_checkpoint(checkpoint: Checkpoint) -> Weight:
    """Return the weights of a checkpoint, read on demand."""
    places = {path: (row, i) for row in checkpoint.rows for i, path in enumerate(row.paths)}

    parts = functools.lru_cache(maxsize=1)(checkpoint.parts)  # one tensor may hold q, k and v

    def weight(path: str, layer: int) -> np.ndarray:
        row, i = places[path]
        return np.asarray(parts(row, layer)[i], np.float32)

    return weight


def dequantised_weights(weight: Weight, nf4: NF4) -> Weight:
    """Quantise to NF4 and back: the base weights on which the adapters were trained."""
    round_trip = jax.jit(lambda kernel: dequantise(quantise(kernel, nf4=nf4), jnp.float32))

    def found(path: str, layer: int) -> np.ndarray:
        value = weight(path, layer)
        return np.asarray(round_trip(value)) if is_block_kernel(path) else value

    return found


def merged_weights(weight: Weight, lora: LoRA, adapters: Mapping[str, Any]) -> Weight:
    """W + alpha/r · A B for kernels with an adapter, W for all others.

    Args:
        weight: the base.
        lora: its scale is alpha/r.
        adapters: ``layers/<module>/lora_a`` [L, in, r] and ``lora_b`` [L, r, out].
    """

    def found(path: str, layer: int) -> np.ndarray:
        stem, _, leaf = path.rpartition("/")
        value = weight(path, layer)
        if leaf != "kernel" or f"{stem}/lora_a" not in adapters:
            return value
        a, b = (np.asarray(adapters[f"{stem}/lora_{x}"][layer], np.float32) for x in "ab")
        return value + np.float32(lora.scale) * (a @ b)

    return found


def hf_rows(config: ModelConfig, architecture: str) -> tuple[Row, ...]:
    """Return the tensors of a Hugging Face directory, without a tied head."""
    body, head = FAMILIES[config.family].body, ARCHITECTURES[architecture].head
    return rows_of(body + head, config)


class StoredTensors:
    """The tensors of a file, by name, made from weights.

    ``shapes`` is in the order of the rows.
    """

    def __init__(self, config: ModelConfig, rows: Sequence[Row], weight: Weight) -> None:
        self._config, self._weight = config, weight
        self._row_of: dict[str, tuple[Row, int]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        ours = param_shapes(config)
        for row in rows:
            shape = row.stored_shape(config, ours)
            for layer, name in enumerate(row.names(config)):
                self.shapes[name], self._row_of[name] = shape, (row, layer)

    def read(self, name: str) -> np.ndarray:
        """Return the tensor ``name``, f32."""
        row, layer = self._row_of[name]
        parts = [self._weight(path, layer) for path in row.paths]
        return np.asarray(row.layout.join(self._config, parts))
