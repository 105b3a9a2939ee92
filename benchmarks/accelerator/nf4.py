"""A product with an NF4 kernel: first whether it is right, then how fast.

    error = max |found − plain| / max |plain|

*Plain* looks every code up in the table and multiplies in float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from alol_jax.models.nf4 import BLOCK, LEVELS, NF4, matmul, quantise
from benchmarks.accelerator.kernels import error_of, verdict_of
from benchmarks.accelerator.measuring import Row, Tell, attempt, in_a_row, shares


def run(tell: Tell, tiny: bool) -> None:
    """Scales in float32 and quantised; as many tokens as a training step has, and as decoding."""
    for double in (False, True):
        for rows in (8,) if tiny else (4096, 32):
            name = f"NF4{' double' if double else ''}, {rows} tokens"
            attempt(tell, name, functools.partial(_nf4, double, rows, tiny))


def _nf4(double: bool, rows: int, tiny: bool) -> Row:
    """x W and its gradient in x, with W as in the mlp of Llama-7B; the error of both."""
    width, out = (128, 256) if tiny else (4096, 11_008)
    keys = jax.random.split(jax.random.key(0), 3)
    kernel = 0.02 * jax.random.normal(keys[0], (width, out))
    leaves = jax.jit(functools.partial(quantise, nf4=NF4(double)))(kernel)
    x = jax.random.normal(keys[1], (rows, width), jnp.bfloat16)
    above = jax.random.normal(keys[2], (rows, out), jnp.bfloat16)
    stored = _looked_up(leaves, kernel, double)
    with jax.default_matmul_precision("highest"):
        right = x.astype(jnp.float32) @ stored, above.astype(jnp.float32) @ stored.T
    right = jax.device_get(right)

    @jax.jit
    def both(x, leaves, above):
        found, back = jax.vjp(lambda x: matmul(x, leaves), x)
        return found, back(above)[0]

    forward, dense = jax.jit(matmul), jax.jit(jnp.matmul)
    found = jax.device_get(both(x, leaves, above))
    error = max(error_of(f, r) for f, r in zip(found, right, strict=True))
    plain = stored.astype(jnp.bfloat16)
    unquantised = in_a_row(lambda: dense(x, plain), seconds=0.1)
    once = in_a_row(lambda: forward(x, leaves), seconds=0.1)
    seconds = in_a_row(lambda: both(x, leaves, above), seconds=0.1)
    said = f"forward × {once / unquantised:.2f} of a bfloat16 kernel"
    row = {"seconds": seconds, "forward_seconds": once, "error": error, "note": said}
    row |= shares(2 * 2.0 * rows * width * out, seconds)
    return row | verdict_of(error)


def _looked_up(leaves: dict[str, jax.Array], kernel: jax.Array, double: bool) -> jax.Array:
    """f32 W from the codes by a table; scales that were quantised are those of the kernel, which
    double quantisation changes by less than `WRONG`."""
    codes = leaves["nf4_codes"].reshape(-1, BLOCK // 2, kernel.shape[1])
    both = jnp.concatenate([codes & 15, codes >> 4], axis=1)
    blocks = kernel.reshape(-1, BLOCK, kernel.shape[1])
    scale = jnp.abs(blocks).max(axis=1) if double else leaves["nf4_scale"]
    levels = jnp.take(jnp.asarray(LEVELS, jnp.float32), both.astype(jnp.int32))
    return (levels * scale[:, None]).reshape(kernel.shape)
