"""The size of grids, chosen from the lengths of the data so that passes over them cost least.

It is an implementation detail: no loss, value or log-probability depends on it beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from alol_jax.devices.sharding import shards
from alol_jax.errors import UserError
from alol_jax.models.config import ModelConfig
from alol_jax.models.kernels import BLOCK
from alol_jax.text.packing import (
    Grids,
    GridShape,
    Lengths,
    candidates,
    cheapest,
    lengths_of,
    pack,
    table_of_grids,
)
from alol_jax.types import Limits

NARROWEST = 64  # prompts in decoding
SAMPLE = 1024  # rows of a table on which its size is chosen
TABLE_TOKENS = 4096  # of a grid per device, in passes over a table
TEXT_WIDTHS, SHORTEST = 3, 8  # widths that `pack_texts` tries; tokens of a text, about
STRETCH = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)  # widths, by the longest example


class GridOptions(NamedTuple):
    """``config.model.width`` and ``rows``; 0 where the size is chosen from the data."""

    width: int = 0
    rows: int = 0


def grid_options(width: int, rows: int, limits: Limits, mesh: Mesh) -> GridOptions:
    """Return the size of grids, as far as the config gives it.

    Raises:
        UserError: the width holds no whole example or is odd, or the devices cannot share the rows.
    """
    devices = shards(mesh)
    if width and width < sum(limits):
        raise UserError(
            f"config.model.width={width}: a row holds whole examples of up to max_prompt + "
            f"max_response = {limits.prompt} + {limits.response} tokens: raise it, lower these, or "
            "set it to 0 (chosen from the data)"
        )
    if width % 2:
        raise UserError(f"config.model.width={width} must be even")
    if rows < 0 or rows % devices:
        raise UserError(
            f"config.model.rows={rows} must be a multiple of data · fsdp = {devices}, or 0 (chosen)"
        )
    return GridOptions(width, rows)


class Platform(NamedTuple):
    """What a pass costs besides its matrix products."""

    multiple: int  # of widths; half of it is one of the kernel's
    least: int  # no smaller width is chosen
    overhead: float  # of a pass, in tokens per device
    doubling: float  # the width at which attention costs as much as all else


PLATFORMS = {
    # On two cores a token costs 5 % more at a width of 448 than at 320, a third more at 768; a pass
    # costs about 20 tokens more than its tokens.
    "cpu": Platform(16, 32, 24.0, 1300.0),
    "gpu": Platform(256, 1024, 512.0, 32768.0),
    "tpu": Platform(256, 1024, 512.0, 32768.0),
}


def platform_of(mesh: Mesh) -> Platform:
    """Return the platform of the mesh's devices."""
    return PLATFORMS[mesh.devices.flat[0].platform]


def widths_for(grid: GridOptions, mesh: Mesh, longest: int) -> list[int]:
    """Return the widths to choose from for examples of at most ``longest`` tokens.

    Raises:
        UserError: ``config.model.width`` is smaller than that.
    """
    if grid.width and grid.width < longest:
        raise UserError(
            f"config.model.width={grid.width}: the longest example has {longest} tokens: raise it "
            "(0 = chosen from the data), or lower config.model.max_prompt or max_response"
        )
    if grid.width:
        return [grid.width]
    platform = platform_of(mesh)
    widths = {max(longest * stretch, platform.least) for stretch in STRETCH}
    return sorted({-int(-width // platform.multiple) * platform.multiple for width in widths})


def prompt_widths(limit: int, mesh: Mesh) -> tuple[int, ...]:
    """Return a quarter, a half and the whole of ``limit``, rounded up for the platform's kernel.

    Widths below `NARROWEST` are left out, unless it is the only one.
    """
    multiple = BLOCK if mesh.devices.flat[0].platform == "tpu" else 8
    parts = (-(-limit // part) for part in (4, 2, 1))
    widths = sorted({-(-part // multiple) * multiple for part in parts})
    return tuple(width for width in widths if width >= NARROWEST) or (widths[-1],)


def pass_cost(config: ModelConfig, mesh: Mesh) -> Callable[[GridShape], float]:
    """Return the function from a grid's size to the cost of a pass over it, in tokens."""
    platform, devices = platform_of(mesh), shards(mesh)
    heads = 2 * config.heads + 2 * config.kv_heads
    block = config.width * (heads * config.head_width + 3 * config.mlp_width)
    head = config.vocab_size * config.width / (config.layers * block)  # of a token, by the blocks

    def cost(shape: GridShape) -> float:
        token = 1 + shape.width / platform.doubling
        each = shape.width * token + shape.targets * head
        return shape.rows * each + devices * platform.overhead

    return cost


class Packed(NamedTuple):
    """The examples of a table in grids of one size."""

    grids: Grids
    real: float  # the share of real tokens


def pack_table(
    config: ModelConfig, mesh: Mesh, grid: GridOptions, prompts: np.ndarray, responses: np.ndarray
) -> Packed:
    """Pack the examples of a table, of these lengths, i64[N] each, into grids."""
    lengths = lengths_of(prompts, responses[:, None], share=True)
    if not len(prompts):
        return Packed([], 1.0)
    devices = shards(mesh)
    longest = lengths.longest
    sample = lengths.take(np.s_[:SAMPLE])
    shapes = []
    for width in widths_for(grid, mesh, longest[0]):
        rows = grid.rows or max(TABLE_TOKENS // width, 1) * devices
        shapes += candidates(sample, [width], rows=rows, longest=longest)
    shape = cheapest(
        [sample],
        shapes,
        pass_cost(config, mesh),
        lambda lengths, shape: table_of_grids(lengths, shape, multiple=devices),
    )
    grids = table_of_grids(lengths, shape, multiple=devices)
    computed = sum(size.tokens for size, _ in grids)
    return Packed(grids, float(lengths.tokens.sum() / computed))


def pack_texts(config: ModelConfig, mesh: Mesh, lengths: np.ndarray) -> Packed:
    """Pack texts of these lengths, i64[N], into grids of one of a few sizes.

    For texts that keep coming, such as answers to score: widths and rows are powers of two times a
    constant, so that few programs are ever compiled.
    """
    if not len(lengths):
        return Packed([], 1.0)
    texts = Lengths(lengths, np.zeros_like(lengths))
    devices, platform = shards(mesh), platform_of(mesh)
    shapes, width = [], platform.least
    while len(shapes) < TEXT_WIDTHS:
        if width >= lengths.max():
            filled = -(-int(lengths.sum()) // (width * devices))
            most = max(TABLE_TOKENS // width, 1)
            rows = devices * min(2 ** (filled - 1).bit_length(), most)
            shapes.append(GridShape(rows, width, 1, max(width // SHORTEST, 1)))
        width *= 2
    cost = pass_cost(config, mesh)
    shape = cheapest([texts], shapes, cost, _groups)
    grids = _groups(texts, shape)
    return Packed(grids, float(lengths.sum() / sum(size.tokens for size, _ in grids)))


def _groups(lengths: Lengths, shape: GridShape) -> Grids:
    """Pack examples into grids of exactly this size."""
    rows = pack(lengths, shape)
    return [(shape, rows[n : n + shape.rows]) for n in range(0, len(rows), shape.rows)]
