"""Prompts for decoding: in batches of a few fixed widths, or side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import shards
from alol_jax.text.packing import GridShape, Lengths, cheapest, pack

SAMPLE = 512  # prompts on which the size of the grid that reads them is chosen
STRETCH = (1.0, 1.25, 1.5, 2.0)  # widths of that grid, by the columns of a prompt


class Batching(NamedTuple):
    """How rows of different lengths are grouped into batches of a few fixed widths."""

    widths: tuple[int, ...]  # the compiled lengths
    size: int  # rows per batch; a smaller last batch is filled with repeated rows
    pad_id: int
    mesh: Mesh  # shards the rows of a batch
    multiple: int = 8  # of the lengths that the kernel can read
    lengths: np.ndarray | None = None  # of all prompts that will come; None: of those of one call
    doubling: float = 1300.0  # the width at which attention costs about as much as all else

    def batches(self, lengths: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        """Return (width, at most ``size`` row indices) of each batch, narrowest first.

        Each row gets the smallest width that fits it. No row may exceed the largest width.
        """
        widths = np.array(sorted(set(self.widths)))
        fitting = widths[np.searchsorted(widths, lengths)]
        groups = ((int(width), np.flatnonzero(fitting == width)) for width in widths)
        return [
            (width, group[first : first + self.size])
            for width, group in groups
            for first in range(0, len(group), self.size)
        ]

    @property
    def groups(self) -> int:
        """D, the devices that share out the rows."""
        return shards(self.mesh)

    def columns(self, longest: int) -> int:
        """Return P, the columns of the cache for prompts of at most ``longest`` tokens."""
        return min(width for width in self.widths if width >= longest)

    def grid(self, lengths: np.ndarray, longest: int, newcomers: int) -> tuple[int, int, int]:
        """Return the size in which about ``newcomers`` prompts of a group are read side by side.

        Args:
            lengths: of the prompts of this call.
            longest: of those that are still to be read or answered.

        Returns:
            Rows of a group, T, and P, the columns that a prompt has in the cache.
        """
        lengths = lengths if self.lengths is None else self.lengths
        columns = self.columns(longest)
        lengths = lengths[lengths <= columns][:SAMPLE]
        sample = Lengths(lengths, np.zeros_like(lengths))
        wide = {-(-int(s * columns) // self.multiple) * self.multiple for s in STRETCH}
        shapes = [GridShape(1, width, 1, width) for width in sorted(wide)]
        shape = cheapest(
            [sample], shapes, lambda size: size.width * (1 + size.width / self.doubling)
        )
        per_prompt = len(pack(sample, shape)) / len(sample.tokens)
        return math.ceil(newcomers * per_prompt), shape.width, columns
