"""Attention kernels: each equals the plain one at real tokens, and one function chooses."""

import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import AXES, make_mesh
from alol_jax.errors import UserError
from alol_jax.models.attention import (
    KERNELS,
    Attention,
    attention_mask,
    choose_kernel,
    decode_attention,
)
from alol_jax.types import Branches

CPU = dict(capability="", platform="cpu", dtype="float32", head_width=64, widths=(256,))
GPU = dict(
    capability="9.0",
    platform="gpu",
    dtype="bfloat16",
    head_width=64,
    widths=(640, 768),
)
TPU = dict(capability="", platform="tpu", dtype="bfloat16", head_width=64, widths=(640, 768))
PADDED = ((0, 0), (50, 0), (0, 30), (17, 140))  # (left, right) padding of each row


def padded_mask(pads, width):
    places = np.arange(width)
    rows = [(places >= left) & (places < width - right) for left, right in pads]
    return jnp.array(np.stack(rows), jnp.float32)


def heads(rows, width, queries, keys, size, dtype=jnp.float32, seed=0):
    shapes = [(rows, width, n, size) for n in (queries, keys, keys)]
    split = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(k, s, dtype) for k, s in zip(split, shapes, strict=True)]


def mixed_and_gradients(attention, qkv, mask, causal, branches=None):
    """The mixture at real tokens (0 elsewhere), and its pull-back to q, k, v."""
    real = (mask > 0)[..., None, None]

    def loss(q, k, v):
        mixed = jnp.where(real, attention(q, k, v, mask, causal=causal, branches=branches), 0.0)
        ripple = jnp.sin(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
        return jnp.sum(mixed * ripple), mixed

    grads, mixed = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return [mixed, *grads]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_causal_query_sees_its_segment_up_to_itself():
    seen = attention_mask(jnp.array([[0, 1, 1, 2, 2]]), causal=True)[0]
    expected = [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(seen, np.array(expected, bool))


def test_a_bidirectional_query_sees_all_of_its_segment():
    seen = attention_mask(jnp.array([[0, 1, 1, 0]]), causal=False)[0]
    expected = [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    np.testing.assert_array_equal(seen, np.array(expected, bool))


def test_a_response_sees_the_prompt_and_itself_and_no_other_response():
    seen = attention_mask(jnp.array([[0, 1, 1, 1, 1, 0]]), causal=True, branches=Branches(2, 2))[0]
    expected = [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(seen, np.array(expected, bool))


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal):
    attention = Attention("xla", None)
    q, k, v = heads(1, 12, 4, 2, 8)
    alone = attention(q, k, v, jnp.ones((1, 12)), causal=causal)
    noise = heads(1, 20, 4, 2, 8, seed=1)
    wide = [n.at[:, 5:17].set(x) for n, x in zip(noise, (q, k, v), strict=True)]
    padded = attention(*wide, padded_mask([(5, 3)], 20), causal=causal)
    np.testing.assert_allclose(padded[:, 5:17], alone, atol=1e-6)


def test_equal_keys_mix_the_visible_values_evenly():
    q, k, v = heads(1, 4, 2, 1, 8)
    mixed = Attention("xla", None)(q, 0 * k, v, jnp.array([[0, 1, 1, 1]]), causal=True)
    np.testing.assert_allclose(mixed[0, 3, 1], v[0, 1:4, 0].mean(0), rtol=1e-5)


def test_scores_are_divided_by_the_root_of_the_head_width():
    q, k = jnp.full((1, 2, 1, 16), 0.5), jnp.zeros((1, 2, 1, 16)).at[0, 1].set(0.5)
    v = jnp.zeros((1, 2, 1, 16)).at[0, 1].set(1.0)
    mixed = Attention("xla", None)(q, k, v, jnp.ones((1, 2)), causal=True)
    np.testing.assert_allclose(mixed[0, 1, 0, 0], jax.nn.sigmoid(16 * 0.25 / 4), rtol=1e-5)


def test_a_cached_step_equals_the_last_position_of_the_whole_sequence():
    q, k, v = heads(2, 10, 4, 2, 8)
    mask = padded_mask([(0, 0), (3, 0)], 10)
    whole = Attention("xla", None)(q, k, v, mask, causal=True)
    k, v = (jnp.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0)), constant_values=9.0) for x in (k, v))
    cached = (jnp.transpose(k, (0, 2, 3, 1)), jnp.transpose(v, (0, 2, 1, 3)))
    step = decode_attention(q[:, -1:], *cached, jnp.pad(mask > 0, ((0, 0), (0, 4))))
    np.testing.assert_allclose(step[:, 0], whole[:, -1], atol=1e-6)


@pytest.mark.parametrize(("causal", "keys", "width"), [(True, 2, 256), (False, 4, 256)])
def test_splash_equals_plain_attention_with_gradients(causal, keys, width):
    qkv, mask = heads(4, width, 4, keys, 32), padded_mask(PADDED, width)
    found = mixed_and_gradients(Attention("splash", None, interpret=True), qkv, mask, causal)
    assert_same(found, mixed_and_gradients(Attention("xla", None), qkv, mask, causal))


def test_splash_of_several_tiles_equals_plain_attention():
    qkv, mask = heads(1, 640, 2, 1, 16), padded_mask([(130, 40)], 640)
    found = mixed_and_gradients(Attention("splash", None, interpret=True), qkv, mask, True)
    assert_same(found, mixed_and_gradients(Attention("xla", None), qkv, mask, True))


def test_splash_of_responses_side_by_side_equals_plain_attention():
    qkv, branches = heads(2, 384, 4, 2, 16), Branches(128, 128)
    mask = padded_mask([(30, 17), (0, 0)], 384).at[0, 200:256].set(0)
    plain = mixed_and_gradients(Attention("xla", None), qkv, mask, True, branches)
    found = mixed_and_gradients(
        Attention("splash", None, interpret=True), qkv, mask, True, branches
    )
    assert_same(found, plain)
    alone = mixed_and_gradients(Attention("xla", None), qkv, mask, True)
    assert np.abs(plain[0] - alone[0]).max() > 0.01


@pytest.mark.parametrize(("tensor", "keys"), [(2, 2), (4, 2), (4, 1)])
def test_splash_on_a_mesh_equals_plain_attention_on_one_device(tensor, keys):
    mesh = make_mesh(data=1, fsdp=8 // tensor, tensor=tensor)
    qkv, mask = heads(4, 128, 4, keys, 16), padded_mask(((0, 0), (9, 0), (0, 7), (64, 3)), 128)
    found = mixed_and_gradients(Attention("splash", mesh, interpret=True), qkv, mask, True)
    assert_same(found, mixed_and_gradients(Attention("xla", None), qkv, mask, True))


def test_rows_and_heads_that_the_mesh_does_not_divide_stay_whole():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    qkv, mask = heads(1, 128, 2, 1, 16), padded_mask([(9, 0)], 128)
    found = Attention("splash", mesh, interpret=True)(*qkv, mask, causal=True)
    expected = Attention("xla", None)(*qkv, mask, causal=True)
    np.testing.assert_allclose(found[:, 9:], expected[:, 9:], atol=2e-5)


@pytest.mark.parametrize(("setting", "kernel"), [(CPU, "xla"), (GPU, "cudnn"), (TPU, "splash")])
def test_the_platform_decides_where_the_fused_kernel_can(setting, kernel):
    chosen, said = choose_kernel("auto", **setting)
    assert chosen == kernel and f"attention: {kernel}" in said


@pytest.mark.parametrize(
    ("setting", "change", "reason"),
    [
        (GPU, {"dtype": "float32"}, "half precision"),
        (GPU, {"capability": "7.5"}, "not '7.5'"),
        (GPU, {"capability": "gfx90a"}, "NVIDIA GPU"),
        (GPU, {"head_width": 192}, "head width"),
        (GPU, {"head_width": 20}, "head width"),
        (GPU, {"widths": (640, 701)}, "701"),
        (TPU, {"widths": (640, 700)}, "700"),
        (TPU, {"head_width": 512}, "head width"),
    ],
)
def test_where_the_fused_kernel_cannot_plain_attention_runs_and_says_why(setting, change, reason):
    chosen, said = choose_kernel("auto", **setting | change)
    assert chosen == "xla" and reason in said
    asked = choose_kernel("auto", **setting)[0]
    with pytest.raises(UserError, match=reason):
        choose_kernel(asked, **setting | change)


@pytest.mark.parametrize(("setting", "kernel"), [(CPU, "splash"), (TPU, "cudnn"), (GPU, "splash")])
def test_a_kernel_of_another_platform_is_refused(setting, kernel):
    with pytest.raises(UserError, match=f"{kernel} runs on"):
        choose_kernel(kernel, **setting)


def test_plain_attention_can_be_asked_for_everywhere():
    assert {choose_kernel("xla", **setting)[0] for setting in (CPU, GPU, TPU)} == {"xla"}


def test_an_unknown_kernel_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="splash"):
        choose_kernel("splahs", **TPU)


def test_every_kernel_name_can_be_chosen_somewhere():
    chosen = {choose_kernel("auto", **setting)[0] for setting in (CPU, GPU, TPU)}
    assert chosen == set(KERNELS)


def test_cudnn_takes_the_mask_as_a_bias_forward_and_backward(monkeypatch):
    """The lowered program for CUDA; jax is told a cuDNN version, as no GPU is needed to lower."""
    from jax._src.cudnn import fused_attention_stablehlo as bridge

    version = SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(bridge, "cuda_versions", version)
    qkv, mask = heads(2, 128, 4, 2, 64, jnp.bfloat16), padded_mask([(0, 0), (40, 9)], 128)

    def loss(q, k, v):
        mixed = Attention("cudnn", None)(q, k, v, mask, causal=True)
        return jnp.sum(mixed.astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*qkv)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = set(re.findall(r"@(__cudnn\$\w+)", text))
    assert calls == {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"}


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("size", "width", "dtype"),
    [(64, 640, "bfloat16"), (80, 256, "bfloat16"), (128, 768, "bfloat16"), (64, 256, "float32")],
)
def test_splash_compiles_for_a_tpu_with_gradients(size, width, dtype):
    text = compiled_for_tpu(
        (2, 2, 2), rows=8, width=width, queries=4, keys=2, size=size, dtype=dtype
    )
    assert text.count("tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.mark.tpu
def test_a_cut_splash_needs_no_communication():
    text = compiled_for_tpu(
        (2, 2, 2), rows=8, width=256, queries=4, keys=2, size=64, dtype="bfloat16"
    )
    assert not re.findall(r"(all-gather|all-reduce|all-to-all|collective-permute)\(", text)


def compiled_for_tpu(shape, *, rows, width, queries, keys, size, dtype):
    """The compiled gradient of splash attention on the 8 chips of a v5e:2x4, as text."""
    from jax.experimental import topologies

    os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = Mesh(np.array(chips).reshape(shape), AXES)
    cut = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor", None))
    mask = jax.ShapeDtypeStruct(
        (rows, width), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp")))
    )
    qkv = [
        jax.ShapeDtypeStruct((rows, width, n, size), dtype, sharding=cut)
        for n in (queries, keys, keys)
    ]

    def pull_back(q, k, v, mask, grad):
        def run(q, k, v):
            return Attention("splash", mesh)(q, k, v, mask, causal=True)

        return jax.vjp(run, q, k, v)[1](grad)

    traced = jax.jit(pull_back).trace(*qkv, mask, qkv[0])
    return traced.lower(lowering_platforms=("tpu",)).compile().as_text()
