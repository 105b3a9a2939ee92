"""Padding to ``Tokens``."""

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.text.tokens import shape_for, to_tokens


def test_masks_come_from_lengths_even_where_the_padding_is_the_end_token():
    eos = 2
    prompts, responses = [(eos, 5), (7,)], [(8, eos), (eos,)]
    batch = to_tokens(prompts, responses, shape=(3, 4), pad_id=eos)
    assert batch.prompt.dtype == np.int32 and batch.mask.dtype == np.float32
    np.testing.assert_array_equal(batch.prompt_mask, [[0, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(batch.mask, [[1, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.prompt, [[eos, eos, 5], [eos, eos, 7]])
    np.testing.assert_array_equal(batch.response, [[8, eos, eos, eos], [eos] * 4])


def test_what_the_mask_keeps_is_what_came_in():
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 9, size=n).tolist() for n in (1, 5, 3, 8)]
    batch = to_tokens(rows, rows[::-1], shape=(8, 9), pad_id=0)
    for i, row in enumerate(rows):
        assert batch.prompt[i][batch.prompt_mask[i] > 0].tolist() == row
        assert batch.response[i][batch.mask[i] > 0].tolist() == rows[-1 - i]
        assert batch.prompt_mask[i][-1] == batch.mask[i][0] == 1


def test_several_responses_of_a_prompt_stay_side_by_side():
    batch = to_tokens([(1,), (2,)], [(3,), (4,), (5,), (6,)], shape=(1, 1), pad_id=0)
    assert batch.prompt.tolist() == [[1], [2]]
    assert batch.response.reshape(2, 2).tolist() == [[3, 4], [5, 6]]


def test_rows_that_do_not_fit_are_an_error():
    with pytest.raises(UserError, match="a prompt of 3 tokens does not fit in 2"):
        to_tokens([(1, 2, 3)], [(1,)], shape=(2, 2), pad_id=0)
    with pytest.raises(UserError, match="a response of 3 tokens does not fit in 2"):
        to_tokens([(1,)], [(1, 2, 3)], shape=(2, 2), pad_id=0)
    with pytest.raises(UserError, match="2 prompts for 1 responses"):
        to_tokens([(1,), (2,)], [(1,)], shape=(2, 2), pad_id=0)


def test_the_smallest_shape_that_fits_is_chosen():
    shapes = [(64, 64), (16, 16), (16, 64), (64, 16)]
    assert shape_for(16, 16, shapes) == (16, 16)
    assert shape_for(16, 17, shapes) == (16, 64)
    assert shape_for(17, 1, shapes) == (64, 16)
    assert shape_for(17, 17, shapes) == (64, 64)
    with pytest.raises(UserError, match="a prompt of 65 and a response of 1 tokens fit none"):
        shape_for(65, 1, shapes)
