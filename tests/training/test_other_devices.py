"""A fit that began on other devices goes on from its checkpoint."""

import jax
import numpy as np
import pytest

from alol_jax.errors import Interrupted
from alol_jax.stages.fit_reference import fit_reference
from alol_jax.types import Limits
from tests.tiny_run import TASK, context, mesh_of, scored_splits, small_options, tiny_lm

GRID = {"limits": Limits(16, 16), "rows": 4, "width": 32}
SCORED = scored_splits(train=16)


def fit(folder, lm, *, stop_after=None, said=None):
    options = small_options().reference
    options.epochs = 2.0
    asked = []

    def stopping():
        asked.append(1)
        return stop_after is not None and len(asked) > stop_after

    told = context(folder, said=said)._replace(stopping=stopping)
    return fit_reference(lm, TASK, options, 0, SCORED, context=told)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_fit_begun_on_four_devices_goes_on_with_one(fsdp, tmp_path):
    four, one = tiny_lm(mesh=mesh_of(4, fsdp=fsdp), **GRID), tiny_lm(**GRID)
    whole = fit(tmp_path / "whole", one)
    with pytest.raises(Interrupted, match="saved at step"):
        fit(tmp_path / "moved", four, stop_after=3)
    said = []
    moved = fit(tmp_path / "moved", one, said=said)
    (resumed,) = [line for line in said if line.startswith("resuming at step ")]
    assert resumed != "resuming at step 0/8"
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(moved.trained)} == {1}
    for path, leaf in whole.trained.items():
        np.testing.assert_allclose(moved.trained[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)
