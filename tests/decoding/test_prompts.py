"""Prompts side by side: which are taken, and where each of their tokens is found again."""

import jax
import numpy as np
import pytest

from alol_jax.decoding.prompts import in_columns, lay_out, one_per_row, take
from alol_jax.text.tokens import Batching
from tests.models.small_models import random_params, small
from tests.tiny_run import mesh_of

DRAW = np.random.default_rng(0)
PROMPTS = [DRAW.integers(1, 20, size=n).tolist() for n in (5, 1, 8, 3, 2, 7, 4, 6)]


def packed(groups: int, columns: int = 8):
    """All prompts, shared out over groups, in rows of 16 tokens."""
    each = len(PROMPTS) // groups
    lengths, members = np.array([len(p) for p in PROMPTS]), []
    for group in range(groups):
        waiting = list(range(group * each, (group + 1) * each))
        members.append(take(waiting, lengths, each, 8 // groups, 16))
        assert not waiting
    order = [n for group in members for row in group for n in row]
    return lay_out(members, PROMPTS, each, (8 // groups, 16, columns), 0), order


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_prompt_is_found_again_at_the_end_of_its_columns(groups):
    prompts, order = packed(groups)
    ids, mask = map(np.asarray, in_columns(prompts))
    for place, prompt in enumerate(order):
        assert ids[place][mask[place]].tolist() == PROMPTS[prompt]
        assert np.all(np.diff(mask[place].astype(int)) >= 0)  # nothing follows the prompt
    assert sorted(order) == list(range(len(PROMPTS)))


def test_prompts_side_by_side_are_read_as_they_are_alone():
    model = small()
    params = random_params(model)
    together, order = packed(2)
    hidden, cache = jax.jit(model.prefill, static_argnames="room")(params, together, room=3)
    for place, prompt in enumerate(order):
        alone, own = model.prefill(params, one_per_row([PROMPTS[prompt]], 8, 0), room=3)
        np.testing.assert_allclose(hidden[place], alone[0], atol=1e-5)
        filled = np.asarray(own.filled[0])
        np.testing.assert_array_equal(cache.filled[place], filled)
        assert int(cache.position[place]) == len(PROMPTS[prompt])
        for ours, theirs in (
            (cache.k[:, place], own.k[:, 0]),
            (cache.v[:, place].swapaxes(2, 3), own.v[:, 0].swapaxes(2, 3)),
        ):
            np.testing.assert_allclose(
                np.asarray(ours)[..., filled], np.asarray(theirs)[..., filled], atol=1e-5
            )


def test_the_first_that_waits_is_taken_always_and_no_row_is_overfull():
    for seed in range(50):
        draw = np.random.default_rng(seed)
        lengths = draw.integers(1, 17, size=30)
        waiting = draw.permutation(30).tolist()
        before, most = list(waiting), int(draw.integers(1, 9))
        rows = take(waiting, lengths, most, 3, 16)
        taken = [n for row in rows for n in row]
        assert before[0] in taken and 1 <= len(taken) <= most
        assert all(lengths[row].sum() <= 16 for row in rows)
        assert sorted(taken + waiting) == sorted(before)
        assert waiting == [n for n in before if n not in taken]  # the order stays


@pytest.mark.parametrize("longest", [3, 20, 64])
def test_about_as_many_prompts_as_asked_for_fit_into_the_grid_that_reads_them(longest):
    lengths = np.random.default_rng(longest).integers(1, longest + 1, 400)
    batching = Batching((16, 64), 8, 0, mesh_of(1))
    rows, width, columns = batching.grid(lengths, int(lengths.max()), 6)
    assert columns in (16, 64) and columns >= longest and width >= columns and width % 8 == 0
    waiting, counts = list(range(400)), []
    while waiting:
        counts.append(sum(map(len, take(waiting, lengths, 12, rows, width))))
    assert 5 <= np.mean(counts[:-1]) <= 12


def test_grids_of_all_prompts_that_will_come_are_of_one_size_for_each_part_of_them():
    lengths = np.random.default_rng(7).integers(1, 65, 200)
    batching = Batching((16, 64), 8, 0, mesh_of(1), lengths=lengths)
    parts = [lengths[start : start + 10] for start in range(0, 200, 10)]
    assert len({batching.grid(part, 64, 4) for part in parts}) == 1
    assert len({Batching((16, 64), 8, 0, mesh_of(1)).grid(part, 64, 4) for part in parts}) > 1
