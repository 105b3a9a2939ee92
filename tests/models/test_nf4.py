"""NF4: the nearest level, halfway down; what a byte holds; what sharding may not cost."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.errors import UserError
from alol_jax.models.nf4 import (
    LEVELS,
    NF4,
    dequantise,
    dynamic_map,
    matmul,
    quantise,
    quantised_shapes,
)

SINGLE, DOUBLE = NF4(double=False), NF4(double=True)
KINDS = pytest.mark.parametrize("nf4", [SINGLE, DOUBLE], ids=["single", "double"])
SCALES = ("nf4_scale_codes", "nf4_scale_scale", "nf4_scale_mean")


def normal(shape=(256, 96), seed=0):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def there_and_back(kernel, nf4):
    return np.asarray(jax.jit(lambda k: dequantise(quantise(k, nf4=nf4), jnp.float32))(kernel))


def magnitudes(kernel):
    """The largest magnitude of each block, at each element of it."""
    largest = np.abs(kernel).reshape(-1, 64, kernel.shape[1]).max(axis=1)
    return np.repeat(largest, 64, axis=0)


def on_levels(shape=(128, 40), seed=0):
    """A kernel of levels times powers of two, which float32 multiplies exactly."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (shape[0] // 64, 64, shape[1]))
    codes[:, 17] = rng.choice([0, 15], codes[:, 17].shape)
    scale = 2.0 ** rng.integers(-8, 3, (shape[0] // 64, 1, shape[1]))
    return (np.array(LEVELS)[codes] * scale).reshape(shape).astype(np.float32)


def test_the_levels_are_the_quantiles_of_a_normal():
    outermost, quantile = 0.9677083, NormalDist().inv_cdf
    up = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    down = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    expected = np.array(sorted([*up, *down, 0.0]))
    np.testing.assert_allclose(LEVELS, expected / expected.max(), atol=1e-6)


def test_the_dynamic_map_has_two_signs_seven_decades_and_a_zero():
    values = dynamic_map()
    assert values.shape == (256,) and values.dtype == np.float32
    assert (np.diff(values) > 0).all()
    assert values[127] == 0.0 and values[255] == 1.0
    np.testing.assert_array_equal(values[:127], -values[128:255][::-1])
    np.testing.assert_allclose(
        values[[0, 128, 129, 254]], [-0.99296875, 5.5e-7, 3.25e-6, -values[0]]
    )


def test_levels_come_back_as_they_were():
    kernel = on_levels()
    np.testing.assert_array_equal(there_and_back(kernel, SINGLE), kernel)


def test_quantising_what_was_dequantised_changes_nothing():
    once = quantise(jnp.asarray(normal()), nf4=SINGLE)
    twice = quantise(dequantise(once, jnp.float32), nf4=SINGLE)
    for name, leaf in once.items():
        np.testing.assert_array_equal(twice[name], leaf, err_msg=name)


def test_every_value_goes_to_the_nearest_level_of_its_block():
    kernel = normal(seed=1)
    scale = magnitudes(kernel)
    error = np.abs(there_and_back(kernel, SINGLE) - kernel)
    best = np.abs(kernel - scale * np.array(LEVELS)[:, None, None]).min(axis=0)
    assert (error <= best + 1e-8).all()
    largest_gap = np.diff(LEVELS).max()
    assert (error <= scale * largest_gap / 2 + 1e-8).all()
    assert (error / scale).max() > 0.9 * largest_gap / 2


def test_halfway_between_two_levels_goes_down_and_a_hair_above_goes_up():
    levels = np.array(LEVELS, np.float32)
    middles = (levels[:-1] + levels[1:]) / 2
    kernel = np.ones((64, 2), np.float32)
    kernel[:15, 0], kernel[:15, 1] = middles, np.nextafter(middles, np.float32(2))
    back = there_and_back(kernel, SINGLE)
    np.testing.assert_array_equal(back[:15, 0], levels[:-1])
    np.testing.assert_array_equal(back[:15, 1], levels[1:])


@KINDS
def test_a_block_of_zeros_stays_zero_beside_others(nf4):
    kernel = normal((192, 33))
    kernel[64:128, 5] = 0.0
    back = there_and_back(kernel, nf4)
    assert (back[64:128, 5] == 0.0).all() and np.isfinite(back).all()
    assert (np.abs(back[64:128, 6]) > 0).any()
    assert (there_and_back(np.zeros((64, 3), np.float32), nf4) == 0.0).all()


@KINDS
def test_what_is_made_is_what_was_announced(nf4):
    for shape in ((64, 1), (192, 100)):
        for dtype in (jnp.float32, jnp.bfloat16):
            kernel = jax.ShapeDtypeStruct(shape, dtype)
            made = jax.eval_shape(lambda kernel: quantise(kernel, nf4=nf4), kernel)
            announced = quantised_shapes(shape, nf4)
            assert {n: (x.shape, x.dtype) for n, x in made.items()} == {
                n: (x.shape, x.dtype) for n, x in announced.items()
            }
            back = jax.eval_shape(lambda leaves: dequantise(leaves, jnp.bfloat16), announced)
            assert (back.shape, back.dtype) == (shape, jnp.bfloat16)


@pytest.mark.parametrize("nf4, bits", [(SINGLE, 4.5), (DOUBLE, 4.127)], ids=["single", "double"])
def test_a_weight_costs_so_many_bits(nf4, bits):
    shape = (1024, 1024)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in quantised_shapes(shape, nf4).values())
    assert 8 * total / np.prod(shape) == pytest.approx(bits, abs=1e-3)


@pytest.mark.parametrize("row, byte, half", [(64, 32, 0), (95, 63, 0), (96, 32, 4), (127, 63, 4)])
def test_a_byte_holds_inputs_thirty_two_apart(row, byte, half):
    kernel = on_levels()
    kernel[:, 3] = LEVELS[0]
    before = np.asarray(quantise(jnp.asarray(kernel), nf4=SINGLE)["nf4_codes"])
    kernel[row, 3] = LEVELS[9]
    after = np.asarray(quantise(jnp.asarray(kernel), nf4=SINGLE)["nf4_codes"])
    changed = np.zeros_like(before)
    changed[byte, 3] = 9 << half
    np.testing.assert_array_equal(before ^ after, changed)


def test_double_quantisation_moves_scales_by_less_than_a_percent_of_their_spread():
    kernel = normal((512, 70), seed=2)
    single, double = (quantise(jnp.asarray(kernel), nf4=nf4) for nf4 in (SINGLE, DOUBLE))
    np.testing.assert_array_equal(single["nf4_codes"], double["nf4_codes"])
    scale = np.asarray(single["nf4_scale"])
    mean = float(double["nf4_scale_mean"])
    assert mean == pytest.approx(scale.mean(), rel=1e-6)
    ones = {"nf4_codes": jnp.full_like(single["nf4_codes"], 0xFF)}  # every level is 1
    stored = dequantise(ones | {name: double[name] for name in SCALES}, jnp.float32)[::64]
    error = np.abs(stored - scale)
    assert error.max() <= 0.0071 * np.abs(scale - mean).max()
    assert error.max() > 0.0


def test_scales_are_grouped_output_by_output():
    kernel = np.ones((256, 129), np.float32)  # 4 blocks, so 64 outputs fill a group
    kernel[:, 64:128] = 3.0
    kernel[64:128, 70] = 9.0
    kernel[:, 128] = 1.5
    leaves = quantise(jnp.asarray(kernel), nf4=DOUBLE)
    mean = float(leaves["nf4_scale_mean"])
    expected = [mean - 1.0, 9.0 - mean, mean - 1.5]
    np.testing.assert_allclose(leaves["nf4_scale_scale"], expected, rtol=1e-5)
    back = dequantise(leaves, jnp.float32)
    largest = np.repeat([1.0, 9.0, 1.5], [64, 64, 1])
    assert (np.abs(back - kernel) <= 0.0075 * np.abs(largest - mean)).all()


@KINDS
def test_another_dtype_is_the_float32_result_rounded(nf4):
    leaves = quantise(jnp.asarray(normal()), nf4=nf4)
    exact, rounded = (jax.jit(dequantise, static_argnums=1)(leaves, d) for d in ("f4", "bfloat16"))
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(exact.astype(jnp.bfloat16), rounded)


@KINDS
@pytest.mark.parametrize("spec", [P("x"), P("y"), P(None, ("x", "y")), P("x", "y")], ids=str)
def test_dequantising_a_cut_kernel_talks_to_no_other_device(nf4, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    leaves = quantise(jnp.asarray(normal((1024, 48))), nf4=nf4)
    cut = {
        name: NamedSharding(mesh, spec if leaf.ndim == 2 else P()) for name, leaf in leaves.items()
    }
    run = jax.jit(
        lambda leaves: dequantise(leaves, jnp.float32),
        in_shardings=(cut,),
        out_shardings=NamedSharding(mesh, spec),
    )
    text = run.lower(leaves).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    expected = jax.jit(dequantise, static_argnums=1)(leaves, jnp.float32)
    np.testing.assert_array_equal(run(jax.device_put(leaves, cut)), expected)


@KINDS
def test_memory_is_at_most_one_more_kernel_in_float32(nf4):
    shape = (1024, 512)
    kernel = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    there = jax.jit(lambda kernel: quantise(kernel, nf4=nf4)).lower(kernel).compile()
    back = (
        jax.jit(lambda x: dequantise(x, jnp.bfloat16)).lower(quantised_shapes(shape, nf4)).compile()
    )
    size = 4 * np.prod(shape)
    assert there.memory_analysis().temp_size_in_bytes < 1.5 * size
    assert back.memory_analysis().temp_size_in_bytes < 0.1 * size


@KINDS
def test_a_product_and_its_gradient_are_those_of_the_dequantised_kernel(nf4):
    leaves = quantise(jnp.asarray(normal((128, 48))), nf4=nf4)
    other = {"lora_a": jnp.ones((128, 4))}
    x = jnp.asarray(np.random.default_rng(3).normal(size=(5, 128)), jnp.float32)
    kernel = jax.jit(dequantise, static_argnums=1)(leaves, jnp.float32)
    loss = jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(w(x))))
    ours = jax.jit(lambda x: loss(x, lambda x: matmul(x, leaves | other)))(x)
    plain = jax.jit(lambda x: loss(x, lambda x: x @ kernel))(x)
    for mine, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    assert matmul(x.astype(jnp.bfloat16), leaves).dtype == jnp.bfloat16


@KINDS
@pytest.mark.parametrize("remat", [False, True])
def test_training_over_many_layers_keeps_no_dequantised_kernel(nf4, remat):
    layers, width = 6, 256
    stacked = {
        name: jax.ShapeDtypeStruct((layers, *leaf.shape), leaf.dtype)
        for name, leaf in quantised_shapes((width, width), nf4).items()
    }
    scales = jax.ShapeDtypeStruct((layers, width), jnp.float32)

    def loss(scales, stacked, x):
        def layer(x, inputs):
            leaves, scale = inputs
            if remat:
                return jnp.sin(x @ dequantise(leaves, x.dtype)) * scale[None], None
            return jnp.sin(matmul(x, leaves)) * scale[None], None

        layer = jax.checkpoint(layer) if remat else layer
        return jnp.sum(jax.lax.scan(layer, x, (stacked, scales))[0])

    x = jax.ShapeDtypeStruct((2, width), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(scales, stacked, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * 4 * width * width


@KINDS
def test_a_kernel_that_blocks_cannot_cut_is_refused(nf4):
    for refuse in (
        lambda: quantised_shapes((96, 32), nf4),
        lambda: quantise(jnp.zeros((96, 32)), nf4=nf4),
    ):
        with pytest.raises(UserError, match=r"a kernel of \[96, 32\].* multiple of 64") as caught:
            refuse()
        assert "\n" not in str(caught.value)
