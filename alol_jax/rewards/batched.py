"""Rows of token ids -> one number each, in padded batches of a few widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from alol_jax.progress import progress
from alol_jax.sharding import place_rows
from alol_jax.tokens import batches_by_width, to_tokens

NARROWEST = 64  # tokens


def widths_up_to(limit: int) -> tuple[int, ...]:
    """The lengths that are compiled for: 64, 128, 256 … and ``limit``."""
    widths = []
    width = NARROWEST
    while width < limit:
        widths.append(width)
        width *= 2
    return (*widths, limit)


def in_batches(
    apply: Callable[[jax.Array, jax.Array], jax.Array],
    rows: Sequence[Sequence[int]],
    *,
    widths: Sequence[int],
    batch_size: int,
    pad_id: int,
    mesh: Mesh,
    label: str,
) -> np.ndarray:
    """``apply`` on every row, f64[rows], in their order.

    Each row goes with others of its width, the smallest that holds it; a last, smaller batch is
    filled up with repeats, so that a width is compiled once.

    Args:
        apply: tokens i32[B, T], mask f32[B, T] (right-padded) -> f32[B].
        rows: token ids, none longer than the largest of ``widths``.
        pad_id: fills up.
        mesh: rows are cut over it.
        label: see `progress`.
    """
    pieces = batches_by_width([len(row) for row in rows], widths, batch_size)
    found = np.zeros(len(rows), np.float64)
    for width, piece in progress(pieces, total=len(pieces), label=label):
        chosen = [rows[index] for index in np.resize(piece, batch_size)]
        tokens = to_tokens([()] * batch_size, chosen, shape=(0, width), pad_id=pad_id)
        placed = place_rows((tokens.response, tokens.mask), mesh)
        found[piece] = np.asarray(apply(*placed), np.float64)[: len(piece)]
    return found
