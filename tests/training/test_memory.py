"""The estimate of memory by which the rows of a grid are chosen."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from alol_jax.devices.sharding import bytes_per_device
from alol_jax.models.transformer import REMAT
from alol_jax.training.memory import bytes_per_token, fits_in_training
from tests.tiny_run import mesh_of, tiny_lm

LM = tiny_lm()
GIB = 2**30


def _on(*limits: float | None, lm=LM):
    """The model on devices of so many bytes each; None: they do not say."""
    said = [{} if limit is None else {"bytes_limit": limit} for limit in limits]
    devices = [SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in said]
    return SimpleNamespace(
        mesh=SimpleNamespace(local_devices=devices),
        transformer=lm.transformer,
        abstract=lm.abstract,
        shards=lm.shards,
        logprob_chunk=lm.logprob_chunk,
    )


def test_what_a_remat_policy_keeps_takes_memory():
    kept = [
        bytes_per_token(dataclasses.replace(LM.transformer, remat=remat))
        for remat in ("none", "projections", "attention", "full")
    ]
    assert set(REMAT) == {"none", "projections", "attention", "full"}
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4


def test_a_grid_fits_until_its_tokens_are_too_many():
    device = _on(GIB)
    fits = [fits_in_training(device, 2**n) for n in range(6, 26)]
    assert fits == sorted(fits, reverse=True) and fits[0] and not fits[-1]
    assert sum(fits) <= sum(fits_in_training(_on(4 * GIB), 2**n) for n in range(6, 26))


def test_the_smallest_device_decides():
    tokens = next(2**n for n in range(30) if not fits_in_training(_on(GIB), 2**n))
    assert fits_in_training(_on(64 * GIB, 64 * GIB), tokens)
    assert not fits_in_training(_on(64 * GIB, GIB), tokens)


def test_a_device_that_does_not_say_holds_everything():
    assert fits_in_training(_on(None), 10**12) and fits_in_training(_on(GIB, None), 10**12)


def test_what_trains_needs_room_for_its_gradient_and_moments():
    for rank, fits in ((2, True), (0, False)):
        lm = tiny_lm(rank=rank)
        assert fits_in_training(_on(3 * bytes_per_device(lm.abstract()), lm=lm), 1) == fits


def test_nothing_fits_beside_weights_that_do_not():
    trained, frozen = LM.abstract()
    assert not fits_in_training(_on(bytes_per_device((trained, frozen))), 1)


@pytest.mark.parametrize("rank", [0, 2])
def test_weights_that_are_cut_over_devices_take_a_part_on_each(rank):
    whole, cut = (
        bytes_per_device(tiny_lm(rank=rank, mesh=mesh_of(n, fsdp=n)).abstract()) for n in (1, 4)
    )
    leaves = jax.tree.leaves(tiny_lm(rank=rank).abstract())
    assert whole == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert whole / 4 <= cut < whole / 2
