"""Score texts given as token ids, one number each, packed into grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import place_rows
from alol_jax.models.config import ModelConfig
from alol_jax.models.grid_sizes import pack_texts
from alol_jax.runs.progress import progress
from alol_jax.text.packing import Layout, texts_alone, to_grid
from alol_jax.types import Grid, Watch


def score_texts(
    apply: Callable[[Grid], jax.Array],
    texts: Sequence[Sequence[int]],
    *,
    config: ModelConfig,
    mesh: Mesh,
    pad_id: int,
    watch: Watch,
) -> np.ndarray:
    """Apply a scorer to every text: f64[N], in order.

    Args:
        apply: grid, whose examples are prompts alone -> f32[rows, S].
        config: of the model that reads them.
    """
    scores, layout = np.zeros(len(texts)), Layout(length=0, share=True, pad_id=pad_id)
    grids = pack_texts(config, mesh, np.array([len(text) for text in texts], np.int64)).grids
    example = texts_alone(texts)

    for size, members in progress(grids, watch, total=len(grids)):
        found = np.asarray(apply(place_rows(to_grid(members, example, size, layout), mesh)))
        for row, these in enumerate(members):
            scores[these] = found[row, : len(these)]
    return scores
