"""Prompts laid out to be read: side by side in the rows of a grid, whole, each in its own columns
of the cache afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.text.packing import GridShape, Layout, texts_alone, to_grid
from alol_jax.types import Prompts

LOOKAHEAD = 4  # prompts that are looked at for one that is taken


def in_columns(prompts: Prompts) -> tuple[jax.Array, jax.Array]:
    """Return the prompts padded on the left, ids i32[B, P] and mask bool[B, P]."""
    groups, count, width = prompts.source.shape
    flat = prompts.ids.reshape(groups, -1)
    places = jnp.maximum(prompts.source, 0).reshape(groups, -1)
    ids = jnp.take_along_axis(flat, places, axis=1, mode="clip")
    real = prompts.source.reshape(-1, width) >= 0
    return ids.reshape(groups * count, width), real


def one_per_row(rows: Sequence[Sequence[int]], width: int, pad_id: int, groups: int = 1) -> Prompts:
    """Lay out B prompts of at most ``width`` tokens, each in a row of its own, on the host.

    Args:
        groups: D, which divides B.
    """
    each = len(rows) // groups
    members = [[[n] for n in range(g * each, (g + 1) * each)] for g in range(groups)]
    return lay_out(members, rows, each, (each, width, width), pad_id)


def lay_out(
    members: Sequence[list[list[int]]],
    prompts: Sequence[Sequence[int]],
    count: int,
    size: tuple[int, int, int],
    pad_id: int,
) -> Prompts:
    """Lay out prompts on the host.

    Args:
        members: the prompts in each row of each of D groups, all of which have as many rows.
        count: n, the most prompts of a group; their order is that of its rows.
        size: rows of a group, T, and P, the columns of a prompt.

    Returns:
        Prompts of numpy arrays; those that are missing have no token.
    """
    rows, width, columns = size
    every, shape = sum(members, []), GridShape(len(members) * rows, width, 1, width)
    layout = Layout(length=0, share=True, pad_id=pad_id)
    grid = to_grid(every, texts_alone(prompts), shape, layout)
    source = np.full((len(members), count, columns), -1, np.int32)
    for group, its_rows in enumerate(members):
        slot = 0
        for row, these in enumerate(its_rows):
            first = row * width
            for length in (len(prompts[member]) for member in these):
                source[group, slot, columns - length :] = np.arange(first, first + length)
                first, slot = first + length, slot + 1
    return Prompts(grid.ids, grid.segment, grid.position, source)


def take(
    waiting: list[int], lengths: np.ndarray, most: int, rows: int, width: int
) -> list[list[int]]:
    """Take up to ``most`` prompts off the front of ``waiting`` that fit into rows: the first of
    them always, then whichever of the next ones has room.

    Returns:
        The prompts of each row.
    """
    found: list[list[int]] = [[] for _ in range(rows)]
    room, taken = [width] * rows, 0
    for prompt in waiting[: LOOKAHEAD * most]:
        length = int(lengths[prompt])
        fitting = [row for row in range(rows) if room[row] >= length]
        if fitting and taken < most:
            row = min(fitting, key=room.__getitem__)  # the fullest
            found[row].append(prompt)
            room[row] -= length
            taken += 1
    gone = {prompt for row in found for prompt in row}
    waiting[:] = [prompt for prompt in waiting if prompt not in gone]
    return found
