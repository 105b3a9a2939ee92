"""Examples side by side in the rows of a grid: almost every token that a model computes is real."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.types import Grid

WINDOW = 8192  # examples that are sorted and packed together
SLACK = 1.25  # room for more response tokens, and more examples, than the mean row has


class GridShape(NamedTuple):
    """The sizes of a grid, which are compiled."""

    rows: int
    width: int  # T, tokens of a row
    targets: int  # M, response tokens of a row
    slots: int  # S, examples of a row


def pack(
    prompts: np.ndarray, responses: np.ndarray, *, width: int, most: int, multiple: int
) -> tuple[GridShape, list[list[list[int]]]]:
    """Put examples into grids of one size.

    Best fit decreasing: the longest example first, into the fullest row that has room. No example
    is cut in two, and each is in one row. The rows are spread evenly over as few grids as hold
    them.

    Args:
      prompts, responses: i64[N], tokens of each example.
      width: T.
      most: the most rows of a grid.
      multiple: the rows of a grid are a multiple of it.

    Returns:
      The sizes, and the examples of each row of each grid.

    Raises:
      UserError: an example does not fit into a row.
    """
    lengths = prompts + responses
    if (lengths > width).any():
        place = int(np.argmax(lengths > width))
        raise UserError(
            f"an example of {prompts[place]} + {responses[place]} tokens does not fit into a row "
            f"of {width} tokens: raise the limits of config.model.shapes"
        )
    targets, slots = _room(prompts, responses, width)
    rows: list[list[int]] = []
    for start in range(0, len(lengths), WINDOW):
        window = slice(start, start + WINDOW)
        rows += _best_fit(lengths[window], responses[window], start, (width, targets, slots))
    grids = -(-len(rows) // (max(most // multiple, 1) * multiple))
    each = -(-len(rows) // (max(grids, 1) * multiple)) * multiple
    shape = GridShape(max(each, multiple), width, targets, slots)
    return shape, [rows[start : start + each] for start in range(0, len(rows), each or 1)]


def _room(prompts: np.ndarray, responses: np.ndarray, width: int) -> tuple[int, int]:
    """How many response tokens, and how many examples, a row has room for."""
    total, answered = int(prompts.sum() + responses.sum()), int(responses.sum())
    targets = max(_up(SLACK * width * answered / max(total, 1), 8), int(responses.max(initial=1)))
    slots = _up(SLACK * width * len(prompts) / max(total, 1) + 1, 4)
    return min(targets, width), min(slots, max(len(prompts), 1))


def _best_fit(
    lengths: np.ndarray, responses: np.ndarray, first: int, room_of_row: tuple[int, int, int]
) -> list[list[int]]:
    """The examples of each row; ``first`` is the number of the first one."""
    width, targets, slots = room_of_row
    rows: list[list[int]] = []
    answered: list[int] = []  # response tokens of each row
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for place in np.argsort(-lengths, kind="stable").tolist():
        length, answer = int(lengths[place]), int(responses[place])
        at = bisect.bisect_left(room, (length, -1))
        while at < len(room) and answered[room[at][1]] + answer > targets:
            at += 1
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = width, len(rows)
            rows.append([])
            answered.append(0)
        rows[row].append(first + place)
        answered[row] += answer
        if len(rows[row]) < slots:
            bisect.insort(room, (left - length, row))
    return rows


def to_grid(
    rows: Sequence[Sequence[int]],
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    shape: GridShape,
    *,
    pad_id: int,
) -> Grid:
    """Lay out the examples of each row, on the host.

    Args:
      rows: from `pack`; missing rows are padding.
      prompts, responses: i32[length] of every example; a response may be empty.

    Returns:
      Grid of numpy arrays.
    """
    size = (shape.rows, shape.width)
    ids, segment, position = np.full(size, pad_id, np.int32), *np.zeros((2, *size), np.int32)
    before, target = np.zeros((2, shape.rows, shape.targets), np.int32)
    real = np.zeros((shape.rows, shape.targets), np.float32)
    prompt_of = np.zeros((shape.rows, shape.slots), np.int32)
    for row, members in enumerate(rows):
        column = written = 0
        for slot, member in enumerate(members):
            prompt, response = prompts[member], responses[member]
            middle, end = column + len(prompt), column + len(prompt) + len(response)
            ids[row, column:middle], ids[row, middle:end] = prompt, response
            segment[row, column:end] = slot + 1
            position[row, column:end] = np.arange(end - column)
            after = written + len(response)
            before[row, written:after] = np.arange(middle - 1, end - 1)
            target[row, written:after] = response
            real[row, written:after] = 1.0
            prompt_of[row, slot] = len(prompt)
            column, written = end, after
    return Grid(ids, segment, position, prompt_of, before, target, real)


def _up(value: float, multiple: int) -> int:
    return int(-(-value // multiple)) * multiple
