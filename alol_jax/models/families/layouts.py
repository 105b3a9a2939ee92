"""Rows of a weight table: stored tensors, the parameters in them, and how one becomes the other.

``{i}`` is the layer. Parameters under ``layers/`` stack all layers on their first axis; a row
describes one layer. Kernels are [in, out] here and [out, in] in PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
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

    @property
    def inputs_first(self) -> bool:
        """Whether a kernel is stored as [in, out], as in GPT-2; all others are [out, in]."""
        return self.layout in (AS_IS, CONCATENATED)

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


def side_by_side(sizes: Callable[[ModelConfig], list[int]]) -> Layout:
    """Return the layout of tensors [out, in] whose rows are those of several maps, in turn.

    Args:
        sizes: (config) -> the outputs of each.
    """

    def split(config, x):
        return [part.T for part in np.split(x, list(accumulate(sizes(config)))[:-1])]

    return Layout(split, lambda config, parts: jnp.concatenate([part.T for part in parts]))


QKV = side_by_side(lambda c: [heads * c.head_width for heads in (c.heads, *[c.kv_heads] * 2)])
GATE_UP = side_by_side(lambda c: [c.mlp_width] * 2)


class Kernel(NamedTuple):
    """A stored kernel of a layer: its module there, the linear maps in it, and its layout.

    Biases have the same layout.
    """

    module: str
    maps: tuple[str, ...]
    layout: Layout = TRANSPOSED

    def row(self, layer: str, what: str = "kernel") -> Row:
        """Return the row of the kernel, or of its "bias"."""
        end = {"kernel": "weight", "bias": "bias"}[what]
        paths = tuple(f"layers/{name}/{what}" for name in self.maps)
        return Row(f"{layer}.{self.module}.{end}", paths, self.layout)


def decoder_rows(
    names: tuple[str, str, str],
    norms: Mapping[str, str],
    kernels: Iterable[Kernel],
    *,
    biases: Iterable[str] = (),
    norm: Layout = AS_IS,
) -> tuple[Row, ...]:
    """Return the tensors of a decoder below its head.

    Args:
        names: of the embedding, of a layer, and of the last norm.
        norms: the names of a layer's norms in the file -> ours.
        kernels: those of a layer.
        biases: the linear maps that may have one.
        norm: how norms are stored.
    """
    embedding, layer, last = names
    biased = (kernel for kernel in kernels if set(kernel.maps) & set(biases))
    return (
        Row(f"{embedding}.weight", ("embed/embedding",), AS_IS),
        *(
            Row(f"{layer}.{theirs}.weight", (f"layers/{ours}/scale",), norm)
            for theirs, ours in norms.items()
        ),
        *(kernel.row(layer) for kernel in kernels),
        *(kernel.row(layer, "bias") for kernel in biased),
        Row(f"{last}.weight", ("final_norm/scale",), norm),
    )


def rows_of(rows: Iterable[Row], config: ModelConfig) -> tuple[Row, ...]:
    """Return the rows that a model has: not all have biases, or a head besides the embedding."""
    absent = {f"layers/{name}/bias" for name in set(config.projections) - set(config.biases)}
    absent |= {"head/kernel"} if config.tied_embeddings else set()
    return tuple(row for row in rows if absent.isdisjoint(row.paths))


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
