"""A trained model as the tensors of a Hugging Face directory, one at a time, in float32.

With base W and adapter A B a merged kernel is W + alpha/r · A B, computed in float32. Nothing here
holds more than one stored tensor of the base.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.blocks import LoRA
from alol_jax.models.config import ModelConfig
from alol_jax.models.files.convert import Checkpoint
from alol_jax.models.files.weight_names import ARCHITECTURES, BODIES, Row
from alol_jax.models.nf4 import NF4, dequantise, quantise
from alol_jax.models.transformer import Transformer

Weight = Callable[[str, int], np.ndarray]
"""(path of a parameter, layer) -> its value in float32; of a parameter without layers, layer 0."""


def weights_from_params(params: Mapping[str, Any]) -> Weight:
    """The weights of parameters in memory."""

    def weight(path: str, layer: int) -> np.ndarray:
        leaf = params[path][layer] if path.startswith("layers/") else params[path]
        return np.asarray(leaf, np.float32)

    return weight


def weights_from_checkpoint(checkpoint: Checkpoint) -> Weight:
    """The weights of a checkpoint, read as they are asked for."""
    places = {path: (row, i) for row in checkpoint.rows for i, path in enumerate(row.paths)}

    @functools.lru_cache(maxsize=1)  # q, k and v of one stored tensor are asked for in turn
    def parts(row: Row, layer: int):
        stored = checkpoint.weights.read(row.name.format(i=layer))
        return row.layout.split(checkpoint.config, stored)

    def weight(path: str, layer: int) -> np.ndarray:
        row, i = places[path]
        return np.asarray(parts(row, layer)[i], np.float32)

    return weight


def dequantised_weights(weight: Weight, nf4: NF4) -> Weight:
    """The weights that an NF4 base stands for: what its adapters were trained on."""
    there_and_back = jax.jit(lambda kernel: dequantise(quantise(kernel, nf4=nf4), jnp.float32))

    def found(path: str, layer: int) -> np.ndarray:
        value = weight(path, layer)
        if not (path.startswith("layers/") and path.endswith("/kernel")):
            return value
        return np.asarray(there_and_back(value))

    return found


def merged_weights(weight: Weight, lora: LoRA, adapters: Mapping[str, Any]) -> Weight:
    """W + alpha/r · A B where a kernel has an adapter, W elsewhere.

    Args:
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


class HFTensors:
    """The tensors of a Hugging Face directory, by name, made of weights.

    ``shapes`` are in the order of the model.
    """

    def __init__(self, config: ModelConfig, architecture: str, weight: Weight) -> None:
        self._config, self._weight = config, weight
        self._homes: dict[str, tuple[Row, int]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        ours = jax.eval_shape(
            Transformer(config, None, jnp.dtype("float32"), False).init, jax.random.key(0)
        )
        head = () if config.tied_embeddings else ARCHITECTURES[architecture].head
        for row in BODIES[config.family] + head:
            shape = row.stored_shape(config, ours)
            for layer, name in enumerate(row.names(config)):
                self.shapes[name], self._homes[name] = shape, (row, layer)

    def read(self, name: str) -> np.ndarray:
        """The tensor called ``name``, f32."""
        row, layer = self._homes[name]
        parts = [self._weight(path, layer) for path in row.paths]
        return np.asarray(row.layout.join(self._config, parts))
