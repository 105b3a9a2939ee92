"""Padding token ids to `Tokens`, and batches of a few fixed widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from alol_jax.errors import UserError
from alol_jax.types import Tokens


def shape_for(
    prompt_length: int, response_length: int, shapes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Return the smallest (P, R) of ``shapes``, by P + R, that fits both lengths (in tokens).

    Raises:
      UserError: no shape fits.
    """
    lengths = np.array([[prompt_length], [response_length]])
    return tuple(shapes[int(shapes_for(*lengths, shapes)[0])])


def shapes_for(
    prompt_lengths: np.ndarray, response_lengths: np.ndarray, shapes: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Return the index into ``shapes`` of `shape_for` for each of N pairs of lengths: i64[N].

    Raises:
      UserError: a pair fits no shape.
    """
    found = np.full(len(prompt_lengths), -1)
    for shape in sorted(shapes, key=lambda shape: (-sum(shape), -shape[0])):  # smallest last
        fits = (prompt_lengths <= shape[0]) & (response_lengths <= shape[1])
        found[fits] = shapes.index(shape)
    if (found < 0).any():
        place = int(np.argmin(found))
        raise UserError(
            f"a prompt of {prompt_lengths[place]} and a response of {response_lengths[place]} "
            f"tokens fit none of the shapes {list(shapes)}: add a larger shape or lower the limits"
        )
    return found


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


def to_tokens(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    shape: tuple[int, int],
    pad_id: int,
) -> Tokens:
    """Pad token ids to arrays on the host: prompts on the left, responses on the right.

    Args:
      prompts: B rows of at most P ids.
      responses: B · K rows of at most R ids, the K responses of a prompt in a row.
      shape: (P, R).
      pad_id: the padding id. It may be the end token, because masks come from the lengths.

    Returns:
      Tokens of numpy arrays: i32[B, P], f32[B, P], i32[B · K, R], f32[B · K, R].

    Raises:
      UserError: the responses are not a multiple of the prompts, or a row does not fit.
    """
    if len(responses) % max(len(prompts), 1):
        raise UserError(f"{len(prompts)} prompts for {len(responses)} responses")
    prompt, prompt_mask = _right_padded([ids[::-1] for ids in prompts], shape[0], pad_id, "prompt")
    response, mask = _right_padded(responses, shape[1], pad_id, "response")
    flipped = (np.ascontiguousarray(array[:, ::-1]) for array in (prompt, prompt_mask))
    return Tokens(*flipped, response, mask)


def _right_padded(
    rows: Sequence[Sequence[int]], length: int, pad_id: int, what: str
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), np.float32)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise UserError(f"a {what} of {len(row)} tokens does not fit in {length}: cut it")
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1.0
    return ids, mask
