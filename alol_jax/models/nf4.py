"""NF4 quantisation of frozen kernels: 4.5 bits per weight, 4.13 with quantised scales.

Dettmers et al. 2023, QLoRA, sections 2 and 3; the values are those of bitsandbytes. A kernel
[D_in, D_out] is split into blocks of 64 inputs of one output. With s the largest magnitude in a
block and q the 16 levels ::

    code = argmin_c |w / s − q_c|        w ≈ s · q_code

Double quantisation stores s in 8 bits. It subtracts the mean μ of all scales and splits them, in
the order (output, block), into groups of 256. With S the largest magnitude in a group and d the 256
values of `dynamic_map` ::

    s ≈ S · d_code + μ

Packing: with the codes seen as [D_in/64, 32, D_out], byte (b, j, o) holds input 64b + j in its low
bits and input 64b + 32 + j in its high bits. A kernel that is sharded along its inputs (in whole
blocks) or its outputs can thus be dequantised without communication.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.errors import UserError

BLOCK = 64  # inputs per scale
SCALE_BLOCK = 256  # scales per second-level scale
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a standard normal, scaled to [−1, 1], with an exact zero (QLoRA, appendix E)."""


@dataclasses.dataclass(frozen=True)
class NF4:
    """How a base model is quantised.

    Attributes:
        double: also quantise the scales.
    """

    double: bool


@functools.cache
def dynamic_map() -> np.ndarray:
    """Return the 256 values d of signed 8-bit dynamic quantisation, f32, ascending.

    Decade i = 0…6 splits 10^(i−6) · [0.1, 1] into 2^i equal cells and contributes their centres,
    with both signs; 0 and 1 are added (Dettmers 2016, 8-Bit Approximations for Parallelism).
    """
    values, low, high = [np.zeros(1), np.ones(1)], np.float32(0.1), np.float32(1.0)
    for decade in range(7):
        cells = 2**decade
        step, k = np.float64((high - low) / np.float32(cells)), np.arange(cells + 1)
        edges = np.where(2 * k <= cells, low + step * k, high - step * (cells - k))
        edges = edges.astype(np.float32)  # rounded once, from the nearer end, as published
        centres = np.float32(10.0 ** (decade - 6)) * ((edges[:-1] + edges[1:]) / 2)
        values += [centres, -centres]
    return np.sort(np.concatenate(values)).astype(np.float32)


def quantised_shapes(shape: tuple[int, int], nf4: NF4) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes that `quantise` returns for a kernel [D_in, D_out].

    Raises:
        UserError: D_in is not a multiple of 64.
    """
    width, out = shape
    if width % BLOCK:
        raise UserError(
            f"NF4 works on blocks of {BLOCK} inputs and cannot split a kernel of [{width}, {out}]: "
            f"its first dimension must be a multiple of {BLOCK}; keep this base unquantised"
        )
    blocks = (width // BLOCK, out)
    leaves = {"nf4_codes": jax.ShapeDtypeStruct((width // 2, out), jnp.uint8)}
    if not nf4.double:
        return leaves | {"nf4_scale": jax.ShapeDtypeStruct(blocks, jnp.float32)}
    groups = -(-blocks[0] * out // SCALE_BLOCK)
    return leaves | {
        "nf4_scale_codes": jax.ShapeDtypeStruct(blocks, jnp.uint8),
        "nf4_scale_scale": jax.ShapeDtypeStruct((groups,), jnp.float32),
        "nf4_scale_mean": jax.ShapeDtypeStruct((), jnp.float32),
    }


def quantise(kernel: jax.Array, *, nf4: NF4) -> dict[str, jax.Array]:
    """Quantise a kernel. Can be jitted; needs little memory besides the kernel.

    Values are rounded to the nearest level, halfway cases down. A block of zeros has the scale 0.

    Args:
        kernel: [D_in, D_out], any float dtype; read as float32.
        nf4: whether the scales are quantised too.

    Returns:
        nf4_codes u8[D_in/2, D_out] and nf4_scale f32[D_in/64, D_out]; with ``double``, in place of
        the latter, nf4_scale_codes u8[D_in/64, D_out], nf4_scale_scale f32[⌈n/256⌉] with
        n = D_in · D_out / 64, and nf4_scale_mean f32[].

    Raises:
        UserError: D_in is not a multiple of 64.
    """
    shapes = quantised_shapes(kernel.shape, nf4)
    blocks = kernel.astype(jnp.float32).reshape(-1, BLOCK, kernel.shape[1])
    scale = jnp.max(jnp.abs(blocks), axis=1)
    codes = _nearest(blocks * _inverse(scale)[:, None, :], np.array(LEVELS, np.float32))
    low, high = codes[:, : BLOCK // 2], codes[:, BLOCK // 2 :]
    packed = (low | (high << 4)).reshape(shapes["nf4_codes"].shape)
    scales = _quantise_scale(scale) if nf4.double else {"nf4_scale": scale}
    return {"nf4_codes": packed} | scales


def dequantise(leaves: Mapping[str, jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Return the kernel [D_in, D_out] that the ``leaves`` of `quantise` represent.

    Levels and scales are multiplied in float32, then rounded to ``dtype``. Levels are selected by
    the four bits, because a table lookup would not fuse with the product on a TPU.
    """
    packed = leaves["nf4_codes"]
    halves = packed.reshape(-1, 1, BLOCK // 2, packed.shape[1])
    shifts = (jnp.array([0, 4], jnp.uint8) + _zero(packed))[None, :, None, None]
    scale = leaves["nf4_scale"] if "nf4_scale" in leaves else _dequantise_scale(leaves)
    levels = _select((halves >> shifts) & 15, np.array(LEVELS), _zero(packed))
    kernel = (levels * scale[:, None, None, :]).astype(dtype)
    return kernel.reshape(-1, packed.shape[1])


def matmul(x: jax.Array, leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Return x W, [..., D_out] in the dtype of ``x``, for the kernel W that ``leaves`` represent.

    The backward pass dequantises again instead of keeping W.
    """
    stored = {name: leaf for name, leaf in leaves.items() if name.startswith("nf4_")}
    product = jax.checkpoint(lambda x, stored: x @ dequantise(stored, x.dtype), prevent_cse=False)
    return product(x, stored)


def _zero(codes: jax.Array) -> jax.Array:
    """Return u8[] 0 that JAX treats as computed from ``codes``; XLA folds it to a constant.

    Under differentiation, JAX moves values that depend on no layer out of the scan over layers. It
    would broadcast each constant of a select to a kernel: sixteen float32 kernels in memory.
    """
    return codes[0, 0] * 0


def _inverse(scale: jax.Array) -> jax.Array:
    """Return 1 / scale, finite even for 0, so that a block of zeros stays zero."""
    return 1.0 / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)


def _nearest(x: jax.Array, values: np.ndarray) -> jax.Array:
    """Return the u8 index of the nearest of the ascending f32 ``values``; halfway, the lower."""
    codes = jnp.zeros(x.shape, jnp.uint8)
    for middle in (values[:-1] + values[1:]) / 2:
        codes += (x > middle).astype(jnp.uint8)
    return codes


def _select(codes: jax.Array, values: np.ndarray, zero: jax.Array) -> jax.Array:
    """Return ``values[codes]``, f32, by a tree of selects from the lowest bit to the highest.

    A TPU has no fast table lookup, and a lookup would not fuse with its consumer. ``zero`` is
    `_zero` of the codes.
    """
    picked = [np.float32(value) + zero.astype(jnp.float32) for value in values]
    for bit in range(len(values).bit_length() - 1):
        odd = (codes >> bit) & 1 == 1
        pairs = zip(picked[::2], picked[1::2], strict=True)
        picked = [jnp.where(odd, upper, lower) for lower, upper in pairs]
    return picked[0]


def _quantise_scale(scale: jax.Array) -> dict[str, jax.Array]:
    """Quantise scales f32[D_in/64, D_out]."""
    mean = jnp.mean(scale)
    flat = (scale - mean).T.reshape(-1)
    groups = jnp.pad(flat, (0, -flat.size % SCALE_BLOCK)).reshape(-1, SCALE_BLOCK)
    largest = jnp.max(jnp.abs(groups), axis=1)
    codes = _nearest(groups * _inverse(largest)[:, None], dynamic_map())
    codes = codes.reshape(-1)[: flat.size].reshape(scale.shape[::-1]).T
    return {"nf4_scale_codes": codes, "nf4_scale_scale": largest, "nf4_scale_mean": mean}


def _dequantise_scale(leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Return the scales f32[D_in/64, D_out] of double quantisation."""
    codes = leaves["nf4_scale_codes"]
    size = jnp.repeat(leaves["nf4_scale_scale"], SCALE_BLOCK)[: codes.size]
    size = size.reshape(codes.shape[::-1]).T
    return _select(codes, dynamic_map(), _zero(codes)) * size + leaves["nf4_scale_mean"]
