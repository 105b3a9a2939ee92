"""Attention by every kernel that runs here: first whether it is right, then how fast.

    error = max |found − plain| / max |plain|        over real tokens

*Plain* is written out below in float32 at the highest precision, and reads the same (rounded)
inputs. Times are of one call among many; "backward" is forward and backward pass together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.attention import Attention
from alol_jax.models.kernels import KERNELS, Rule, Seen
from benchmarks.accelerator.measuring import Row, Tell, attempt, in_a_row, shares
from benchmarks.accelerator.subjects import kernel_here, one_device

WRONG = 0.05  # bfloat16 keeps 8 bits: an error above it is no rounding


class Case(NamedTuple):
    """Shapes of one call of attention."""

    rows: int
    width: int  # T
    heads: int  # N
    kv_heads: int  # G
    head_width: int  # H
    example: int  # tokens of each example; the row's last one is cut short, for padding
    branches: bool = False  # whether the second half of an example is two responses

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads of {self.head_width}"
        kind = ", two responses each" if self.branches else ""
        return f"{self.rows} × {self.width}, {heads}, examples of {self.example}{kind}"


def cases(tiny: bool) -> tuple[Case, ...]:
    """Llama-3.2-1B, Llama-7B, grouped heads of 128, GPT-2 XL; longer rows; two responses."""
    if tiny:
        return (Case(2, 128, 4, 2, 16, 64), Case(2, 128, 4, 4, 32, 64, True))
    return (
        Case(2, 2048, 32, 8, 64, 512),
        Case(2, 2048, 32, 8, 128, 512),
        Case(2, 2048, 32, 32, 128, 512),
        Case(2, 2048, 25, 25, 64, 512),
        Case(2, 2048, 32, 8, 64, 512, True),
        Case(1, 4096, 32, 8, 64, 512),
        Case(2, 4096, 32, 8, 64, 4096),
    )


def run(tell: Tell, tiny: bool) -> None:
    """All kernels."""
    attempt(tell, "a plain bfloat16 product, the ceiling", lambda: _product(tiny))
    for case in cases(tiny):
        _attention(tell, case, tiny)


def _product(tiny: bool) -> Row:
    """Random data: a product of zeros would be faster."""
    side = 256 if tiny else 8192
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in (0, 1))
    product = jax.jit(jnp.matmul)
    seconds = in_a_row(lambda: product(a, b), seconds=0.3)
    return {"seconds": seconds, "note": f"{side}³"} | shares(2.0 * side**3, seconds)


# attention


def _attention(tell: Tell, case: Case, tiny: bool) -> None:
    """One row per kernel, and on a GPU what cuDNN does where no mask is needed."""
    q, k, v, segments, branch, out = _inputs(case)
    with jax.default_matmul_precision("highest"):
        right = _with_gradient(_plain)(
            *(x.astype(jnp.float32) for x in (q, k, v)), segments, branch, out
        )
    right, given = jax.device_get(right), (q, k, v, segments, branch, out)
    platform = jax.devices()[0].platform
    for name, kernel in KERNELS.items():
        if platform in kernel.platforms and (kernel.branches or not case.branches):
            attend = _attend(Attention(name, one_device()), case.branches)
            run = functools.partial(_compared, attend, case, given, right, name)
            attempt(tell, f"{name}: {case}", run)
    if platform == "gpu" and case.example == case.width:
        run = functools.partial(_compared, _unmasked, case, given, right, "")
        attempt(tell, f"cudnn without a mask (not ours): {case}", run)


def _attend(attention: Attention, branches: bool) -> Callable[..., jax.Array]:
    def attend(q, k, v, segments, branch):
        seen = Seen(segments, branch if branches else None)
        return attention(q, k, v, seen, Rule(causal=True))

    return attend


def _inputs(case: Case) -> tuple[jax.Array, ...]:
    """q, k, v in bfloat16, segments, branches, and the gradient from above (0 on padding)."""
    keys = jax.random.split(jax.random.key(0), 4)
    lead = (case.rows, case.width)
    heads = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    q, k, v, out = (
        jax.random.normal(key, (*lead, n, case.head_width), jnp.bfloat16)
        for key, n in zip(keys, heads, strict=True)
    )
    columns = np.arange(case.width)
    segments = np.broadcast_to(columns // case.example + 1, lead).copy()
    if case.example < case.width:
        segments[:, -case.example // 8 :] = 0  # padding
    in_example = columns % case.example
    responses = np.maximum(in_example * 4 // case.example - 1, 0)  # 0 0 1 2: halves and quarters
    branch = np.broadcast_to(responses * case.branches, lead)
    segments, branch = jnp.asarray(segments, jnp.int32), jnp.asarray(branch, jnp.int32)
    return q, k, v, segments, branch, out * (segments > 0)[..., None, None].astype(out.dtype)


def _plain(q, k, v, segments, branch):
    """The definition: [B, N, T, T] scores at once."""
    width, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    at = np.arange(width)
    same = segments[:, :, None] == segments[:, None, :]
    own = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    seen = (same & own & (at[:, None] >= at[None, :]))[:, None]
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def _unmasked(q, k, v, segments, branch):
    """The ceiling of cuDNN: one example a row."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _with_gradient(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
    """(q, k, v, segments, branch, gradient from above) -> (mixture, three gradients), jitted."""

    @jax.jit
    def both(q, k, v, segments, branch, out):
        found, back = jax.vjp(lambda q, k, v: attend(q, k, v, segments, branch), q, k, v)
        return found, back(out.astype(found.dtype))

    return both


def _compared(attend, case: Case, given, right, name: str) -> Row:
    """Errors and times of one kernel."""
    if name:
        kernel_here(name, jnp.bfloat16, case.head_width, (case.width,))  # raises if it cannot run
    both = _with_gradient(attend)
    forward = jax.jit(attend)
    found = jax.device_get(both(*given))
    real = np.asarray(given[3])[..., None, None] > 0
    error = error_of(np.where(real, found[0], 0), np.where(real, right[0], 0))
    gradient = max(error_of(f, r) for f, r in zip(found[1], right[1], strict=True))
    once = in_a_row(lambda: forward(*given[:5]), seconds=0.1)
    seconds = in_a_row(lambda: both(*given), seconds=0.2)
    pairs = case.rows * case.heads * case.width * (case.example + 1) / 2
    work = 3 * 4.0 * pairs * case.head_width  # branches and padding, which see less, count as more
    row = {"seconds": seconds, "forward_seconds": once, "error": error, "gradient_error": gradient}
    return row | shares(work, seconds) | verdict_of(max(error, gradient))


def error_of(found: Any, right: Any) -> float:
    found, right = np.asarray(found, np.float32), np.asarray(right, np.float32)
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - right).max() / np.abs(right).max())


def verdict_of(error: float) -> Row:
    return {"note": "WRONG VALUES"} if error > WRONG else {}
