"""Token ids to padded ``Tokens``, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from alol_jax.types import Tokens, UserError


def shape_for(
    prompt_length: int, response_length: int, shapes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The smallest (P, R) of ``shapes``, by P + R, that holds both lengths (in tokens).

    Raises:
      UserError: none does.
    """
    fitting = [(p, r) for p, r in shapes if p >= prompt_length and r >= response_length]
    if not fitting:
        raise UserError(
            f"a prompt of {prompt_length} and a response of {response_length} tokens fit none of "
            f"the shapes {list(shapes)}: add a larger shape or lower the limits"
        )
    return min(fitting, key=lambda shape: (sum(shape), shape))


class Batching(NamedTuple):
    """How rows of different lengths are put into batches of a few fixed shapes."""

    widths: tuple[int, ...]  # the lengths that are compiled for
    size: int  # rows of a batch; a last, smaller batch is filled up with repeats
    pad_id: int
    mesh: Mesh  # the rows of a batch are cut over it

    def pieces(self, lengths: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        """(width, at most ``size`` indices) of each batch, the narrowest first.

        Each row goes into the smallest width that holds it; none may be longer than the largest.
        """
        fitting = np.array([min(w for w in self.widths if w >= length) for length in lengths], int)
        groups = ((width, np.flatnonzero(fitting == width)) for width in sorted(set(self.widths)))
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
    """Token ids as padded arrays on the host: prompts on the left, responses on the right.

    Args:
      prompts: B rows of at most P ids.
      responses: B · K rows of at most R ids, those of one prompt side by side.
      shape: (P, R).
      pad_id: what fills up. May well be the end token: masks come from the lengths.

    Returns:
      Tokens of numpy arrays: i32[B, P], f32[B, P], i32[B · K, R], f32[B · K, R].

    Raises:
      UserError: not the same number of responses for each prompt, or a row does not fit.
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
