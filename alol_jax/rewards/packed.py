"""Read texts given as token ids, packed into grids: one number each, or one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.out_of_memory import SAVINGS, Program, watching_memory
from alol_jax.devices.sharding import fetch, own_part, place_rows
from alol_jax.models.config import ModelConfig
from alol_jax.models.grid_sizes import pack_texts
from alol_jax.runs.progress import progress
from alol_jax.text.packing import Layout, texts_alone, to_grid
from alol_jax.types import Grid, Watch

LOWER = ("its max_tokens in config.reward_models", "its dtype to bfloat16", SAVINGS["chips"])
"""What makes a reward model need less memory, the cheapest first."""


def read_texts(
    apply: Callable[[Grid], jax.Array],
    texts: Sequence[Sequence[int]],
    *,
    shape: tuple[int, ...] = (),
    config: ModelConfig,
    mesh: Mesh,
    pad_id: int,
    watch: Watch,
) -> np.ndarray:
    """Apply a scorer or an encoder to every text: f64[N, *shape], in order.

    Args:
        apply: grid, whose examples are prompts alone -> f32[rows, S, *shape].
        shape: of what it gives for a text; () is one number.
        config: of the model that reads them.
    """
    found = np.zeros((len(texts), *shape))
    layout = Layout(length=0, share=True, pad_id=pad_id)
    grids = pack_texts(config, mesh, np.array([len(text) for text in texts], np.int64)).grids
    example = texts_alone(texts)

    rows, width = grids[0][0][:2] if grids else (0, 0)
    with watching_memory(Program(watch.label, rows, width, LOWER)):
        for size, members in progress(grids, watch, total=len(grids)):
            grid = to_grid(own_part(members, size.rows, mesh), example, size, layout)
            given = fetch(apply(place_rows(grid, mesh)))
            for row, these in enumerate(members):
                found[these] = given[row, : len(these)]
    return found
