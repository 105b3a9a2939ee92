"""Scoring texts packed into grids: each once, in order, whatever it lies beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alol_jax.models.heads import slot_mask
from alol_jax.models.presets import PRESETS
from alol_jax.rewards.packed import read_texts
from alol_jax.types import Watch
from tests.packed import grid_of
from tests.tiny_run import mesh_of

WEIGHT = np.random.default_rng(0).normal(size=50).astype(np.float32)


@jax.jit
def score_of(grid):
    """A score that each text has of its own: Σ weight · position of its ids, from 1."""
    worth = jnp.asarray(WEIGHT)[grid.ids] * (1 + grid.position)
    return jnp.sum(jnp.where(slot_mask(grid), worth[:, None], 0.0), axis=-1)


def scored(texts, mesh=None, grids=None):
    def apply(grid):
        if grids is not None:
            grids.append(grid)
        return score_of(grid)

    return read_texts(
        apply,
        texts,
        config=PRESETS["llama-tiny"],
        mesh=mesh_of(1) if mesh is None else mesh,
        pad_id=0,
        watch=Watch("texts"),
    )


def texts_of(count, longest=60, seed=0):
    draw = np.random.default_rng(seed)
    return [tuple(draw.integers(0, 50, draw.integers(1, longest)).tolist()) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 3, 50, 700])
def test_every_text_gets_its_own_score_in_order(count):
    texts = texts_of(count)
    expected = [WEIGHT[list(text)] @ np.arange(1, len(text) + 1) for text in texts]
    found = scored(texts)
    assert found.dtype == np.float64 and found.shape == (count,)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_the_texts_of_a_row_and_the_devices_change_no_score():
    texts = texts_of(100)
    together = scored(texts)
    np.testing.assert_allclose([scored([text])[0] for text in texts[:10]], together[:10], rtol=1e-4)
    np.testing.assert_allclose(scored(texts[::-1])[::-1], together, rtol=1e-4)
    np.testing.assert_allclose(scored(texts, mesh_of(8, fsdp=2)), together, rtol=1e-4)


def test_no_texts_have_no_scores():
    assert scored([]).shape == (0,)


def test_the_rows_of_a_grid_are_shared_out_over_the_devices():
    grids = []
    scored(texts_of(100), mesh_of(8, fsdp=2), grids)
    for grid in grids:
        assert {shard.data.shape[0] for shard in grid.ids.addressable_shards} == {
            grid.ids.shape[0] // 8
        }


def test_the_mask_of_a_slot_is_the_tokens_of_its_example():
    grid, _ = grid_of([(1, 2, 3), (4,), (5, 6)], [[(7,)], [(8, 9)], [()]], width=9)
    mask = np.asarray(slot_mask(grid))
    assert mask.shape == (*grid.prompt.shape, grid.ids.shape[1])
    found = [
        tuple(grid.ids[row][mask[row, slot]].tolist()) for row, slot in np.ndindex(mask.shape[:2])
    ]
    assert sorted(filter(None, found)) == [(1, 2, 3, 7), (4, 8, 9), (5, 6)]
    assert not np.any(mask[grid.prompt == 0])
