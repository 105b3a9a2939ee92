"""Self-attention of whole sequences and of one token with a cache, and the choice of a kernel."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import shards
from alol_jax.errors import UserError
from alol_jax.models.kernels import KERNELS, PREFERRED, Rule, Seen, Setting, capped


def decode_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, filled: jax.Array, *, cap: float | None = None
) -> jax.Array:
    """Attend from one token per row to the filled slots of a key-value cache.

    Args:
        q: [B, 1, N, H].
        k: [B, G, H, S]; v: [B, G, S, H]: so that both products read them as they lie.
        filled: bool[B, S], at least one slot per row.
        cap: see `kernels.Rule`.

    Returns:
        [B, 1, N, H].
    """
    rows, _, heads, size = q.shape
    grouped = q.reshape(rows, k.shape[1], -1, size)  # the queries of each key head
    scores = jnp.einsum("bgnh,bghs->bgns", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(filled[:, None, None, :], capped(scores * size**-0.5, cap), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bgns,bgsh->bgnh", weights, v, preferred_element_type=jnp.float32)
    return mixed.reshape(rows, 1, heads, size).astype(q.dtype)


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
        seen: Seen,
        rule: Rule,
    ) -> jax.Array:
        """softmax(q kᵀ / √H + where(attention_mask, 0, −∞)) v.

        Args:
            q: [B, T, N, H].
            k, v: [B, T, G, H]; G divides N.
            seen: which keys a query sees. With one text per row, segments are 1 on real tokens and
                0 on padding, which may be anywhere.
            rule: what is computed. A window as wide as the rows holds every text: it is none.

        Returns:
            [B, T, N, H] in the dtype of q.
        """
        if rule.window is not None and rule.window >= q.shape[1]:
            seen, rule = Seen(seen.segments, seen.branch), rule._replace(window=None)
        run = functools.partial(KERNELS[self.kernel].run, rule=rule, interpret=self.interpret)
        if self.kernel == "xla" or self.mesh is None or self.mesh.size == 1:
            return run(q, k, v, seen)
        return _sharded(run, self.mesh, q, k, v, seen)

    @property
    def branches(self) -> bool:
        """Whether the responses of a prompt can share it."""
        return KERNELS[self.kernel].branches


def _sharded(run, mesh, q, k, v, seen):
    """Call ``run`` under shard_map; heads that the tensor axis does not divide are replicated."""
    cut, parts = shards(mesh), mesh.shape["tensor"]
    rows = ("data", "fsdp") if q.shape[0] % cut == 0 else None
    heads = "tensor" if q.shape[2] % parts == 0 else None
    if heads and k.shape[2] % parts:  # every device gets the key/value heads of its queries
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    spec, ids = P(rows, None, heads, None), P(rows, None)
    each = Seen(*(None if x is None else ids if x.ndim else P() for x in seen))
    specs = (spec, spec, spec, each)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)
    return mapped(q, k, v, seen)


def choose_kernel(
    wanted: str,
    *,
    platform: str,
    capability: str,
    dtype: jax.typing.DTypeLike,
    head_width: int,
    widths: Sequence[int],
    cap: float | None,
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
        cap: of the model's scores.

    Raises:
        UserError: the kernel is unknown or cannot run here.
    """
    if wanted not in KERNELS and wanted != "auto":
        raise UserError.unknown(
            f"config.model.attention: no kernel {wanted!r}", wanted, ("auto", *KERNELS)
        )
    name = PREFERRED.get(platform, "xla") if wanted == "auto" else wanted
    kernel = KERNELS[name]
    reason = kernel.unsupported(Setting(jnp.dtype(dtype), head_width, widths, cap, capability))
    if platform not in kernel.platforms:
        reason = f"{name} runs on {' and '.join(kernel.platforms)}, not on {platform}"
    if not reason:
        return name, f"attention: {name} ({'asked for' if wanted == name else platform})"
    if wanted == name:
        raise UserError(f"config.model.attention {wanted!r}: {reason}")
    return "xla", f"attention: xla ({reason})"
