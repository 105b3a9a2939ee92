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

from alol_jax.models.attention import KERNELS, Attention
from alol_jax.types import Branches
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
    branches: Branches | None
    padded: bool

    def __str__(self) -> str:
        kind = "branches" if self.branches else "causal"
        heads = f"{self.heads}/{self.kv_heads} heads of {self.head_width}"
        padding = ", padded" if self.padded else ""
        return f"{self.rows} × {self.width}, {heads}, {kind}{padding}"


def cases(tiny: bool) -> tuple[Case, ...]:
    """Llama-3.2-1B, Llama-7B, grouped heads of 128, GPT-2 XL; long; two responses side by side."""
    if tiny:
        return (
            Case(2, 128, 4, 2, 16, None, True),
            Case(2, 128, 4, 4, 32, Branches(64, 32), True),
        )
    return (
        Case(4, 1024, 32, 8, 64, None, True),
        Case(4, 1024, 32, 8, 128, None, True),
        Case(4, 1024, 32, 32, 128, None, True),
        Case(4, 1024, 25, 25, 64, None, True),
        Case(4, 1024, 32, 8, 64, Branches(512, 256), True),
        Case(2, 4096, 32, 8, 64, None, False),
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
    q, k, v, mask, out = _inputs(case)
    plain = _with_gradient(functools.partial(_plain, branches=case.branches))
    with jax.default_matmul_precision("highest"):
        right = plain(*(x.astype(jnp.float32) for x in (q, k, v)), mask, out)
    right = jax.device_get(right)
    platform = jax.devices()[0].platform
    for name, kernel in KERNELS.items():
        if platform in kernel.platforms:
            attend = functools.partial(
                Attention(name, one_device()), causal=True, branches=case.branches
            )
            run = functools.partial(_compared, attend, case, (q, k, v, mask, out), right, name)
            attempt(tell, f"{name}: {case}", run)
    if platform == "gpu" and not case.padded:
        run = functools.partial(_compared, _unmasked, case, (q, k, v, mask, out), right, "")
        attempt(tell, f"cudnn without a mask (not ours): {case}", run)


def _inputs(case: Case) -> tuple[jax.Array, ...]:
    """q, k, v in bfloat16, the mask, and the gradient that comes from above (0 on padding)."""
    keys = jax.random.split(jax.random.key(0), 4)
    lead = (case.rows, case.width)
    heads = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    q, k, v, out = (
        jax.random.normal(key, (*lead, n, case.head_width), jnp.bfloat16)
        for key, n in zip(keys, heads, strict=True)
    )
    mask = np.ones(lead, np.float32)
    if case.padded:  # row b: b eighths of the left half, and a little on the right
        for row in range(case.rows):
            mask[row, : row * case.width // 8] = 0
            mask[row, case.width - row * case.width // 16 - 1 :] = 0
        if case.branches is not None:
            mask[:, case.branches.prompt + case.branches.response - 3 :][:, :3] = 0
    mask = jnp.asarray(mask)
    return q, k, v, mask, out * mask[..., None, None].astype(out.dtype)


def _plain(q, k, v, mask, *, branches):
    """The definition: [B, N, T, T] scores at once."""
    width, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    at = np.arange(width)
    seen = at[:, None] >= at[None, :]
    if branches is not None:
        own = (at - branches.prompt) // branches.response
        prompt = at < branches.prompt
        seen = seen & (prompt[None, :] | (own[:, None] == own[None, :]) & ~prompt[:, None])
    seen = seen[None, None] & (mask > 0)[:, None, None, :] | np.eye(width, dtype=bool)
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def _unmasked(q, k, v, mask):
    """The ceiling of cuDNN: rows without padding."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def _with_gradient(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
    """(q, k, v, mask, gradient from above) -> (mixture, its three gradients), jitted."""

    @jax.jit
    def both(q, k, v, mask, out):
        found, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
        return found, back(out.astype(found.dtype))

    return both


def _compared(attend, case: Case, given, right, name: str) -> Row:
    """Errors and times of one kernel."""
    if name:
        kernel_here(name, jnp.bfloat16, case.head_width, (case.width,))  # raises if it cannot run
    both = _with_gradient(attend)
    forward = jax.jit(lambda q, k, v, mask: attend(q, k, v, mask))
    found = jax.device_get(both(*given))
    real = np.asarray(given[3])[..., None, None] > 0
    error = error_of(np.where(real, found[0], 0), np.where(real, right[0], 0))
    gradient = max(error_of(f, r) for f, r in zip(found[1], right[1], strict=True))
    once = in_a_row(lambda: forward(*given[:4]), seconds=0.1)
    seconds = in_a_row(lambda: both(*given), seconds=0.2)
    pairs = case.rows * case.heads * case.width * (case.width + 1) / 2
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
