"""Prompts for decoding: padded on the left, in batches of a few fixed widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh


class Batching(NamedTuple):
    """How rows of different lengths are grouped into batches of a few fixed widths."""

    widths: tuple[int, ...]  # the compiled lengths
    size: int  # rows per batch; a smaller last batch is filled with repeated rows
    pad_id: int
    mesh: Mesh  # shards the rows of a batch

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


def left_padded(
    rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pad token ids on the left, on the host: ids i32[B, P] and mask f32[B, P], 1 on real tokens.

    Args:
      width: P; no row is longer.
      pad_id: the padding id. It may be the end token, because masks come from the lengths.
    """
    ids = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1.0
    return ids, mask
