"""Prompts for decoding: padded on the left, in batches of a few widths."""

import numpy as np
import pytest

from alol_jax.text.tokens import Batching, left_padded
from tests.tiny_run import mesh_of


def test_masks_come_from_lengths_even_where_the_padding_is_the_end_token():
    eos = 2
    ids, mask = left_padded([(eos, 5), (7,), (8, eos, eos)], 3, eos)
    assert ids.dtype == np.int32 and mask.dtype == np.float32
    np.testing.assert_array_equal(ids, [[eos, eos, 5], [eos, eos, 7], [8, eos, eos]])
    np.testing.assert_array_equal(mask, [[0, 1, 1], [0, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize("width", [8, 11])
def test_what_the_mask_keeps_is_what_came_in(width):
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 9, size=n).tolist() for n in (1, 5, 0, 8)]
    ids, mask = left_padded(rows, width, 0)
    assert ids.shape == mask.shape == (4, width)
    for row, read, real in zip(rows, ids, mask, strict=True):
        assert read[real > 0].tolist() == row
        assert np.all(np.diff(real) >= 0)  # nothing follows the text


def test_every_prompt_is_in_one_batch_of_the_smallest_width_that_holds_it():
    lengths = np.random.default_rng(1).integers(0, 17, 100)
    batches = Batching((16, 4, 8), 7, 0, mesh_of(1)).batches(lengths)
    assert sorted(n for _, rows in batches for n in rows) == list(range(100))
    assert [width for width, _ in batches] == sorted(width for width, _ in batches)
    for width, rows in batches:
        assert 1 <= len(rows) <= 7
        assert lengths[rows].max() <= width
        assert width == 4 or lengths[rows].min() > width // 2
