"""Token ids as the grids that a model reads, and what comes out of a model, put back in order."""

from collections.abc import Sequence

import jax
import numpy as np

from alol_jax.objectives.logprobs import grid_logp, to_batch
from alol_jax.text.packing import GridShape, Layout, lengths_of, pack, to_grid
from alol_jax.types import Grid

Ids = Sequence[int]


def grid_of(
    prompts: Sequence[Ids],
    responses: Sequence[Sequence[Ids]],
    *,
    width: int = 0,
    share: bool = True,
    pad_id: int = 0,
) -> tuple[Grid, tuple[int, ...]]:
    """All examples in one grid, and the [E*, R] that its `place` points into.

    Args:
        responses: K for each prompt; E* = [B] if K = 1.
        width: of a row; 0 = that of the longest example, so that each has a row of its own or
            shares one with others that fit.
    """
    prompts = [np.asarray(ids, np.int32) for ids in prompts]
    responses = [[np.asarray(ids, np.int32) for ids in each] for each in responses]
    counts = np.array([[len(ids) for ids in each] for each in responses])
    lengths = lengths_of(np.array([len(ids) for ids in prompts]), counts, share=share)
    width = width or int(lengths.tokens.max())
    slots = len(prompts) * lengths.copies
    rows = pack(lengths, GridShape(0, width, width, slots))
    shape = GridShape(len(rows), width, width, slots)
    longest, k = int(counts.max()), counts.shape[1]
    layout = Layout(length=longest, share=share, pad_id=pad_id)
    grid = to_grid(rows, lambda n: (prompts[n], responses[n]), shape, layout)
    lead = (len(prompts),) if k == 1 else (len(prompts), k)
    return grid, (*lead, longest)


def left_padded(rows: Sequence[Ids], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """One text per row, at its end: ids i32[B, T] and mask f32[B, T]."""
    ids = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), np.float32)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :], mask[place, width - len(row) :] = row, 1.0
    return ids, mask


def logp_of(model, params, grid: Grid, shape: tuple[int, ...], *, chunk: int = 4096, branches=None):
    """Log π of every response token: f32[E*, R], 0 on padding."""
    branches = len(shape) == 3 if branches is None else branches

    def run(params, grid):
        branch = grid.branch if branches else None
        hidden = model.hidden(
            params, grid.ids, grid.segment, positions=grid.position, branch=branch
        )
        found = grid_logp(hidden, model.unembedding(params), grid, chunk=chunk)
        return to_batch(found, grid, shape)

    return jax.jit(run)(params, grid)


def unpacked(grids: Sequence[Grid], length: int) -> dict[int, tuple[Ids, Ids]]:
    """Number of a response in the flattened E* -> its prompt and the response itself.

    Fails if the grids hold a token of a response twice, or not in its order.

    Args:
        length: R, of the [E*, R] that `place` points into.
    """
    found: dict[int, tuple[Ids, list[int]]] = {}
    for grid in jax.device_get(tuple(grids)):
        for row, column in np.argwhere(grid.real > 0):
            number, at = divmod(int(grid.place[row, column]), length)
            example = grid.segment[row] == grid.segment[row, grid.before[row, column]]
            prompt = grid.ids[row, example & (grid.branch[row] == 0)]
            _, response = found.setdefault(number, (tuple(prompt.tolist()), []))
            assert at == len(response)
            response.append(int(grid.target[row, column]))
    return {n: (prompt, tuple(response)) for n, (prompt, response) in sorted(found.items())}
