"""Attention kernels for softmax(q kᵀ / √H) v: plain XLA, cuDNN and splash.

All agree at real tokens. Their outputs at padding are finite but meaningless, and unused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

BLOCK = 128  # the tile sides of splash are multiples of this
LARGEST_BLOCK = 512
PARTS, NARROWEST_PART = 8, 64  # of the queries, in plain XLA


class Seen(NamedTuple):
    """Which keys a query sees, as far as it differs from batch to batch and layer to layer.

    Attributes:
        segments: i32[B, T]; a query sees the tokens of its segment.
        branch: i32[B, T], or None if every segment is one text; a query sees branch 0 and its own.
        positions: i32[B, T], for a sliding window; None without.
        local: bool[], whether the layer has the window; None: it has.
    """

    segments: jax.Array
    branch: jax.Array | None = None
    positions: jax.Array | None = None
    local: jax.Array | None = None

    def first(self, keys: slice) -> Seen:
        """Keep some columns."""
        cut = (None if ids is None else ids[:, keys] for ids in self[:3])
        return Seen(*cut, self.local)


class Rule(NamedTuple):
    """What a kernel computes.

    Attributes:
        causal: a query sees no key after its own column.
        window: a query sees keys less than so many positions before it; None: all.
        cap: scaled scores s become cap · tanh(s / cap); None: they stay.
    """

    causal: bool
    window: int | None = None
    cap: float | None = None


def attention_mask(seen: Seen, rule: Rule, *, queries: slice = slice(None)) -> jax.Array:
    """Return bool[B, Q, T], True where a query may attend to a key.

    Args:
        queries: which columns are the Q queries.
    """
    segments, branch, positions, local = seen
    allowed = segments[:, queries, None] == segments[:, None, :]
    if rule.causal:
        columns = jnp.arange(segments.shape[1])
        allowed = allowed & (columns[None, queries, None] >= columns[None, None])
    if branch is not None:
        allowed = allowed & ((branch[:, None] == 0) | (branch[:, None] == branch[:, queries, None]))
    if rule.window is not None:
        near = positions[:, queries, None] - positions[:, None, :] < rule.window
        allowed = allowed & (near if local is None else near | ~local)
    return allowed


def capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """Return cap · tanh(scores / cap); the scores themselves without a cap."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def _xla(q, k, v, seen, *, rule, interpret):
    """Plain XLA: causal queries in a few parts, each with no more keys than it can see."""
    width = q.shape[1]
    part = max(NARROWEST_PART, -(-width // PARTS)) if rule.causal else width
    mixed = []
    for start in range(0, width, part):
        queries = slice(start, min(start + part, width))
        keys = slice(0, queries.stop)
        mask = attention_mask(seen.first(keys), rule, queries=queries)[:, None]
        mixed.append(_mixed(q[:, queries], k[:, keys], v[:, keys], mask, rule.cap))
    return jnp.concatenate(mixed, axis=1)


def _mixed(q, k, v, mask, cap):
    """Mix the values that bool[B, 1, Q, T] allows; JAX's own function knows no cap."""
    if cap is None:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])  # the queries of each key head
    scores = jnp.einsum("bqgnh,btgh->bgnqt", grouped, k, preferred_element_type=jnp.float32)
    scores = capped(scores * q.shape[3] ** -0.5, cap)
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bgnqt,btgh->bqgnh", weights, v, preferred_element_type=jnp.float32)
    return mixed.reshape(q.shape).astype(q.dtype)


def _cudnn(q, k, v, seen, *, rule, interpret):
    """cuDNN's fused kernel; segments, branches and windows go in as a mask.

    ``is_causal`` says nothing that the mask does not, but lets cuDNN skip what is above the
    diagonal: a fifth less time on an H200 (docs/results.md).
    """
    if rule.cap is not None:
        raise ValueError("cudnn cannot cap scores: use plain XLA")
    allowed = attention_mask(seen, rule)[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=allowed, is_causal=rule.causal, implementation="cudnn"
    )


def _splash(q, k, v, seen, *, rule, interpret):
    """Splash attention, which knows segments, windows and caps, but no branches.

    A window is cut by columns: the tokens of a text lie side by side. Where only some layers have
    it, both kernels are compiled and one runs.
    """
    if seen.branch is not None:
        raise ValueError("splash has no mask for branches: give every response its own prompt")

    def run(window):
        return lambda: _splashed(q, k, v, seen.segments, rule._replace(window=window), interpret)

    if rule.window is None or seen.local is None:
        return run(rule.window)()
    return jax.lax.cond(seen.local, run(rule.window), run(None))


def _splashed(q, k, v, segments, rule, interpret):
    """The kernel takes one row [N, T, H] and does not scale, so q is scaled first."""
    width, heads, size = q.shape[1], q.shape[2], q.shape[3]
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([_splash_mask(width, rule)] * heads),
        block_sizes=_blocks(width),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=rule.cap,
        interpret=interpret,
    )
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(size**-0.5, q.dtype), k, v)]
    mixed = jax.vmap(kernel)(*heads_first, splash.SegmentIds(segments, segments))
    return jnp.swapaxes(mixed, 1, 2).astype(q.dtype)


def _splash_mask(width: int, rule: Rule):
    shape = (width, width)
    if rule.window is not None:
        return splash.LocalMask(shape, (rule.window - 1, 0 if rule.causal else None), 0)
    return splash.CausalMask(shape) if rule.causal else splash.FullMask(shape)


def _blocks(width: int) -> splash.BlockSizes:
    """Return square tiles with the largest side that divides the length."""
    sides = [side for side in range(BLOCK, LARGEST_BLOCK + 1, BLOCK) if width % side == 0]
    side = sides[-1]
    return splash.BlockSizes(
        block_q=side,
        block_kv=side,
        block_kv_compute=side,
        block_q_dkv=side,
        block_kv_dkv=side,
        block_kv_dkv_compute=side,
        block_q_dq=side,
        block_kv_dq=side,
    )


class Kernel(NamedTuple):
    """One way to compute attention.

    ``run`` is (q, k, v, seen, *, rule, interpret) -> outputs. ``platforms`` lists where it exists.
    ``unsupported`` (the setting) returns why the kernel cannot run, or "". ``multiple`` divides
    every sequence length. ``branches`` says whether the responses of a prompt can share it.
    """

    run: Callable[..., jax.Array]
    platforms: tuple[str, ...]
    unsupported: Callable[[Setting], str]
    multiple: int
    branches: bool


class Setting(NamedTuple):
    """What a kernel would have to run on."""

    dtype: jnp.dtype  # of the activations
    head_width: int  # H
    widths: Sequence[int]  # every compiled sequence length T
    cap: float | None  # of the scores
    capability: str  # of an NVIDIA GPU, like "9.0"; else ""


def _cudnn_unsupported(setting: Setting) -> str:
    """The conditions of JAX's cuDNN attention, and a GPU for which cuDNN has the kernel."""
    capability, head_width = setting.capability, setting.head_width
    if not re.fullmatch(r"\d+\.\d", capability) or float(capability) < 8.0:
        return f"cudnn needs an NVIDIA GPU of compute capability 8.0 or more, not {capability!r}"
    if setting.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cudnn needs half precision, not {setting.dtype.name}: config.model.dtype"
    if head_width > 128 or head_width % 8:
        return f"cudnn needs a head width ≤ 128 and a multiple of 8, not {head_width}"
    if setting.cap is not None:
        return f"cudnn cannot cap scores, which this model does at {setting.cap:g}"
    odd = [width for width in setting.widths if width % 2]
    return f"cudnn needs even lengths, not {odd[0]}" if odd else ""


def _splash_unsupported(setting: Setting) -> str:
    """Head widths of 16 to 256 are known to compile in both precisions."""
    if setting.head_width > 256:
        return f"splash needs a head width ≤ 256, not {setting.head_width}"
    uneven = [width for width in setting.widths if width % BLOCK]
    return f"splash needs lengths that are multiples of {BLOCK}, not {uneven[0]}" if uneven else ""


def _always(setting: Setting) -> str:
    return ""


KERNELS: dict[str, Kernel] = {
    "xla": Kernel(_xla, ("cpu", "gpu", "tpu"), _always, 1, True),
    "cudnn": Kernel(_cudnn, ("gpu",), _cudnn_unsupported, 2, True),
    "splash": Kernel(_splash, ("tpu",), _splash_unsupported, BLOCK, False),
}
PREFERRED = {"cpu": "xla", "gpu": "cudnn", "tpu": "splash"}
