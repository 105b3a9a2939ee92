"""Examples side by side in the rows of a grid: almost every token that a model computes is real."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.types import Grid

WINDOW = 8192  # examples that are sorted and packed together
SLACKS = (1.1, 1.3, 1.6)  # room for response tokens, as multiples of the mean row's
SLOTS = 2.0  # room for examples


class GridShape(NamedTuple):
    """The sizes of a grid, which are compiled."""

    rows: int
    width: int  # T, tokens of a row
    targets: int  # M, response tokens of a row
    slots: int  # S, examples of a row

    @property
    def half(self) -> GridShape:
        """A grid of half the width."""
        return self._replace(width=self.width // 2, targets=-(-self.targets // 2))

    @property
    def tokens(self) -> int:
        return self.rows * self.width


class Lengths(NamedTuple):
    """Tokens of N examples. An example lies in one row and is never cut in two."""

    tokens: np.ndarray  # i64[N], of the whole example
    answers: np.ndarray  # i64[N], of its responses alone
    copies: int = 1  # slots that an example takes

    @property
    def longest(self) -> tuple[int, int]:
        """The most tokens of an example, and of its responses."""
        return int(self.tokens.max()), int(self.answers.max())

    def take(self, chosen: np.ndarray) -> Lengths:
        """The lengths of the chosen examples."""
        return Lengths(self.tokens[chosen], self.answers[chosen], self.copies)


def lengths_of(prompts: np.ndarray, responses: np.ndarray, *, share: bool) -> Lengths:
    """Return the lengths of examples of one prompt and K responses.

    Args:
      prompts: i64[N]; responses: i64[N, K].
      share: whether the responses share one copy of the prompt; else each has its own.
    """
    answers, copies = responses.sum(axis=1), 1 if share else responses.shape[1]
    return Lengths(copies * prompts + answers, answers, copies)


def pack(lengths: Lengths, shape: GridShape) -> list[list[int]]:
    """Put examples into rows: the longest example first, into the fullest row that has room.

    Returns:
      The examples of each row (best fit decreasing, over `WINDOW` examples at a time).

    Raises:
      ValueError: an example does not fit into a row.
    """
    tokens, answers, _ = lengths
    for length, room in ((tokens, shape.width), (answers, shape.targets)):
        if (length > room).any():
            raise ValueError(f"an example of {length.max()} tokens does not fit into {shape}")
    rows: list[list[int]] = []
    for start in range(0, len(tokens), WINDOW):
        rows += _best_fit(lengths.take(np.s_[start : start + WINDOW]), start, shape)
    return rows


def _best_fit(lengths: Lengths, first: int, shape: GridShape) -> list[list[int]]:
    """The examples of each row; ``first`` is the number of the first one."""
    rows: list[list[int]] = []
    answered: list[int] = []  # response tokens of each row
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    most = max(shape.slots // lengths.copies, 1)
    for place in np.argsort(-lengths.tokens, kind="stable").tolist():
        length, answer = int(lengths.tokens[place]), int(lengths.answers[place])
        at = bisect.bisect_left(room, (length, -1))
        while at < len(room) and answered[room[at][1]] + answer > shape.targets:
            at += 1
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = shape.width, len(rows)
            rows.append([])
            answered.append(0)
        rows[row].append(first + place)
        answered[row] += answer
        if len(rows[row]) < most:
            bisect.insort(room, (left - length, row))
    return rows


Grids = list[tuple[GridShape, list[list[int]]]]
"""The size of each grid and the examples of each of its rows; missing rows are padding."""


def grids_of(lengths: Lengths, shape: GridShape) -> Grids:
    """Pack the examples of one step into grids, the fullest rows first.

    Rows that all fit into half the width are a grid of half the width.
    """
    rows = pack(lengths, shape)
    used = np.array([lengths.tokens[row].sum() for row in rows])
    answered = np.array([lengths.answers[row].sum() for row in rows])
    small = (used <= shape.half.width) & (answered <= shape.half.targets)
    order = sorted(range(len(rows)), key=lambda row: (small[row], -used[row]))
    found: Grids = []
    for start in range(0, len(order), shape.rows):
        group = order[start : start + shape.rows]
        size = shape.half if small[group].all() else shape
        found.append((size, [rows[row] for row in group]))
    return found


def table_of_grids(lengths: Lengths, shape: GridShape, *, multiple: int) -> Grids:
    """Pack all examples of a table into grids of one size, with about as many rows in each.

    Args:
      shape: its ``rows`` are the most that a grid may have.
      multiple: the rows of a grid are a multiple of it.
    """
    rows = pack(lengths, shape)
    count = max(-(-len(rows) // shape.rows), 1)
    each = max(-(-len(rows) // (count * multiple)), 1) * multiple
    size = shape._replace(rows=each)
    return [(size, rows[start : start + each]) for start in range(0, len(rows), each)]


def candidates(
    sample: Lengths, widths: Sequence[int], *, rows: int, longest: tuple[int, int]
) -> list[GridShape]:
    """Return grid sizes for examples like those of a sample.

    Args:
      widths: T to choose from, each large enough for the longest example.
      rows: of a grid.
      longest: the most tokens of an example, and of its responses, that may come.
    """
    total, answered = max(int(sample.tokens.sum()), 1), int(sample.answers.sum())
    found = []
    for width in widths:
        slots = _up(SLOTS * width * len(sample.tokens) * sample.copies / total + 1, 4)
        sizes = {_up(slack * width * answered / total, 8) for slack in SLACKS}
        for targets in sorted({min(max(size, longest[1]), width) for size in sizes}):
            found.append(GridShape(rows, width, targets, max(slots, sample.copies)))
    return found


def cheapest(
    batches: Sequence[Lengths],
    shapes: Sequence[GridShape],
    cost: Callable[[GridShape], float],
    pack_batch: Callable[[Lengths, GridShape], Grids] = grids_of,
) -> GridShape:
    """Return the first of the sizes in which passes over these batches cost least.

    Args:
      cost: of one pass over a grid of a size.
      pack_batch: how a batch is packed.
    """

    def total(shape: GridShape) -> float:
        return sum(cost(size) for batch in batches for size, _ in pack_batch(batch, shape))

    return min(shapes, key=total)


class Layout(NamedTuple):
    """How examples become the arrays of a grid."""

    length: int  # R of the [E*, R] that `Grid.place` points into
    share: bool  # whether the responses of a prompt share one copy of it
    pad_id: int
    last: bool = True  # whether the last token of a response is read, too; it predicts nothing


def texts_alone(
    texts: Sequence[Sequence[int]],
) -> Callable[[int], tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Return the ``example`` of `to_grid` for texts that have no response."""
    return lambda n: (np.asarray(texts[n], np.int32), (np.zeros(0, np.int32),))


def to_grid(
    rows: Sequence[Sequence[int]],
    example: Callable[[int], tuple[np.ndarray, Sequence[np.ndarray]]],
    shape: GridShape,
    layout: Layout,
) -> Grid:
    """Lay out the examples of each row, on the host.

    Args:
      rows: the examples of each row; missing rows are padding.
      example: number -> the prompt i32[P] and its K responses, i32[length] each, maybe empty.

    Returns:
      Grid of numpy arrays. Response k of example n stands at n · K + k of E*.
    """
    whole, targets = (shape.rows, shape.width), (shape.rows, shape.targets)
    ids = np.full(whole, layout.pad_id, np.int32)
    segment, branch, position = np.zeros((3, *whole), np.int32)
    before, target, place = np.zeros((3, *targets), np.int32)
    real, prompt_of = np.zeros(targets, np.float32), np.zeros((shape.rows, shape.slots), np.int32)
    for row, members in enumerate(rows):
        column = written = slot = 0
        for member in members:
            prompt, responses = example(member)
            for k, response in enumerate(responses):
                if k == 0 or not layout.share:  # a copy of the prompt
                    start, column = column, column + len(prompt)
                    ids[row, start:column] = prompt
                    position[row, start:column] = np.arange(len(prompt))
                    last, slot = column - 1, slot + 1
                    prompt_of[row, slot - 1] = len(prompt)
                    segment[row, start:column] = slot
                end, after = column + len(response), written + len(response)
                read = response if layout.last else response[:-1]
                until = column + len(read)
                ids[row, column:until], segment[row, column:until] = read, slot
                branch[row, column:until] = k + 1
                position[row, column:until] = len(prompt) + np.arange(len(read))
                before[row, written:after] = [last, *range(column, end - 1)][: len(response)]
                target[row, written:after], real[row, written:after] = response, 1.0
                first = (member * len(responses) + k) * layout.length
                place[row, written:after] = first + np.arange(len(response))
                column, written = until, after
    return Grid(ids, segment, branch, position, prompt_of, before, target, real, place)


def _up(value: float, multiple: int) -> int:
    return max(int(-(-value // multiple)), 1) * multiple
