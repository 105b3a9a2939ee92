"""Pods and several slices: what is compiled for them, and what goes between slices."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.plan.chips import CHIPS, read_topology
from alol_jax.plan.costs import Cost, Memory
from alol_jax.plan.knobs import KNOBS
from alol_jax.plan.setting import Setting, prepare
from alol_jax.plan.summary import table, verdict
from alol_jax.plan.traffic import Traffic, traffic_of
from configs import quickstart

MIB = 2**20


def on(topology: str, *, slices: int = 1, **values) -> Setting:
    """The debug config on all chips of a topology, with grids of 256 tokens a row."""
    config = quickstart.get_config("debug")
    where = read_topology(topology)
    rows = where.chips * slices
    sizes = dict.fromkeys(("model.rows", "decode.batch_size", "value.batch_size"), rows)
    config.update_from_flattened_dict({"model.width": 256} | sizes | values)
    return Setting(config, where, rows, slices=slices)


def cost(traffic: Traffic, chip: str = "v5e") -> Cost:
    return Cost("policy step", Memory(1.0, 0, 0, 0, 0), traffic, 1.0, 0.0, CHIPS[chip], 1.0)


@pytest.mark.tpu
@pytest.mark.parametrize("topology", ["v5e:16x16", "v5p:4x4x4"])
def test_a_step_compiles_for_a_pod(topology):
    prepare()
    (step,) = on(topology, **{"mesh.data": -1, "mesh.fsdp": 16}).costs(("policy step",))
    assert step.fits and step.traffic.network > 0 and step.traffic.outside == 0
    assert step.rows == read_topology(topology).chips


@pytest.mark.tpu
@pytest.mark.parametrize("sizes", [(-1, 8, 1), (-1, 2, 2), (1, -1, 4), (-1, 1, 1)])
@pytest.mark.parametrize("topology", ["v5e:16x16", "v5p:4x4x4", "v6e:16x16"])
def test_an_axis_of_the_mesh_may_be_a_part_of_a_pods_side(topology, sizes):
    prepare()
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    made = make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2], devices=described)
    assert set(made.devices.flat) == set(described)


@pytest.mark.tpu
def test_what_is_summed_over_two_slices_goes_outside_once():
    """A gradient of 2 MiB, of which each of the 8 chips of a slice has its eighth."""
    prepare()
    described = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x4", num_slices=2
    ).devices
    mesh = make_mesh(data=2, fsdp=8, tensor=1, devices=described)

    def shape(*sides, axes):
        return jax.ShapeDtypeStruct(sides, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))

    def gradient(w, x):
        return jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)

    weights = shape(512, 1024, axes=("fsdp",))
    function = jax.jit(gradient, out_shardings=weights.sharding)
    lowered = function.trace(weights, shape(256, 512, axes=(("data", "fsdp"),)))
    text = lowered.lower(lowering_platforms=("tpu",)).compile().as_text()
    found = traffic_of(text)
    assert found.outside == 2 * MIB / 8
    assert found.network > found.outside


@pytest.mark.tpu
def test_a_step_over_two_slices_sends_its_gradients_outside():
    prepare()
    setting = on("v5e:2x2", slices=2, **{"mesh.data": 2, "mesh.fsdp": 4})
    trained, _ = setting.open().abstract()
    pieces = [leaf.sharding.shard_shape(leaf.shape) for leaf in trained.values()]
    (step,) = setting.costs(("policy step",))
    assert step.fits
    gradients = 4 * sum(map(math.prod, pieces))
    # What the four chips of a slice all have is summed there first, and sent in parts.
    assert gradients / 4 < step.traffic.outside <= gradients


@pytest.mark.tpu
def test_weights_cut_across_slices_are_refused():
    prepare()
    with pytest.raises(UserError, match="data=1 must be a multiple of the 2 TPU slices"):
        on("v5e:2x2", slices=2, **{"mesh.data": 1, "mesh.fsdp": 8}).open()


def test_several_slices_are_used_whole():
    setting = Setting(quickstart.get_config("debug"), read_topology("v5e:2x2"), 6, slices=2)
    with pytest.raises(UserError, match=r"--chips=6: 2 × v5e:2x2, used whole, has 8 chips"):
        setting.open()


def test_the_network_between_slices_can_be_the_bound():
    one = cost(Traffic(1.0, {"all-gather": 1.0}, outside=2 * CHIPS["v5e"].outside))
    assert (one.bound, one.seconds) == ("slices", 2.0)
    unknown = cost(Traffic(1.0, {"all-gather": 1.0}, outside=1e9), chip="v5p")
    assert "slices" not in unknown.times


def test_the_table_shows_what_goes_outside_if_anything_does():
    inside, outside = (Traffic(1e9, {"all-gather": 2e9}, outside=size) for size in (0.0, 3e9))
    assert "outside" not in table([cost(inside)])
    head, row = table([cost(inside), cost(outside)]).split("\n")[::2]
    assert "GB outside" in head and row.split()[11:14] == ["2", "0", "3"]


def test_the_verdict_counts_all_chips():
    setting = on("v5e:16x16", slices=2)
    said = verdict(setting, [cost(Traffic(1.0, {}))], "")
    assert said.startswith("fits on 512 × v5e (2 × v5e:16x16)")


def test_more_chips_for_slices_are_larger_slices(monkeypatch):
    setting = on("v5e:2x2", slices=2)
    said, larger = KNOBS["chips"].apply(setting)
    assert said.startswith("--topology=v5e:2x4 with config.mesh data=2, fsdp=-1")
    assert (larger.chips, larger.slices, larger.config.mesh.data) == (16, 2, 2)
