"""Packing: every example in one row, whole, and few tokens that are not real."""

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.text.packing import GridShape, pack, to_grid


def _lengths(count: int, longest: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths as texts have them: many short ones, few long ones."""
    rng = np.random.default_rng(seed)
    drawn = np.exp(rng.normal(np.log(longest / 6), 0.7, (2, count))).astype(int)
    prompts = np.clip(drawn[0], 1, longest * 3 // 4)
    return prompts, np.clip(drawn[1] // 2, 1, longest // 4)


@pytest.mark.parametrize("width", [64, 256, 768])
@pytest.mark.parametrize("count", [1, 7, 300, 20_000])
def test_every_example_is_in_one_row_that_holds_it(width, count):
    prompts, responses = _lengths(count, width)
    shape, grids = pack(prompts, responses, width=width, most=16, multiple=2)
    rows = [row for grid in grids for row in grid]
    assert sorted(n for row in rows for n in row) == list(range(count))
    assert all(len(grid) <= shape.rows for grid in grids) and shape.rows in range(2, 17, 2)
    for row in rows:
        assert 1 <= len(row) <= shape.slots
        assert (prompts[row] + responses[row]).sum() <= width
        assert responses[row].sum() <= shape.targets


@pytest.mark.parametrize(("count", "share"), [(300, 0.85), (20_000, 0.95)])
@pytest.mark.parametrize("width", [128, 256, 768])
def test_most_tokens_are_real_though_grids_are_of_one_size(width, count, share):
    prompts, responses = _lengths(count, width)
    shape, grids = pack(prompts, responses, width=width, most=16, multiple=1)
    computed = len(grids) * shape.rows * width
    assert (prompts + responses).sum() / computed >= share


def test_few_examples_get_a_small_grid():
    def rows(count, multiple):
        lengths = (np.full(count, 20), np.full(count, 10))
        return pack(*lengths, width=64, most=32, multiple=multiple)[0].rows

    assert (rows(5, 1), rows(5, 8), rows(1, 1), rows(2, 1)) == (3, 8, 1, 1)


def test_an_example_that_fits_no_row_is_one_line():
    with pytest.raises(
        UserError, match=r"an example of 50 \+ 20 tokens does not fit into a row of 6"
    ):
        pack(np.array([3, 50]), np.array([4, 20]), width=64, most=1, multiple=1)


def test_no_examples_are_no_grids():
    none = np.zeros(0, int)
    assert pack(none, none, width=64, most=4, multiple=2)[1] == []


def test_a_grid_tells_of_each_token_where_it_belongs():
    prompts = [np.array([5, 6, 7]), np.array([8]), np.array([9, 9])]
    responses = [np.array([1, 2]), np.array([3, 4, 4]), np.array([], int)]
    grid = to_grid([[1, 0], [2]], prompts, responses, GridShape(3, 10, 6, 3), pad_id=0)
    assert grid.ids.tolist() == [[8, 3, 4, 4, 5, 6, 7, 1, 2, 0], [9, 9, *[0] * 8], [0] * 10]
    assert grid.segment[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 0]
    assert grid.position[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0]
    assert grid.prompt.tolist() == [[1, 3, 0], [2, 0, 0], [0, 0, 0]]
    assert grid.before[0].tolist() == [0, 1, 2, 6, 7, 0]
    assert grid.target[0].tolist() == [3, 4, 4, 1, 2, 0]
    assert grid.real.tolist() == [[1, 1, 1, 1, 1, 0], [0] * 6, [0] * 6]
    assert grid.segment[1].tolist() == [1, 1, *[0] * 8] and not grid.segment[2].any()
