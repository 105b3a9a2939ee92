"""Attention kernels for softmax(q kᵀ / √H) v, and the function that chooses one.

All kernels agree at real tokens. Their outputs at padding are finite but meaningless, and unused.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import shards
from alol_jax.errors import UserError

BLOCK = 128  # the tile sides of splash are multiples of this
LARGEST_BLOCK = 512
PARTS, NARROWEST_PART = 8, 64  # of the queries, in plain XLA


def attention_mask(
    segments: jax.Array,
    *,
    causal: bool,
    branch: jax.Array | None = None,
    queries: slice = slice(None),
) -> jax.Array:
    """Return bool[B, Q, T], True where a query may attend to a key.

    A query attends to the tokens of its segment; if causal, to those up to its own column; with
    branches, to those of branch 0 and of its own.

    Args:
        segments: i32[B, T].
        branch: i32[B, T], or None if every segment is one text.
        queries: which columns are the Q queries.
    """
    allowed = segments[:, queries, None] == segments[:, None, :]
    if causal:
        columns = jnp.arange(segments.shape[1])
        allowed = allowed & (columns[None, queries, None] >= columns[None, None])
    if branch is not None:
        allowed = allowed & ((branch[:, None] == 0) | (branch[:, None] == branch[:, queries, None]))
    return allowed


def decode_attention(q: jax.Array, k: jax.Array, v: jax.Array, filled: jax.Array) -> jax.Array:
    """Attend from one token per row to the filled slots of a key-value cache.

    Args:
        q: [B, 1, N, H].
        k: [B, G, H, S]; v: [B, G, S, H]: so that both products read them as they lie.
        filled: bool[B, S], at least one slot per row.

    Returns:
        [B, 1, N, H].
    """
    rows, _, heads, size = q.shape
    grouped = q.reshape(rows, k.shape[1], -1, size)  # the queries of each key head
    scores = jnp.einsum("bgnh,bghs->bgns", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(filled[:, None, None, :], scores * size**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bgns,bgsh->bgnh", weights, v, preferred_element_type=jnp.float32)
    return mixed.reshape(rows, 1, heads, size).astype(q.dtype)


def _xla(q, k, v, segments, branch, *, causal, interpret):
    """Plain XLA: causal queries in a few parts, each with no more keys than it can see."""
    width = q.shape[1]
    part = max(NARROWEST_PART, -(-width // PARTS)) if causal else width
    mixed = []
    for start in range(0, width, part):
        queries = slice(start, min(start + part, width))
        keys = slice(0, queries.stop)
        seen = None if branch is None else branch[:, keys]
        mask = attention_mask(segments[:, keys], causal=causal, branch=seen, queries=queries)
        mixed.append(
            jax.nn.dot_product_attention(
                q[:, queries], k[:, keys], v[:, keys], mask=mask[:, None], implementation="xla"
            )
        )
    return jnp.concatenate(mixed, axis=1)


def _cudnn(q, k, v, segments, branch, *, causal, interpret):
    """cuDNN's fused kernel; segments and branches go in as a mask.

    ``is_causal`` says nothing that the mask does not, but lets cuDNN skip what is above the
    diagonal: a fifth less time on an H200 (docs/results.md).
    """
    allowed = attention_mask(segments, causal=causal, branch=branch)[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=allowed, is_causal=causal, implementation="cudnn"
    )


def _splash(q, k, v, segments, branch, *, causal, interpret):
    """Splash attention, which knows segments, but no branches.

    The kernel takes one row [N, T, H] and does not scale, so q is scaled first.
    """
    if branch is not None:
        raise ValueError("splash has no mask for branches: give every response its own prompt")
    width, heads, size = q.shape[1], q.shape[2], q.shape[3]
    shape = (width, width)
    head = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([head] * heads),
        block_sizes=_blocks(width),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    heads_first = [jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(size**-0.5, q.dtype), k, v)]
    mixed = jax.vmap(kernel)(*heads_first, splash.SegmentIds(segments, segments))
    return jnp.swapaxes(mixed, 1, 2).astype(q.dtype)


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

    ``run`` is (q, k, v, segments, branch, *, causal, interpret) -> outputs. ``platforms`` lists
    where it exists. ``unsupported`` (dtype, head width, sequence lengths, capability) returns why
    the kernel cannot run, or "". ``multiple`` divides every sequence length. ``branches`` says
    whether the responses of a prompt can share it.
    """

    run: Callable[..., jax.Array]
    platforms: tuple[str, ...]
    unsupported: Callable[[jnp.dtype, int, Sequence[int], str], str]
    multiple: int
    branches: bool


def _cudnn_unsupported(
    dtype: jnp.dtype, head_width: int, widths: Sequence[int], capability: str
) -> str:
    """The conditions of JAX's cuDNN attention, and a GPU for which cuDNN has the kernel."""
    if not re.fullmatch(r"\d+\.\d", capability) or float(capability) < 8.0:
        return f"cudnn needs an NVIDIA GPU of compute capability 8.0 or more, not {capability!r}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"cudnn needs half precision, not {dtype.name}: config.model.dtype"
    if head_width > 128 or head_width % 8:
        return f"cudnn needs a head width ≤ 128 and a multiple of 8, not {head_width}"
    odd = [width for width in widths if width % 2]
    return f"cudnn needs even lengths, not {odd[0]}" if odd else ""


def _splash_unsupported(
    dtype: jnp.dtype, head_width: int, widths: Sequence[int], capability: str
) -> str:
    """Head widths of 16 to 256 are known to compile in both precisions."""
    if head_width > 256:
        return f"splash needs a head width ≤ 256, not {head_width}"
    uneven = [width for width in widths if width % BLOCK]
    return f"splash needs lengths that are multiples of {BLOCK}, not {uneven[0]}" if uneven else ""


def _always(dtype: jnp.dtype, head_width: int, widths: Sequence[int], capability: str) -> str:
    return ""


KERNELS: dict[str, Kernel] = {
    "xla": Kernel(_xla, ("cpu", "gpu", "tpu"), _always, 1, True),
    "cudnn": Kernel(_cudnn, ("gpu",), _cudnn_unsupported, 2, True),
    "splash": Kernel(_splash, ("tpu",), _splash_unsupported, BLOCK, False),
}
PREFERRED = {"cpu": "xla", "gpu": "cudnn", "tpu": "splash"}


@dataclasses.dataclass(frozen=True)
class Attention:
    """Self-attention of whole sequences by a chosen kernel.

    Attributes:
        kernel: a key of `KERNELS`.
        mesh: the mesh over which fused kernels, which XLA cannot partition, run under shard_map:
            rows over data·fsdp, heads over tensor. None on one device.
        interpret: run splash without a TPU, slowly (for tests).
    """

    kernel: str
    mesh: Mesh | None
    interpret: bool = False

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        segments: jax.Array,
        *,
        causal: bool,
        branch: jax.Array | None = None,
    ) -> jax.Array:
        """softmax(q kᵀ / √H + where(attention_mask, 0, −∞)) v.

        Args:
            q: [B, T, N, H].
            k, v: [B, T, G, H]; G divides N.
            segments: i32[B, T]; a query attends to the tokens of its segment alone. With one text
                per row, 1 on real tokens and 0 on padding, which may be anywhere.
            causal: attend to tokens up to the query, else to all of the segment.
            branch: i32[B, T], the response of each token of a causal segment, 0 in the prompt:
                responses do not attend to each other. None if no prompt has several.

        Returns:
            [B, T, N, H] in the dtype of q.
        """
        run = functools.partial(KERNELS[self.kernel].run, causal=causal, interpret=self.interpret)
        if self.kernel == "xla" or self.mesh is None or self.mesh.size == 1:
            return run(q, k, v, segments, branch)
        return _sharded(run, self.mesh, q, k, v, segments, branch)

    @property
    def branches(self) -> bool:
        """Whether the responses of a prompt can share it."""
        return KERNELS[self.kernel].branches


def _sharded(run, mesh, q, k, v, segments, branch):
    """Call ``run`` under shard_map; heads that the tensor axis does not divide are replicated."""
    cut, parts = shards(mesh), mesh.shape["tensor"]
    rows = ("data", "fsdp") if q.shape[0] % cut == 0 else None
    heads = "tensor" if q.shape[2] % parts == 0 else None
    if heads and k.shape[2] % parts:  # every device gets the key/value heads of its queries
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    spec, ids = P(rows, None, heads, None), P(rows, None)
    specs = (spec, spec, spec, ids, None if branch is None else ids)
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)(
        q, k, v, segments, branch
    )


def choose_kernel(
    wanted: str,
    *,
    platform: str,
    capability: str,
    dtype: jax.typing.DTypeLike,
    head_width: int,
    widths: Sequence[int],
) -> tuple[str, str]:
    """Return the kernel to use, a key of `KERNELS`, and a line for the log that says why.

    Args:
        wanted: "auto" (the fused kernel of the platform if it can run, else plain XLA), or a key of
            `KERNELS`, which must be able to run.
        platform: "cpu", "gpu" or "tpu".
        capability: the compute capability of an NVIDIA GPU, like "9.0"; else "".
        dtype: dtype of the activations.
        head_width: H.
        widths: every compiled sequence length T.

    Raises:
        UserError: the kernel is unknown or cannot run here.
    """
    if wanted not in KERNELS and wanted != "auto":
        raise UserError.unknown(
            f"config.model.attention: no kernel {wanted!r}", wanted, ("auto", *KERNELS)
        )
    name = PREFERRED.get(platform, "xla") if wanted == "auto" else wanted
    kernel = KERNELS[name]
    reason = kernel.unsupported(jnp.dtype(dtype), head_width, widths, capability)
    if platform not in kernel.platforms:
        reason = f"{name} runs on {' and '.join(kernel.platforms)}, not on {platform}"
    if not reason:
        return name, f"attention: {name} ({'asked for' if wanted == name else platform})"
    if wanted == name:
        raise UserError(f"config.model.attention {wanted!r}: {reason}")
    return "xla", f"attention: xla ({reason})"
