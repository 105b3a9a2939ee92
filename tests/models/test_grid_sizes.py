"""The size of grids: large enough, full, and one that the platform's kernel can read."""

import types

import numpy as np
import pytest

from alol_jax.errors import UserError
from alol_jax.models.grid_sizes import (
    PLATFORMS,
    GridOptions,
    pack_table,
    pack_texts,
    pass_cost,
    platform_of,
    widths_for,
)
from alol_jax.models.kernels import KERNELS, PREFERRED, Setting
from alol_jax.models.presets import PRESETS
from alol_jax.text.packing import GridShape
from tests.tiny_run import mesh_of

CONFIG = PRESETS["llama-tiny"]
CHOSEN = GridOptions()
EVERY_PLATFORM = pytest.mark.parametrize("platform", PLATFORMS, ids="on a {}".format)


def lengths_of(count, longest=200, seed=0):
    """Log-normal lengths of texts."""
    draw = np.random.default_rng(seed)
    return np.clip(np.exp(draw.normal(np.log(longest / 6), 0.7, count)).astype(int), 1, longest)


def mesh_like(platform, shards=1):
    """What the choice of a size reads of a mesh, of a platform that need not be there."""
    devices = np.array([types.SimpleNamespace(platform=platform, compute_capability="9.0")])
    return types.SimpleNamespace(devices=devices, shape={"data": shards, "fsdp": 1, "tensor": 1})


@EVERY_PLATFORM
@pytest.mark.parametrize("longest", [2, 50, 640, 1000, 3000])
def test_every_width_holds_the_longest_example_and_its_kernel_reads_it_and_its_half(
    platform, longest
):
    mesh = mesh_like(platform)
    widths = widths_for(CHOSEN, mesh, longest)
    packed = pack_texts(CONFIG, mesh, np.array([longest, 1, 1]))
    assert widths == sorted(set(widths)) and widths[0] >= longest
    assert widths[0] < max(longest, platform_of(mesh).least) + platform_of(mesh).multiple
    kernel = KERNELS[PREFERRED[platform]]
    read = [*widths, *(width // 2 for width in widths), *(size.width for size, _ in packed.grids)]
    assert kernel.unsupported(Setting(np.dtype("float16"), 64, read, None, "9.0")) == ""


def test_a_width_that_is_given_is_the_only_one_and_must_hold_the_longest_example():
    mesh = mesh_of(1)
    assert widths_for(GridOptions(width=90), mesh, 90) == [90]
    with pytest.raises(UserError, match="config.model.width=90: the longest example has 91 tokens"):
        widths_for(GridOptions(width=90), mesh, 91)


def test_a_pass_costs_more_for_each_row_token_and_target_and_half_as_wide_rows_cost_less():
    cost = pass_cost(CONFIG, mesh_of(1))
    base = GridShape(4, 256, 64, 8)
    for larger in ({"rows": 5}, {"width": 272}, {"targets": 72}):
        assert cost(base._replace(**larger)) > cost(base)
    assert cost(base._replace(rows=8, width=128, targets=32)) < cost(base)  # of as many tokens
    assert 2 * cost(base) > cost(base._replace(rows=8))  # each pass costs something


# tables


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("count", [1, 30, 3000])
def test_every_example_of_a_table_is_in_one_row_that_holds_it(count, shards):
    prompts, responses = lengths_of(count), lengths_of(count, 100, seed=1)
    packed = pack_table(CONFIG, mesh_like("cpu", shards), CHOSEN, prompts, responses)
    rows = [row for _, rows in packed.grids for row in rows]
    assert sorted(n for row in rows for n in row) == list(range(count))
    (shape,) = {size for size, _ in packed.grids}
    assert shape.rows % shards == 0
    for row in rows:
        assert (prompts[row] + responses[row]).sum() <= shape.width
        assert responses[row].sum() <= shape.targets and len(row) <= shape.slots
    computed = sum(size.tokens for size, _ in packed.grids)
    assert packed.real == pytest.approx((prompts + responses).sum() / computed)


@EVERY_PLATFORM
@pytest.mark.parametrize("longest", [60, 500, 1500])
def test_nineteen_twentieths_of_a_great_table_are_real_tokens(longest, platform):
    lengths = lengths_of(20_000, longest), lengths_of(20_000, longest // 2, seed=1)
    assert 0.95 <= pack_table(CONFIG, mesh_like(platform), CHOSEN, *lengths).real <= 1.0


def test_the_longest_example_may_come_after_the_sample():
    prompts, responses = np.full(3000, 10), np.full(3000, 5)
    prompts[-1], responses[-1] = 150, 140
    packed = pack_table(CONFIG, mesh_of(1), CHOSEN, prompts, responses)
    assert sorted(n for _, rows in packed.grids for row in rows for n in row) == list(range(3000))


def test_a_size_that_is_given_is_used():
    given = GridOptions(width=400, rows=3)
    packed = pack_table(CONFIG, mesh_of(1), given, lengths_of(500), np.full(500, 20))
    assert {(size.rows <= 3, size.width) for size, _ in packed.grids} == {(True, 400)}


# texts


@EVERY_PLATFORM
def test_every_text_is_in_one_row_that_holds_it(platform):
    for seed, count in enumerate((1, 2, 9, 100, 2000)):
        lengths = lengths_of(count, 900, seed)
        packed = pack_texts(CONFIG, mesh_like(platform, 2), lengths)
        rows = [row for _, rows in packed.grids for row in rows]
        assert sorted(n for row in rows for n in row) == list(range(count))
        assert all(size.rows % 2 == 0 for size, _ in packed.grids)
        assert all(len(rows) <= size.rows for size, rows in packed.grids)
        for row in rows:
            assert lengths[row].sum() <= packed.grids[0][0].width
            assert len(row) <= packed.grids[0][0].slots


def test_texts_that_keep_coming_are_read_in_few_sizes():
    """One program is compiled for each; every batch of answers has other lengths."""
    mesh, draw = mesh_of(1), np.random.default_rng(0)
    sizes = {
        size
        for seed in range(200)
        for size, _ in pack_texts(CONFIG, mesh, lengths_of(draw.integers(1, 300), 120, seed)).grids
    }
    assert len(sizes) <= 25
    for size in sizes:
        assert np.log2(size.rows).is_integer() and np.log2(size.width).is_integer()


def test_most_tokens_of_many_texts_are_real():
    for longest, share in ((60, 0.85), (200, 0.95), (1000, 0.95)):
        assert pack_texts(CONFIG, mesh_of(1), lengths_of(5000, longest)).real >= share


def test_nothing_needs_no_grid():
    none = np.zeros(0, int)
    assert pack_texts(CONFIG, mesh_of(1), none) == ([], 1.0)
    assert pack_table(CONFIG, mesh_of(1), CHOSEN, none, none) == ([], 1.0)
