"""Attention kernels for softmax(q kᵀ / √H) v, and the function that chooses one.

All kernels agree at real tokens. Their outputs at padding are finite but meaningless, and unused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alol_jax.errors import UserError
from alol_jax.types import Branches

BLOCK = 128  # the tile sides of splash are multiples of this
LARGEST_BLOCK = 512


def causal_mask(width: int, branches: Branches | None) -> np.ndarray:
    """Return bool[T, T], True where a query may attend to a key.

    A query attends to positions up to its own, but not to other responses.
    """
    positions = np.arange(width)
    allowed = positions[None, :] <= positions[:, None]
    if branches is None:
        return allowed
    branch = (positions - branches.prompt) // branches.response
    same = branch[None, :] == branch[:, None]
    return allowed & ((positions[None, :] < branches.prompt) | same)


def attention_mask(
    segments: jax.Array, *, causal: bool, branches: Branches | None = None
) -> jax.Array:
    """Return bool[B, T, T], True where a query may attend to a key.

    A query attends to the tokens of its segment; if causal, to those of `causal_mask` among them.
    """
    allowed = segments[:, :, None] == segments[:, None, :]
    if causal:
        allowed = allowed & jnp.asarray(causal_mask(segments.shape[1], branches))[None]
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


def _xla(q, k, v, segments, *, causal, branches, interpret):
    allowed = attention_mask(segments, causal=causal, branches=branches)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation="xla")


def _cudnn(q, k, v, segments, *, causal, branches, interpret):
    """cuDNN's fused kernel; padding may sit on the left, so the mask goes in as it is.

    ``is_causal`` says nothing that the mask does not, but lets cuDNN skip what is above the
    diagonal: a fifth less time on an H200 (docs/results.md).
    """
    allowed = attention_mask(segments, causal=causal, branches=branches)[:, None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=allowed, is_causal=causal, implementation="cudnn"
    )


def _splash(q, k, v, segments, *, causal, branches, interpret):
    """Splash attention, which knows segments.

    The kernel takes one row [N, T, H] and does not scale, so q is scaled first.
    """
    width, heads, size = q.shape[1], q.shape[2], q.shape[3]
    shape = (width, width)
    head = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    if branches is not None:
        head = splash.NumpyMask(causal_mask(width, branches))
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

    ``run`` is (q, k, v, segments, *, causal, branches, interpret) -> outputs. ``platforms`` lists
    where it exists. ``unsupported`` (dtype, head width, sequence lengths, capability) returns why
    the kernel cannot run, or "".
    """

    run: Callable[..., jax.Array]
    platforms: tuple[str, ...]
    unsupported: Callable[[jnp.dtype, int, Sequence[int], str], str]


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
    return f"cudnn needs even lengths, not {odd[0]}: config.model.shapes" if odd else ""


def _splash_unsupported(
    dtype: jnp.dtype, head_width: int, widths: Sequence[int], capability: str
) -> str:
    """Head widths of 16 to 256 are known to compile in both precisions."""
    if head_width > 256:
        return f"splash needs a head width ≤ 256, not {head_width}"
    uneven = [width for width in widths if width % BLOCK]
    if uneven:
        return (
            f"splash needs lengths that are multiples of {BLOCK}, not {uneven[0]}: choose "
            "config.model.shapes so that prompt and prompt + response are"
        )
    return ""


KERNELS: dict[str, Kernel] = {
    "xla": Kernel(_xla, ("cpu", "gpu", "tpu"), lambda dtype, head_width, widths, capability: ""),
    "cudnn": Kernel(_cudnn, ("gpu",), _cudnn_unsupported),
    "splash": Kernel(_splash, ("tpu",), _splash_unsupported),
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
        branches: Branches | None = None,
    ) -> jax.Array:
        """softmax(q kᵀ / √H + where(attention_mask, 0, −∞)) v.

        Args:
            q: [B, T, N, H].
            k, v: [B, T, G, H]; G divides N.
            segments: i32[B, T]; a query attends to the tokens of its segment alone. With one text
                per row, 1 on real tokens and 0 on padding, which may be anywhere.
            causal: attend to tokens up to the query, else to all of the segment.
            branches: the layout of causal sequences with several responses.

        Returns:
            [B, T, N, H] in the dtype of q.
        """

        def run(q, k, v, segments):
            chosen = KERNELS[self.kernel].run
            return chosen(
                q, k, v, segments, causal=causal, branches=branches, interpret=self.interpret
            )

        if self.kernel == "xla" or self.mesh is None or self.mesh.size == 1:
            return run(q, k, v, segments)
        return _sharded(run, self.mesh, q, k, v, segments)


def _sharded(run, mesh, q, k, v, segments):
    """Call ``run`` under shard_map; heads that the tensor axis does not divide are replicated."""
    cut, parts = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"]
    rows = ("data", "fsdp") if q.shape[0] % cut == 0 else None
    heads = "tensor" if q.shape[2] % parts == 0 else None
    if heads and k.shape[2] % parts:  # every device gets the key/value heads of its queries
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    spec = P(rows, None, heads, None)
    return jax.shard_map(
        run, mesh=mesh, in_specs=(spec, spec, spec, P(rows, None)), out_specs=spec, check_vma=False
    )(q, k, v, segments)


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
