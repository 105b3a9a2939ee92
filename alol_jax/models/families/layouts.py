"""Rows of a weight table: stored tensors, the parameters in them, and how one becomes the other.

``{i}`` is the layer. Parameters under ``layers/`` stack all layers on their first axis; a row
describes one layer. Kernels are [in, out] here and [out, in] in PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.config import ModelConfig

Array = np.ndarray


class Layout(NamedTuple):
    """Conversion between a stored tensor and the parameters that it holds.

    ``join`` is the inverse of ``split``, in `jax.numpy`, so that it also works on shapes alone.
    """

    split: Callable[[ModelConfig, Array], Sequence[Array]]
    join: Callable[[ModelConfig, Sequence], object]


class Row(NamedTuple):
    """A stored tensor: its name, the parameters that it holds, and their layout."""

    name: str
    paths: tuple[str, ...]
    layout: Layout

    @property
    def layered(self) -> bool:
        return self.paths[0].startswith("layers/")

    def names(self, config: ModelConfig) -> list[str]:
        """Return the tensor names: one, or one per layer."""
        return [self.name.format(i=i) for i in range(config.layers if self.layered else 1)]

    def stored_shape(
        self, config: ModelConfig, ours: Mapping[str, jax.ShapeDtypeStruct]
    ) -> tuple[int, ...]:
        """Return the shape of the tensor (of one layer); ``ours`` holds the parameters by path."""
        parts = [
            jax.ShapeDtypeStruct(ours[path].shape[self.layered :], jnp.float32)
            for path in self.paths
        ]
        return tuple(jax.eval_shape(functools.partial(self.layout.join, config), parts).shape)


AS_IS = Layout(lambda c, x: (x,), lambda c, parts: parts[0])
TRANSPOSED = Layout(lambda c, x: (x.T,), lambda c, parts: parts[0].T)
CONCATENATED = Layout(  # GPT-2's Conv1D, which stores [in, out]
    lambda c, x: np.split(x, 3, axis=-1), lambda c, parts: jnp.concatenate(parts, axis=-1)
)


def head(name: str) -> tuple[Row]:
    """Return the row of a head's kernel."""
    return (Row(f"{name}.weight", ("head/kernel",), TRANSPOSED),)


def layer_norm(stem: str, ours: str) -> tuple[Row, Row]:
    """Return the rows of a LayerNorm's scale and bias."""
    return (
        Row(f"{stem}.weight", (f"{ours}/scale",), AS_IS),
        Row(f"{stem}.bias", (f"{ours}/bias",), AS_IS),
    )


def affine(stem: str, ours: str, kernel: Layout = TRANSPOSED) -> tuple[Row, Row]:
    """Return the rows of a linear map's kernel and bias."""
    return (
        Row(f"{stem}.weight", (f"{ours}/kernel",), kernel),
        Row(f"{stem}.bias", (f"{ours}/bias",), AS_IS),
    )


def packed_qkv(stem: str, kernel: Layout, bias: Layout) -> tuple[Row, Row]:
    ours = [f"layers/{x}_proj" for x in "qkv"]
    return (
        Row(f"{stem}.weight", tuple(f"{path}/kernel" for path in ours), kernel),
        Row(f"{stem}.bias", tuple(f"{path}/bias" for path in ours), bias),
    )


SCORE = (Row("score.weight", ("score/kernel",), TRANSPOSED),)
"""The head of most sequence classifiers."""
