"""What compiled programs move, on small programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import make_mesh
from alol_jax.plan.traffic import COLLECTIVES, parse, size_of, traffic_of

KIB = 1024.0


def compiled(fn, *arguments) -> str:
    return jax.jit(fn).lower(*arguments).compile().as_text()


def on_mesh(mesh, shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))


def mapped(mesh, fn, spec_in, spec_out):
    return jax.shard_map(fn, mesh=mesh, in_specs=spec_in, out_specs=spec_out, check_vma=False)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=1, fsdp=8, tensor=1)


@pytest.mark.parametrize(
    ("kind", "collective", "sent"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "fsdp"), 7 * KIB),
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), 2 * KIB * 7 / 8),
        (
            "reduce-scatter",
            lambda x: jax.lax.psum_scatter(x.reshape(8, -1), "fsdp", tiled=True),
            KIB * 7 / 8,
        ),
        (
            "all-to-all",
            lambda x: jax.lax.all_to_all(x.reshape(8, 1, -1), "fsdp", 0, 1),
            KIB * 7 / 8,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 8) for i in range(8)]),
            KIB,
        ),
    ],
)
def test_a_collective_sends_what_a_ring_would(mesh, kind, collective, sent):
    """Each of 8 devices holds 256 floats, 1 KiB."""
    run = mapped(mesh, lambda x: jnp.sum(collective(x))[None], P("fsdp"), P("fsdp"))
    found = traffic_of(compiled(run, on_mesh(mesh, (2048,), "fsdp")))
    assert found.collectives == {kind: sent}
    assert found.network == found.waited == sent


def test_a_collective_in_a_loop_counts_as_often_as_it_runs(mesh):
    def run(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(jax.lax.psum(x, "fsdp")), None), x, length=5)[0]

    text = compiled(mapped(mesh, run, P("fsdp"), P("fsdp")), on_mesh(mesh, (2048,), "fsdp"))
    assert traffic_of(text).network == 5 * 2 * KIB * 7 / 8


def test_loops_in_loops_multiply(mesh):
    def run(x):
        def inner(x, _):
            return jnp.tanh(jax.lax.psum(x, "fsdp")), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=3)[0], None

        return jax.lax.scan(outer, x, length=5)[0]

    text = compiled(mapped(mesh, run, P("fsdp"), P("fsdp")), on_mesh(mesh, (2048,), "fsdp"))
    assert traffic_of(text).network == 15 * 2 * KIB * 7 / 8


def test_of_the_branches_of_a_choice_one_runs():
    def run(first, x):
        return jax.lax.cond(first > 0, lambda x: jnp.tanh(x) + 1, lambda x: jnp.sin(x) + 1, x)

    text = compiled(run, jnp.float32(1), jnp.ones(256))
    assert " conditional(" in text
    assert 2 * KIB <= traffic_of(text).memory < 2.5 * KIB


def test_groups_along_one_axis_of_a_mesh_are_seen():
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    run = mapped(mesh, lambda x: jax.lax.psum(x, "fsdp"), P(("data", "fsdp")), P("data"))
    text = compiled(run, on_mesh(mesh, (2048,), ("data", "fsdp")))
    assert traffic_of(text).network == 2 * KIB * 3 / 4


def test_one_device_sends_nothing():
    assert traffic_of(compiled(jnp.sin, jnp.ones(8))).network == 0


def test_an_elementwise_program_reads_and_writes_once():
    assert traffic_of(compiled(lambda x: jnp.tanh(x) + 1, jnp.ones(256))).memory == 2 * KIB


def test_a_scan_reads_of_its_stack_one_slice_a_turn():
    """Eight slices of 1 KiB are read once each, not the stack of 8 KiB eight times."""

    def run(stack, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x * w), None), x, stack)[0]

    moved = traffic_of(compiled(run, jnp.ones((8, 256)), jnp.ones(256))).memory
    assert 8 * 3 * KIB <= moved < 8 * 8 * KIB  # a slice, and what is carried in and out


def test_an_update_in_place_writes_its_slice():
    def run(stack, x):
        def body(stack, i):
            return jax.lax.dynamic_update_index_in_dim(stack, x * i, i, 0), None

        return jax.lax.scan(body, stack, jnp.arange(8))[0]

    text = jax.jit(run, donate_argnums=0).lower(jnp.ones((8, 256)), jnp.ones(256)).compile()
    assert traffic_of(text.as_text()).memory < 8 * 8 * KIB


def test_arrays_in_on_chip_memory_cost_nothing():
    kind = "(f32[8,128]{1,0:T(8,128)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u4[64]{0}, pred[])"
    assert size_of(kind) == 8 * 128 * 2 + 32 + 1
    assert size_of(kind, everywhere=True) == 8 * 128 * 6 + 32 + 1


ASYNC = """HloModule jit_f, is_scheduled=true

%piece.1 (p0: f32[256], p1: f32[2048]) -> (f32[256], f32[2048]) {
  %p0 = f32[256]{0} parameter(0)
  %p1 = f32[2048]{0} parameter(1)
  %g.1 = f32[2048]{0} all-gather(%p0), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'a','b'}
  ROOT %t.1 = (f32[256]{0}, f32[2048]{0}) tuple(%p0, %g.1)
}

%body (s: (s32[], f32[256], f32[2048])) -> (s32[], f32[256], f32[2048]) {
  %s = (s32[], f32[256]{0}, f32[2048]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[256]{0} get-tuple-element(%s), index=1
  %y = f32[2048]{0} get-tuple-element(%s), index=2
  %f.2 = (f32[256]{0}, f32[2048]{0}) fusion(%x, %y), kind=kOutput, output_to_operand_aliasing={{0}: (0, {}), {1}: (1, {})}, calls=%piece.1
  %a = f32[256]{0} get-tuple-element(%f.2), index=0
  %b = f32[2048]{0} get-tuple-element(%f.2), index=1
  ROOT %r = (s32[], f32[256]{0}, f32[2048]{0}) tuple(%i, %a, %b)
}

%condition (s: (s32[], f32[256], f32[2048])) -> pred[] {
  %s.1 = (s32[], f32[256]{0}, f32[2048]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %n = s32[] constant(6)
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (x: f32[256]) -> f32[2048] {
  %x.1 = f32[256]{0} parameter(0)
  %y.1 = f32[2048]{0} custom-call(), custom_call_target="AllocateBuffer"
  %zero = s32[] constant(0)
  %f.1 = (f32[256]{0}, f32[2048]{0}) fusion(%x.1, %y.1), kind=kOutput, output_to_operand_aliasing={{0}: (0, {}), {1}: (1, {})}, calls=%piece.1
  %c = f32[256]{0} get-tuple-element(%f.1), index=0
  %d = f32[2048]{0} get-tuple-element(%f.1), index=1
  %in = (s32[], f32[256]{0}, f32[2048]{0}) tuple(%zero, %c, %d)
  %w = (s32[], f32[256]{0}, f32[2048]{0}) while(%in), condition=%condition, body=%body
  ROOT %out = f32[2048]{0} get-tuple-element(%w), index=2
}
"""  # noqa: E501


def test_an_asynchronous_collective_counts_once_however_many_pieces_it_has():
    """One that starts before a loop and goes on in it runs once, not once a turn."""
    found = traffic_of(ASYNC)
    assert found.collectives == {"all-gather": 7 * KIB}
    assert found.memory == found.waited == 0


def test_a_program_is_read_with_its_entry():
    computations, entry = parse(ASYNC)
    assert entry == "main" and set(computations) == {"main", "body", "condition", "piece.1"}
    assert computations["main"]["w"].opcode == "while"
    assert computations["main"]["f.1"].operands == ("x.1", "y.1")


def test_every_collective_has_a_price_for_every_group():
    assert all(price(8) > 0 for price in COLLECTIVES.values())
    assert all(price(2) <= price(8) for price in COLLECTIVES.values())


def gathered(groups: str) -> str:
    """A program that gathers 1 KiB in these groups of devices."""
    return (
        "ENTRY %main (p: f32[256]) -> f32[2048] {\n"
        "  %p = f32[256]{0} parameter(0)\n"
        f"  ROOT %g = f32[2048]{{0}} all-gather(%p), channel_id=1, replica_groups={groups}, "
        "dimensions={0}\n}\n"
    )


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[32,8]<=[256]", 8),
        ("[128,2]<=[32,4,2]T(1,0,2)", 2),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=1,'b'=8,'c'=32], device_ids=([32,8]T(1,0)) {'b'}", 8),  # on a pod
    ],
)
def test_the_groups_of_a_collective_are_read_in_every_form(groups, devices):
    assert traffic_of(gathered(groups)).network == (devices - 1) * KIB


@pytest.mark.parametrize("groups", ["{}", "pod['a'=2] {'a'}"])
def test_groups_in_another_form_are_an_error(groups):
    with pytest.raises(ValueError, match="in a form that is not known"):
        traffic_of(gathered(groups))
