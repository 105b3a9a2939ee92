"""Score rows of token ids, one number each, in padded batches of a few widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import place_rows
from alol_jax.models.attention import BLOCK, Attention, choose_kernel
from alol_jax.models.config import ModelConfig
from alol_jax.runs.progress import progress
from alol_jax.text.tokens import Batching, to_tokens
from alol_jax.types import Watch

NARROWEST = 64  # tokens


class Reading(NamedTuple):
    """The padded lengths at which a model reads texts, and its attention kernel."""

    widths: tuple[int, ...]
    attention: Attention
    note: str  # names the kernel and says why


def reading_of(config: ModelConfig, dtype: jax.typing.DTypeLike, mesh: Mesh, limit: int) -> Reading:
    """Choose the lengths 64, 128, 256, … up to ``limit``, and a fused kernel if it can be used.

    On a TPU the lengths are multiples of 128, which its kernel needs, up to the model's positions.

    Args:
        config: of the model body.
        limit: maximum tokens of a text.
    """
    device = mesh.devices.flat[0]
    narrowest, last = NARROWEST, limit
    if device.platform == "tpu":
        narrowest, last = BLOCK, min(-(-limit // BLOCK) * BLOCK, config.max_positions)
    widths = []
    while narrowest < last:
        widths.append(narrowest)
        narrowest *= 2
    kernel, note = choose_kernel(
        "auto",
        platform=device.platform,
        capability=str(getattr(device, "compute_capability", "")),
        dtype=dtype,
        head_width=config.head_width,
        widths=(*widths, last),
    )
    return Reading((*widths, last), Attention(kernel, mesh), note)


def in_batches(
    apply: Callable[[jax.Array, jax.Array], jax.Array],
    rows: Sequence[Sequence[int]],
    *,
    batching: Batching,
    watch: Watch,
) -> np.ndarray:
    """Apply a scorer to every row: f64[rows], in order.

    Args:
        apply: tokens i32[B, T], mask f32[B, T] (right-padded) -> f32[B].
        rows: token ids, none longer than the largest width.
    """
    pieces = batching.batches([len(row) for row in rows])
    scores = np.zeros(len(rows), np.float64)
    for width, piece in progress(pieces, watch, total=len(pieces)):
        chosen = [rows[index] for index in np.resize(piece, batching.size)]
        tokens = to_tokens([()] * batching.size, chosen, shape=(0, width), pad_id=batching.pad_id)
        placed = place_rows((tokens.response, tokens.mask), batching.mesh)
        scores[piece] = np.asarray(apply(*placed), np.float64)[: len(piece)]
    return scores
