"""Attention kernels: each equals the plain one at real tokens, and one function chooses."""

import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import AXES, make_mesh
from alol_jax.errors import UserError
from alol_jax.models.attention import Attention, choose_kernel, decode_attention
from alol_jax.models.kernels import KERNELS, Rule, Seen, attention_mask
from tests.models.queries import (
    CAUSAL,
    assert_same,
    examples_side_by_side,
    heads,
    mixed_and_gradients,
    padded_mask,
)

CPU = dict(capability="", platform="cpu", dtype="float32", head_width=64, widths=(256,), cap=None)
GPU = dict(
    capability="9.0",
    platform="gpu",
    dtype="bfloat16",
    head_width=64,
    widths=(640, 768),
    cap=None,
)
TPU = dict(
    capability="", platform="tpu", dtype="bfloat16", head_width=64, widths=(640, 768), cap=None
)
PADDED = ((0, 0), (50, 0), (0, 30), (17, 140))  # (left, right) padding of each row


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal):
    attention = Attention("xla", None)
    q, k, v = heads(1, 12, 4, 2, 8)
    alone = attention(q, k, v, Seen(jnp.ones((1, 12))), Rule(causal))
    noise = heads(1, 20, 4, 2, 8, seed=1)
    wide = [n.at[:, 5:17].set(x) for n, x in zip(noise, (q, k, v), strict=True)]
    padded = attention(*wide, Seen(padded_mask([(5, 3)], 20)), Rule(causal))
    np.testing.assert_allclose(padded[:, 5:17], alone, atol=1e-6)


@pytest.mark.parametrize("with_branches", [False, True])
@pytest.mark.parametrize("width", [64, 65, 200, 700])
def test_plain_attention_in_parts_equals_attention_in_one_piece(width, with_branches):
    qkv, (segments, branch) = heads(2, width, 4, 2, 8), examples_side_by_side(2, width)
    seen = Seen(segments, branch if with_branches else None)

    def in_one_piece(q, k, v, seen, rule):
        mask = attention_mask(seen, rule)[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")

    found = mixed_and_gradients(Attention("xla", None), qkv, seen)
    assert_same(found, mixed_and_gradients(in_one_piece, qkv, seen))


@pytest.mark.parametrize(("causal", "share"), [(True, 0.6), (False, 1.0)])
def test_plain_causal_attention_scores_few_keys_that_come_after_the_query(causal, share):
    width, qkv = 800, heads(1, 800, 2, 1, 8)

    def scored(jaxpr):
        """Products of queries and keys, at any depth."""
        for line in jaxpr.eqns:
            if line.primitive.name == "dot_general" and 8 not in line.outvars[0].aval.shape:
                yield line.outvars[0].aval.size
            yield from (n for inner in jaxprs_in_params(line.params) for n in scored(inner))

    def run(*qkv):
        return Attention("xla", None)(*qkv, Seen(jnp.ones((1, width))), Rule(causal))

    assert 0.5 <= sum(scored(jax.make_jaxpr(run)(*qkv).jaxpr)) / (2 * width**2) <= share


def test_equal_keys_mix_the_visible_values_evenly():
    q, k, v = heads(1, 4, 2, 1, 8)
    mixed = Attention("xla", None)(q, 0 * k, v, Seen(jnp.array([[0, 1, 1, 1]])), CAUSAL)
    np.testing.assert_allclose(mixed[0, 3, 1], v[0, 1:4, 0].mean(0), rtol=1e-5)


def test_scores_are_divided_by_the_root_of_the_head_width():
    q, k = jnp.full((1, 2, 1, 16), 0.5), jnp.zeros((1, 2, 1, 16)).at[0, 1].set(0.5)
    v = jnp.zeros((1, 2, 1, 16)).at[0, 1].set(1.0)
    mixed = Attention("xla", None)(q, k, v, Seen(jnp.ones((1, 2))), CAUSAL)
    np.testing.assert_allclose(mixed[0, 1, 0, 0], jax.nn.sigmoid(16 * 0.25 / 4), rtol=1e-5)


def test_a_cached_step_equals_the_last_position_of_the_whole_sequence():
    q, k, v = heads(2, 10, 4, 2, 8)
    mask = padded_mask([(0, 0), (3, 0)], 10)
    whole = Attention("xla", None)(q, k, v, Seen(mask), CAUSAL)
    k, v = (jnp.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0)), constant_values=9.0) for x in (k, v))
    cached = (jnp.transpose(k, (0, 2, 3, 1)), jnp.transpose(v, (0, 2, 1, 3)))
    step = decode_attention(q[:, -1:], *cached, jnp.pad(mask > 0, ((0, 0), (0, 4))))
    np.testing.assert_allclose(step[:, 0], whole[:, -1], atol=1e-6)


@pytest.mark.parametrize(("causal", "keys", "width"), [(True, 2, 256), (False, 4, 256)])
def test_splash_equals_plain_attention_with_gradients(causal, keys, width):
    qkv, seen = heads(4, width, 4, keys, 32), Seen(padded_mask(PADDED, width))
    found = mixed_and_gradients(Attention("splash", None, interpret=True), qkv, seen, Rule(causal))
    assert_same(found, mixed_and_gradients(Attention("xla", None), qkv, seen, Rule(causal)))


def test_splash_of_several_tiles_equals_plain_attention():
    qkv, seen = heads(1, 640, 2, 1, 16), Seen(padded_mask([(130, 40)], 640))
    found = mixed_and_gradients(Attention("splash", None, interpret=True), qkv, seen)
    assert_same(found, mixed_and_gradients(Attention("xla", None), qkv, seen))


def test_splash_of_examples_side_by_side_equals_plain_attention():
    qkv, (segments, _) = heads(2, 256, 4, 2, 16), examples_side_by_side(2, 256)
    found = mixed_and_gradients(Attention("splash", None, interpret=True), qkv, Seen(segments))
    assert_same(found, mixed_and_gradients(Attention("xla", None), qkv, Seen(segments)))


def test_splash_refuses_responses_that_share_a_prompt_and_says_so():
    qkv, (segments, branch) = heads(2, 128, 2, 1, 16), examples_side_by_side(2, 128)
    shares = {name: Attention(name, None).branches for name in KERNELS}
    assert shares == {"xla": True, "cudnn": True, "splash": False}
    with pytest.raises(ValueError, match="splash has no mask for branches"):
        Attention("splash", None, interpret=True)(*qkv, Seen(segments, branch), CAUSAL)


@pytest.mark.parametrize(("tensor", "keys"), [(2, 2), (4, 2), (4, 1)])
def test_splash_on_a_mesh_equals_plain_attention_on_one_device(tensor, keys):
    mesh = make_mesh(data=1, fsdp=8 // tensor, tensor=tensor)
    qkv, mask = heads(4, 128, 4, keys, 16), padded_mask(((0, 0), (9, 0), (0, 7), (64, 3)), 128)
    seen = Seen(mask)
    found = mixed_and_gradients(Attention("splash", mesh, interpret=True), qkv, seen)
    assert_same(found, mixed_and_gradients(Attention("xla", None), qkv, seen))


def test_rows_and_heads_that_the_mesh_does_not_divide_stay_whole():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    qkv, mask = heads(1, 128, 2, 1, 16), padded_mask([(9, 0)], 128)
    found = Attention("splash", mesh, interpret=True)(*qkv, Seen(mask), CAUSAL)
    expected = Attention("xla", None)(*qkv, Seen(mask), CAUSAL)
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
        (GPU, {"cap": 50.0}, "cannot cap scores"),
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


@pytest.mark.parametrize("with_branches", [False, True])
def test_cudnn_takes_the_mask_as_a_bias_forward_and_backward(monkeypatch, with_branches):
    """The lowered program for CUDA; jax is told a cuDNN version, as no GPU is needed to lower."""
    from jax._src.cudnn import fused_attention_stablehlo as bridge

    version = SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(bridge, "cuda_versions", version)
    qkv, (segments, branch) = heads(2, 128, 4, 2, 64, jnp.bfloat16), examples_side_by_side(2, 128)
    branch = branch if with_branches else None

    def loss(q, k, v):
        mixed = Attention("cudnn", None)(q, k, v, Seen(segments, branch), CAUSAL)
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
            return Attention("splash", mesh)(q, k, v, Seen(mask), CAUSAL)

        return jax.vjp(run, q, k, v)[1](grad)

    traced = jax.jit(pull_back).trace(*qkv, mask, qkv[0])
    return traced.lower(lowering_platforms=("tpu",)).compile().as_text()
