"""Packing: every example in one row, whole, few tokens that are not real, and a grid's arrays."""

import numpy as np
import pytest

from alol_jax.text.packing import (
    GridShape,
    Layout,
    Lengths,
    candidates,
    cheapest,
    grids_of,
    lengths_of,
    pack,
    table_of_grids,
    to_grid,
)

KINDS = {"one response": (1, True), "three": (3, True), "three, three prompts": (3, False)}
SHAPES = [GridShape(4, 64, 24, 4), GridShape(2, 256, 100, 12), GridShape(1, 900, 900, 60)]


def lengths_like(count: int, longest: int, kind: str = "one response", seed: int = 0) -> Lengths:
    """Lengths as texts have them: log-normal, many short ones, few long ones."""
    responses, share = KINDS[kind]
    draw = np.random.default_rng(seed)
    prompts, *answers = np.exp(draw.normal(np.log(longest / 8), 0.7, (1 + responses, count)))
    copies = 1 if share else responses
    prompts = np.clip(prompts.astype(int), 1, longest * 5 // 8 // copies)
    answers = np.clip(np.array(answers).T.astype(int) // 2, 1, longest * 3 // 8 // responses)
    return lengths_of(prompts, answers, share=share)


def fits(lengths: Lengths, row: list[int], shape: GridShape) -> bool:
    """Whether a row of this shape holds these examples."""
    return (
        lengths.tokens[row].sum() <= shape.width
        and lengths.answers[row].sum() <= shape.targets
        and len(row) * lengths.copies <= shape.slots
    )


def test_an_example_has_one_copy_of_its_prompt_or_one_for_each_response():
    prompts, responses = np.array([5, 2]), np.array([[1, 2, 3], [4, 0, 4]])
    shared = lengths_of(prompts, responses, share=True)
    assert (shared.tokens.tolist(), shared.answers.tolist(), shared.copies) == ([11, 10], [6, 8], 1)
    apart = lengths_of(prompts, responses, share=False)
    assert (apart.tokens.tolist(), apart.answers.tolist(), apart.copies) == ([21, 14], [6, 8], 3)


# rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.width))
@pytest.mark.parametrize("count", [0, 1, 7, 300, 20_000])
def test_every_example_is_in_one_row_that_holds_it(count, shape, kind):
    lengths = lengths_like(count, shape.width, kind)
    rows = pack(lengths, shape)
    assert sorted(n for row in rows for n in row) == list(range(count))
    assert all(row and fits(lengths, row, shape) for row in rows)


def test_an_example_that_fits_into_no_row_is_an_error():
    shape = GridShape(1, 64, 20, 8)
    for tokens, answers in (([3, 65], [1, 1]), ([3, 64], [1, 21])):
        with pytest.raises(ValueError, match="does not fit into GridShape"):
            pack(Lengths(np.array(tokens), np.array(answers)), shape)
    assert pack(Lengths(np.array([3, 64]), np.array([1, 20])), shape) == [[1], [0]]


def test_the_longest_example_comes_first_and_goes_into_the_fullest_row_that_has_room():
    lengths = Lengths(np.array([30, 70, 40, 60, 1]), np.ones(5, int))
    assert pack(lengths, GridShape(1, 100, 100, 4)) == [[1, 0], [3, 2], [4]]
    assert pack(lengths, GridShape(1, 101, 100, 4)) == [[1, 0, 4], [3, 2]]


# grids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.width))
@pytest.mark.parametrize("count", [1, 5, 32, 100])
def test_a_step_is_in_grids_of_one_size_and_of_half_the_width_where_all_rows_fit(
    count, shape, kind
):
    lengths = lengths_like(count, shape.width, kind)
    found = grids_of(lengths, shape)
    assert sorted(n for _, rows in found for row in rows for n in row) == list(range(count))
    for size, rows in found:
        assert size in (shape, shape.half) and 1 <= len(rows) <= shape.rows
        assert all(fits(lengths, row, size) for row in rows)
        assert size == shape.half or not all(fits(lengths, row, shape.half) for row in rows)
    assert all(len(rows) == shape.rows for _, rows in found[:-1])  # padding in the last grid alone


def test_a_step_that_fits_into_half_the_width_is_computed_in_half_the_width():
    shape = GridShape(4, 64, 64, 8)
    assert shape.half == GridShape(4, 32, 32, 8)
    assert [size for size, _ in grids_of(Lengths(np.full(3, 30), np.full(3, 9)), shape)] == [shape]
    assert [size for size, _ in grids_of(Lengths(np.full(3, 20), np.full(3, 9)), shape)] == [shape]
    assert grids_of(Lengths(np.full(1, 30), np.full(1, 9)), shape) == [(shape.half, [[0]])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("count", [1, 300, 3000])
def test_a_table_is_in_grids_of_one_size_whose_rows_are_a_multiple(count, multiple, kind):
    shape = GridShape(8, 256, 128, 16)
    lengths = lengths_like(count, 256, kind)
    found = table_of_grids(lengths, shape, multiple=multiple)
    (size,) = {size for size, _ in found}
    assert size == shape._replace(rows=size.rows)
    assert size.rows in range(multiple, shape.rows + 1, multiple)
    assert sorted(n for _, rows in found for row in rows for n in row) == list(range(count))
    assert all(fits(lengths, row, size) for _, rows in found for row in rows)
    assert all(1 <= len(rows) <= size.rows for _, rows in found)
    assert len(found) <= -(-len(pack(lengths, shape)) // shape.rows)  # no grid more than needed


def test_few_examples_get_a_small_grid():
    def rows(count, multiple):
        lengths = Lengths(np.full(count, 30), np.full(count, 10))
        found = table_of_grids(lengths, GridShape(32, 64, 64, 8), multiple=multiple)
        return [size.rows for size, _ in found]

    assert (rows(5, 1), rows(5, 8), rows(1, 1), rows(65, 1)) == ([3], [8], [1], [17, 17])


# sizes


def sizes_for(lengths: Lengths, sample: Lengths, rows: int) -> list[GridShape]:
    longest = (int(lengths.tokens.max()), int(lengths.answers.max()))
    widths = [-(-longest[0] * part // 80) * 8 for part in range(10, 31, 2)]
    return candidates(sample, widths, rows=rows, longest=longest)


@pytest.mark.parametrize("kind", KINDS)
def test_every_candidate_holds_the_longest_example_even_if_it_is_not_in_the_sample(kind):
    lengths = lengths_like(2000, 256, kind)
    few = lengths.take(np.argsort(lengths.tokens)[:50])
    for shape in sizes_for(lengths, few, rows=2):
        assert shape.rows == 2 and shape.targets <= shape.width
        assert sorted(n for row in pack(lengths, shape) for n in row) == list(range(2000))


def test_the_cheapest_size_is_that_in_which_all_batches_together_cost_least():
    lengths = lengths_like(2000, 256)
    draw = np.random.default_rng(0)
    batches = [lengths.take(draw.integers(0, 2000, 16)) for _ in range(5)]
    shapes = sizes_for(lengths, lengths, rows=1)

    def cost(shape):
        return 50 + shape.tokens + 0.3 * shape.targets

    def total(shape):
        return sum(cost(size) for batch in batches for size, _ in grids_of(batch, shape))

    assert len({total(shape) for shape in shapes}) > 5
    assert total(cheapest(batches, shapes, cost)) == min(map(total, shapes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("longest", [64, 256, 768])
def test_nine_tenths_of_the_tokens_of_steps_of_32_are_real(longest, kind):
    lengths = lengths_like(20_000, longest, kind)
    draw = np.random.default_rng(1)
    sample, steps = ([lengths.take(draw.integers(0, 20_000, 32)) for _ in range(24)] for _ in "ab")
    together = lengths.take(draw.integers(0, 20_000, 768))
    shape = cheapest(sample, sizes_for(lengths, together, rows=1), lambda size: size.tokens)
    computed = sum(size.tokens for step in steps for size, _ in grids_of(step, shape))
    assert 0.9 <= sum(step.tokens.sum() for step in steps) / computed <= 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("longest", [64, 256, 768])
def test_nineteen_twentieths_of_the_tokens_of_a_great_table_are_real(longest, kind):
    lengths = lengths_like(20_000, longest, kind)
    sample = lengths.take(np.arange(1024))

    def table(lengths, shape):
        return table_of_grids(lengths, shape, multiple=1)

    shapes = sizes_for(lengths, sample, rows=16)
    found = table(lengths, cheapest([sample], shapes, lambda size: size.tokens, table))
    assert 0.95 <= lengths.tokens.sum() / sum(size.tokens for size, _ in found) <= 1.0


# arrays


def test_a_grid_tells_of_each_token_where_it_belongs():
    prompts = [np.array([5, 6, 7]), np.array([8]), np.array([9, 9])]
    responses = [[np.array([1, 2])], [np.array([3, 4, 4])], [np.array([], int)]]
    grid = to_grid(
        [[1, 0], [2]],
        lambda n: (prompts[n], responses[n]),
        GridShape(3, 10, 6, 3),
        Layout(length=4, share=True, pad_id=0),
    )
    assert grid.ids.tolist() == [[8, 3, 4, 4, 5, 6, 7, 1, 2, 0], [9, 9, *[0] * 8], [0] * 10]
    assert grid.segment[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 0]
    assert grid.branch[0].tolist() == [0, 1, 1, 1, 0, 0, 0, 1, 1, 0]
    assert grid.position[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0]
    assert grid.prompt.tolist() == [[1, 3, 0], [2, 0, 0], [0, 0, 0]]
    assert grid.before[0].tolist() == [0, 1, 2, 6, 7, 0]
    assert grid.target[0].tolist() == [3, 4, 4, 1, 2, 0]
    assert grid.place[0].tolist() == [4, 5, 6, 0, 1, 0]
    assert grid.real.tolist() == [[1, 1, 1, 1, 1, 0], [0] * 6, [0] * 6]
    assert grid.segment[1].tolist() == [1, 1, *[0] * 8] and not grid.segment[2].any()


def test_the_last_token_of_a_response_is_a_target_and_may_stay_unread():
    prompts = [np.array([5, 6, 7]), np.array([8])]
    responses = [[np.array([1, 2])], [np.array([3])]]
    grid = to_grid(
        [[1, 0]],
        lambda n: (prompts[n], responses[n]),
        GridShape(1, 6, 4, 2),
        Layout(length=2, share=True, pad_id=0, last=False),
    )
    assert grid.ids.tolist() == [[8, 5, 6, 7, 1, 0]]
    assert grid.segment.tolist() == [[1, 2, 2, 2, 2, 0]]
    assert grid.branch.tolist() == [[0, 0, 0, 0, 1, 0]]
    assert grid.position.tolist() == [[0, 0, 1, 2, 3, 0]]
    assert grid.before.tolist() == [[0, 3, 4, 0]] and grid.prompt.tolist() == [[1, 3]]
    assert grid.target.tolist() == [[3, 1, 2, 0]] and grid.real.tolist() == [[1, 1, 1, 0]]
    assert grid.place.tolist() == [[2, 0, 1, 0]]


@pytest.mark.parametrize("share", [True, False])
def test_the_responses_of_a_prompt_go_on_from_it_side_by_side(share):
    prompt, responses = np.array([5, 6]), [np.array([1, 2]), np.array([3]), np.array([4, 4])]
    shape, layout = GridShape(1, 12, 6, 4), Layout(length=2, share=share, pad_id=9)
    grid = to_grid([[1]], lambda n: (prompt, responses), shape, layout)
    row = {name: getattr(grid, name)[0].tolist() for name in grid._fields}
    if share:
        assert row["ids"] == [5, 6, 1, 2, 3, 4, 4, *[9] * 5]
        assert row["segment"] == [1, 1, 1, 1, 1, 1, 1, *[0] * 5]
        assert row["branch"] == [0, 0, 1, 1, 2, 3, 3, *[0] * 5]
        assert row["position"] == [0, 1, 2, 3, 2, 2, 3, *[0] * 5]
        assert row["before"] == [1, 2, 1, 1, 5, 0] and row["prompt"] == [2, 0, 0, 0]
    else:
        assert row["ids"] == [5, 6, 1, 2, 5, 6, 3, 5, 6, 4, 4, 9]
        assert row["segment"] == [1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 0]
        assert row["position"] == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 0]
        assert row["before"] == [1, 2, 5, 8, 9, 0] and row["prompt"] == [2, 2, 2, 0]
    assert row["target"] == [1, 2, 3, 4, 4, 0] and row["real"] == [1, 1, 1, 1, 1, 0]
    assert row["place"] == [6, 7, 8, 10, 11, 0]  # of [example 1, response, token] of [·, 3, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_every_example_is_in_its_grid_and_every_response_token_has_a_place(kind):
    """Even if the padding is a token that texts have."""
    (count, share), draw = KINDS[kind], np.random.default_rng(3)
    prompts = [draw.integers(0, 5, draw.integers(1, 9)) for _ in range(40)]
    responses = [[draw.integers(0, 5, draw.integers(0, 7)) for _ in range(count)] for _ in prompts]
    sizes = np.array([[len(one) for one in each] for each in responses])
    lengths = lengths_of(np.array([len(one) for one in prompts]), sizes, share=share)
    layout = Layout(length=7, share=share, pad_id=3)
    written = np.full((40, count, 7), -1)
    for size, rows in grids_of(lengths, GridShape(3, 70, 50, 12)):
        grid = to_grid(rows, lambda n: (prompts[n], responses[n]), size, layout)
        assert grid.ids.shape == (size.rows, size.width)
        real = grid.real > 0
        assert np.all(written.reshape(-1)[grid.place[real]] == -1)
        written.reshape(-1)[grid.place[real]] = grid.target[real]
        assert (grid.segment > 0).sum() == lengths.tokens[[n for row in rows for n in row]].sum()
        assert np.all(grid.ids[grid.segment == 0] == 3)
        before = np.take_along_axis(grid.position, grid.before, axis=1)
        rest = np.take_along_axis(grid.segment, grid.before, axis=1)
        length = np.take_along_axis(grid.prompt, np.maximum(rest - 1, 0), axis=1)
        assert np.all((before - length + 1 == grid.place % 7)[real])  # the position before
    for n, each in enumerate(responses):
        for k, response in enumerate(each):
            assert written[n, k].tolist() == [*response, *[-1] * (7 - len(response))]
