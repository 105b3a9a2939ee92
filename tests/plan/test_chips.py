"""Known chips and their topologies."""

import pytest

from alol_jax.errors import UserError
from alol_jax.plan.chips import CHIPS, GIB, read_topology


@pytest.mark.parametrize(
    ("text", "chips"), [("v5e:2x4", 8), ("v5e:1x1", 1), ("v5p:2x2x1", 4), ("v4:4x4x4", 64)]
)
def test_a_topology_says_how_many_chips_it_has(text, chips):
    found = read_topology(text)
    assert (found.name, found.chips) == (text, chips)


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:2", "v5e:2x2x2", "v5p:2x4", "v6e:0x4"])
def test_a_shape_of_another_chip_is_refused_with_examples(text):
    with pytest.raises(UserError, match="dimensions, like"):
        read_topology(text)


def test_an_unknown_chip_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="v6e"):
        read_topology("v6:2x4")


def test_the_next_larger_topology_has_twice_the_chips():
    assert read_topology("v5e:1x1").larger.name == "v5e:2x2"
    assert read_topology("v5p:2x2x1").larger.name == "v5p:2x2x2"
    assert read_topology("v6e:16x16").larger is None


@pytest.mark.parametrize("kind", CHIPS)
def test_usual_topologies_ascend_and_can_be_read(kind):
    sizes = [read_topology(f"{kind}:{shape}").chips for shape in CHIPS[kind].slices]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(("kind", "gib"), [("v4", 32), ("v5e", 16), ("v6e", 32)])
def test_a_program_gets_nearly_all_of_the_memory_that_the_data_sheet_names(kind, gib):
    assert 0 <= gib - CHIPS[kind].usable / GIB <= 1.5
