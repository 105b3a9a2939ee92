"""The mesh, the partition table, and placing arrays: on eight virtual devices."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import (
    AXES,
    PARTITION,
    bytes_per_device,
    make_mesh,
    param_sharding,
    place_like_params,
    place_params,
    place_rows,
    replicated,
)
from alol_jax.errors import UserError
from alol_jax.models.heads import ValueHead
from alol_jax.models.nf4 import NF4
from alol_jax.models.presets import PRESETS
from alol_jax.models.transformer import Transformer
from alol_jax.training.fit import init_state
from tests.tiny_run import tiny_lm


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=2, fsdp=2, tensor=2)


def _llama_shapes(rank):
    """Every parameter of the tiny Llama, with a head of its own."""
    config = dataclasses.replace(PRESETS["llama-tiny"], tied_embeddings=False)
    lora = tiny_lm(rank=rank).transformer.lora
    return jax.eval_shape(Transformer(config, lora, jnp.float32, "none").init, jax.random.key(0))


def _family_shapes(name, nf4=None):
    """Every parameter of a family's tiny preset, perhaps with a quantised base."""
    bare = Transformer(PRESETS[name], None, jnp.float32, "none", nf4=nf4)
    return jax.eval_shape(bare.init, jax.random.key(0))


def _classifier_shapes():
    """An encoder with all the heads that classifiers have."""
    return _family_shapes("roberta-base") | dict.fromkeys(
        ("score/kernel", "score/bias", "score/dense/kernel", "score/out/bias", "pooler/kernel")
    )


def _value_shapes():
    return jax.eval_shape(lambda key: ValueHead(64, 1.0).init(key, 0.5), jax.random.key(0))


ALL = {
    "llama": lambda: _llama_shapes(0),
    "llama with adapters": lambda: _llama_shapes(4),
    "llama, quantised": lambda: _family_shapes("llama-tiny", NF4(double=False)),
    "llama, quantised twice": lambda: _family_shapes("llama-tiny", NF4(double=True)),
    "gpt_neox": lambda: _family_shapes("gpt-neox-tiny"),
    "gpt2": lambda: _family_shapes("gpt2-tiny"),
    "roberta with heads": _classifier_shapes,
    "value head": _value_shapes,
}


@pytest.mark.parametrize("model", ALL)
def test_every_parameter_matches_exactly_one_row(model):
    paths = ALL[model]()
    matches = {p: [row for row, _ in PARTITION if re.fullmatch(row, p)] for p in paths}
    assert {path: rows for path, rows in matches.items() if len(rows) != 1} == {}


def test_every_row_of_the_table_is_used():
    paths = {path for shapes in ALL.values() for path in shapes()}
    assert [row for row, _ in PARTITION if not any(re.fullmatch(row, p) for p in paths)] == []


def test_every_matrix_of_the_model_is_cut_in_four_and_no_norm_is(mesh):
    for path, leaf in _llama_shapes(0).items():
        piece = param_sharding(path, leaf.shape, mesh).shard_shape(leaf.shape)
        assert np.prod(leaf.shape) / np.prod(piece) == (1 if path.endswith("scale") else 4), path
        if path.startswith("layers/"):
            assert piece[0] == leaf.shape[0]  # the axis of the layers is scanned over


def test_a_projection_and_its_adapters_are_cut_alike(mesh):
    shapes = _llama_shapes(4)
    for path in shapes:
        if path.endswith("lora_a"):
            module = path.removesuffix("/lora_a")
            kernel = param_sharding(f"{module}/kernel", shapes[f"{module}/kernel"].shape, mesh).spec
            a = param_sharding(path, shapes[path].shape, mesh).spec
            b = param_sharding(f"{module}/lora_b", shapes[f"{module}/lora_b"].shape, mesh).spec
            assert (a[1], b[2]) == (kernel[1], kernel[2])
            assert (a[2], b[1]) == (None, None)  # the rank is never cut


@pytest.mark.parametrize("path", ["layers/qkv/kernel", "layers/q_proj/kernel/extra", "wte", ""])
def test_a_parameter_without_a_row_is_an_error(path, mesh):
    with pytest.raises(ValueError, match=f"no row of the partition table .* {path!r}"):
        param_sharding(path, (4, 4, 4), mesh)


def test_a_dimension_that_its_axis_does_not_divide_is_kept_whole(mesh):
    path = "layers/q_proj/kernel"
    assert param_sharding(path, (3, 8, 6), mesh).spec == P(None, "fsdp", "tensor")
    assert param_sharding(path, (3, 7, 6), mesh).spec == P(None, None, "tensor")
    assert param_sharding(path, (3, 8, 5), mesh).spec == P(None, "fsdp", None)


# the mesh


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 2, -1), (1, 2, 4)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_one_axis_may_take_what_is_left(sizes, shape):
    made = make_mesh(**dict(zip(AXES, sizes, strict=True)))
    assert made.axis_names == AXES and made.devices.shape == shape


@pytest.mark.parametrize(
    "sizes", [(2, 2, 1), (3, -1, 1), (-1, -1, 1), (16, 1, 1), (-1, 16, 1), (0, -1, 1), (-2, -4, 1)]
)
def test_sizes_that_do_not_fit_the_devices_are_one_clear_line(sizes):
    with pytest.raises(UserError, match=r"^config\.mesh data=.* does not fit 8 devices.*product"):
        make_mesh(**dict(zip(AXES, sizes, strict=True)))


# Several slices: stand-ins for devices, which have what a mesh asks of them


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str
    process_index: int = 0
    core_on_chip: int = 0
    device_kind: str = "TPU v5 lite"


def slices_of(platform, slices=2):
    """So many slices of 2 × 4 chips, not in the order of the slices."""
    chips = [(x, y, 0) for y in range(4) for x in range(2)]
    return [
        Device(8 * number + index, number, place, platform)
        for index, place in enumerate(chips)
        for number in reversed(range(slices))
    ]


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 8, 1), (2, 8, 1)), ((-1, 1, 1), (16, 1, 1)), ((2, 2, -1), (2, 2, 4))],
)
def test_only_the_data_axis_goes_across_tpu_slices(sizes, shape):
    devices = slices_of("tpu")
    made = make_mesh(**dict(zip(AXES, sizes, strict=True)), devices=devices).devices
    assert made.shape == shape and set(made.flat) == set(devices)
    for number, part in enumerate(np.split(made, 2)):
        assert {device.slice_index for device in part.flat} == {number}


@pytest.mark.parametrize("sizes", [(1, 16, 1), (1, 8, 2), (1, 1, -1)])
def test_a_mesh_that_would_cut_weights_across_tpu_slices_is_one_clear_line(sizes):
    with pytest.raises(UserError, match=r"^config\.mesh data=1 must be a multiple of the 2 TPU"):
        make_mesh(**dict(zip(AXES, sizes, strict=True)), devices=slices_of("tpu"))


def test_on_hosts_with_gpus_the_last_axes_stay_inside_a_host():
    devices = sorted(slices_of("gpu"), key=lambda device: device.id)
    made = make_mesh(data=2, fsdp=4, tensor=2, devices=devices).devices
    assert [device.id for device in made.flat] == list(range(16))
    assert make_mesh(data=1, fsdp=16, tensor=1, devices=devices).devices.shape == (1, 16, 1)


# placing


def test_placed_parameters_hold_the_same_numbers(mesh):
    params = tiny_lm(rank=0).base
    for path, leaf in place_params(params, mesh).items():
        np.testing.assert_array_equal(leaf, params[path])
        assert leaf.sharding == param_sharding(path, leaf.shape, mesh)


@pytest.mark.parametrize(("axis", "shape"), [(0, (8, 3)), (1, (2, 8, 3))])
def test_rows_are_cut_over_data_and_fsdp(mesh, axis, shape):
    rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    placed = place_rows((rows, rows[..., 0]), mesh, axis=axis)
    np.testing.assert_array_equal(placed[0], rows)
    np.testing.assert_array_equal(placed[1], rows[..., 0])
    assert placed[0].sharding.shard_shape(shape)[axis] == 2
    assert len({str(s.index) for s in placed[0].addressable_shards}) == 4


def test_rows_that_the_devices_do_not_divide_are_one_clear_line(mesh):
    with pytest.raises(UserError, match=r"a batch of 6 rows .* data·fsdp = 4 .* multiple of 4"):
        place_rows(np.zeros((6, 2)), mesh)


def test_the_optimizer_state_stands_beside_its_parameters(mesh):
    params = {path: jnp.zeros(leaf.shape) for path, leaf in _llama_shapes(4).items()}
    state = place_like_params(init_state(params, optax.adam(1e-3)), mesh)
    moments = state.opt_state[0]
    for path, leaf in params.items():
        where = param_sharding(path, leaf.shape, mesh)
        assert state.trained[path].sharding == where
        assert moments.mu[path].sharding == where == moments.nu[path].sharding
    for counter in (state.step, moments.count):
        assert counter.sharding == replicated(mesh)


@pytest.mark.parametrize(("axes", "share"), [({"data": 8}, 1), ({"data": 2, "fsdp": 4}, 4)])
def test_a_device_holds_a_kernel_whole_unless_fsdp_cuts_it(axes, share):
    mesh = make_mesh(**({"data": 1, "fsdp": 1, "tensor": 1} | axes))
    kernel = np.zeros((2, 64, 32), np.float32)
    placed = place_params({"layers/q_proj/kernel": kernel}, mesh)
    assert bytes_per_device(placed) == kernel.nbytes / share
