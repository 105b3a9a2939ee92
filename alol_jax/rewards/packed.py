"""Read texts given as token ids, packed into grids: one number each, or one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import fetch, own_part, place_rows
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
    scores = np.zeros(len(texts))
    _read(apply, texts, scores, config=config, mesh=mesh, pad_id=pad_id, watch=watch)
    return scores


def embed_texts(
    apply: Callable[[Grid], jax.Array],
    texts: Sequence[Sequence[int]],
    width: int,
    *,
    config: ModelConfig,
    mesh: Mesh,
    pad_id: int,
    watch: Watch,
) -> np.ndarray:
    """Apply an encoder to every text: f64[N, width], in order.

    Args:
        apply: grid, whose examples are prompts alone -> f32[rows, S, width].
        config: of the model that reads them.
    """
    vectors = np.zeros((len(texts), width))
    _read(apply, texts, vectors, config=config, mesh=mesh, pad_id=pad_id, watch=watch)
    return vectors


def _read(
    apply: Callable[[Grid], jax.Array],
    texts: Sequence[Sequence[int]],
    found: np.ndarray,
    *,
    config: ModelConfig,
    mesh: Mesh,
    pad_id: int,
    watch: Watch,
) -> None:
    """Write what ``apply`` gives for text n into ``found[n]``."""
    layout = Layout(length=0, share=True, pad_id=pad_id)
    grids = pack_texts(config, mesh, np.array([len(text) for text in texts], np.int64)).grids
    example = texts_alone(texts)

    for size, members in progress(grids, watch, total=len(grids)):
        grid = to_grid(own_part(members, size.rows, mesh), example, size, layout)
        given = fetch(apply(place_rows(grid, mesh)))
        for row, these in enumerate(members):
            found[these] = given[row, : len(these)]
