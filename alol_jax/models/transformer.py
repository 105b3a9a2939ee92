"""A transformer as pure functions of flat parameters: hidden states, prefill, decoding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alol_jax.devices.sharding import ROWS
from alol_jax.models.attention import Attention, decode_attention
from alol_jax.models.blocks import (
    ATTENTION,
    MLP,
    Block,
    LoRA,
    bind,
    graphdef,
    initialise,
    make_norm,
    subtree,
)
from alol_jax.models.config import ModelConfig
from alol_jax.models.nf4 import NF4, quantise
from alol_jax.types import Params, Prompts


class Cache(NamedTuple):
    """A key-value cache of S columns per row; every row writes the same column.

    After the last column, writing goes on at ``first``: what lies there must be used no more.
    """

    k: jax.Array  # [L, B, G, H, S]
    v: jax.Array  # [L, B, G, S, H]
    filled: jax.Array  # bool[B, S], True where a column holds a real token of the row
    slot: jax.Array  # i32[], the next column to write
    first: jax.Array  # i32[], the first column after the prompts
    position: jax.Array  # i32[B], the position of the next token

    def shardings(self, mesh: Mesh) -> Cache:
        """Return where each array lies on a mesh: shared out by row."""
        whole, rows, second = (NamedSharding(mesh, spec) for spec in (P(), P(ROWS), P(None, ROWS)))
        return Cache(second, second, rows, whole, whole, rows)

    def narrow(self, columns: int, *, room: int) -> Cache:
        """Keep the last P = ``columns`` columns of the prompts, and the ``room`` after them."""
        cut = self.filled.shape[1] - room - columns
        return self._replace(
            k=self.k[..., cut:],
            v=self.v[:, :, :, cut:],
            filled=self.filled[:, cut:],
            slot=self.slot - cut,
            first=self.first - cut,
        )

    def take(self, beam: jax.Array) -> Cache:
        """Select n of the m beams of each prompt: B · m rows in, B · n rows out.

        Rows are gathered within one prompt, so that sharded rows stay on their device.

        Args:
            beam: i32[B, n], indices below m.
        """
        prompts, n = beam.shape

        def gather(x, axis):
            before, after = x.shape[:axis], x.shape[axis + 1 :]
            grouped = x.reshape(*before, prompts, -1, *after)
            place = beam.reshape((1,) * axis + beam.shape + (1,) * len(after))
            picked = jnp.take_along_axis(grouped, place, axis=axis + 1, mode="clip")
            return picked.reshape(*before, prompts * n, *after)

        return self._replace(
            k=gather(self.k, 1),
            v=gather(self.v, 1),
            filled=gather(self.filled, 0),
            position=gather(self.position, 0),
        )

    def refill(self, fresh: Cache, source: jax.Array) -> Cache:
        """Give some rows the prompt of a row of ``fresh``, a cache of prompts alone.

        Args:
            source: i32[D, B/D], the row of ``fresh`` in the same of D groups; −1 keeps the row.
        """
        new, width = fresh.take(jnp.maximum(source, 0)), fresh.filled.shape[1]
        starts = (source >= 0).reshape(-1)

        def put(old, prompt, axis):
            before = jax.lax.slice_in_dim(old, 0, width, axis=axis)
            prompt = jnp.where(starts[None, :, None, None, None], prompt, before)
            return jax.lax.dynamic_update_slice_in_dim(old, prompt, 0, axis=axis)

        filled = jnp.pad(new.filled, ((0, 0), (0, self.filled.shape[1] - width)))
        return self._replace(
            k=put(self.k, new.k, 4),
            v=put(self.v, new.v, 3),
            filled=jnp.where(starts[:, None], filled, self.filled),
            position=jnp.where(starts, new.position, self.position),
        )


def position_ids(mask: jax.Array) -> jax.Array:
    """Return position ids that count real tokens: max(cumsum(mask) − 1, 0), i32[B, T]."""
    return jnp.maximum(jnp.cumsum((mask > 0).astype(jnp.int32), axis=-1) - 1, 0)


def _remat(*names: str) -> Callable[[Callable], Callable]:
    """Keep these outputs of a layer and compute the rest again."""
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    return functools.partial(jax.checkpoint, policy=policy)


REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda layer: layer,
    "projections": _remat(ATTENTION, MLP),
    "attention": _remat(ATTENTION),
    "full": jax.checkpoint,
}
"""Remat policies, from most memory to least: keep every activation, the outputs of all projections,
those of the attention's projections, or only the input of each layer."""


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A stack of blocks: a hashable description without arrays.

    Attributes:
        config: the architecture.
        lora: the adapters among the parameters, or None.
        dtype: dtype of activations; parameters are cast to it at use.
        remat: which activations of a layer the backward pass finds in memory and which it computes
            again, a key of `REMAT`.
        attention: attention over whole sequences.
        nf4: how the kernels of the blocks are quantised, or None.
    """

    config: ModelConfig
    lora: LoRA | None
    dtype: jnp.dtype
    remat: str
    attention: Attention = Attention("xla", None)
    nf4: NF4 | None = None

    @functools.cached_property
    def _block(self):
        return graphdef(functools.partial(Block, self.config, self.lora, self.nf4))

    @functools.cached_property
    def _norm(self):
        return graphdef(lambda rngs: make_norm(self.config))

    def init(self, key: jax.Array) -> Params:
        """Initialise f32 parameters: N(0, 0.02²) kernels and embeddings, zero biases, unit norms.

        With ``nf4``, the kernels of the blocks are quantised.
        """
        c = self.config
        layer_key, embed_key, head_key, position_key = jax.random.split(key, 4)
        build = functools.partial(Block, c, self.lora, None)
        layers = jax.vmap(functools.partial(initialise, build))(
            jax.random.split(layer_key, c.layers)
        )
        params = {f"layers/{path}": leaf for path, leaf in layers.items()}
        params["embed/embedding"] = _normal(embed_key, c.vocab_size, c.width)
        if c.rotary is None:
            rows = c.max_positions + c.position_offset
            params["positions/embedding"] = _normal(position_key, rows, c.width)
        if c.token_types:
            params["token_types/embedding"] = jnp.zeros((c.token_types, c.width), jnp.float32)
        norm = initialise(lambda rngs: make_norm(c), key)
        place = "embed_norm" if c.post_norm else "final_norm"
        params |= {f"{place}/{path}": leaf for path, leaf in norm.items()}
        if not c.tied_embeddings:
            params["head/kernel"] = _normal(head_key, c.width, c.vocab_size)
        return params if self.nf4 is None else quantise_params(params, self.nf4)

    def hidden(
        self,
        params: Params,
        tokens: jax.Array,
        segments: jax.Array,
        key: jax.Array | None = None,
        *,
        positions: jax.Array | None = None,
        branch: jax.Array | None = None,
        types: jax.Array | None = None,
    ) -> jax.Array:
        """Return the hidden states after the final norm.

        Args:
            params: flat parameters.
            tokens: i32[B, T].
            segments: [B, T], the number of each token's text, from 1, and 0 on padding, which may
                be anywhere. Neither padding nor other texts change anything.
            key: dropout key; None for no dropout.
            positions: i32[B, T]; None counts the real tokens of a row, which is then one text.
            branch: i32[B, T], see `Grid`; None if no prompt has several responses. For causal
                models.
            types: i32[B, T], the token types; None: all are 0. Ignored by models without.

        Returns:
            dtype[B, T, D].
        """

        segments = segments.astype(jnp.int32)
        positions = position_ids(segments) if positions is None else positions

        def attend(q, k, v, store, layer):
            causal = self.config.causal
            return self.attention(q, k, v, segments, causal=causal, branch=branch), None

        x, _ = self._layers(params, tokens, positions, None, attend, key, types)
        return x

    def unembedding(self, params: Params) -> jax.Array:
        """Return the kernel [D, V] of the head, the transposed embedding if tied."""
        if self.config.tied_embeddings:
            return params["embed/embedding"].T
        return params["head/kernel"]

    def prefill(self, params: Params, prompts: Prompts, *, room: int) -> tuple[jax.Array, Cache]:
        """Read prompts that lie side by side, and make a cache with ``room`` free columns.

        In the cache every prompt has a row of its own, and ends at column P.

        Returns:
            The hidden states [B, D] of the last tokens, and the cache of P + room columns.
        """
        groups, each, width = prompts.source.shape
        rows = groups * each
        places = jnp.maximum(prompts.source, 0)
        filled = (prompts.source >= 0).reshape(rows, width)

        def at(x, places):
            """Take [rows, T, …] at i32[D, n]: [D · n, …]."""
            flat = x.reshape(groups, -1, *x.shape[2:])
            index = places.reshape(*places.shape, *[1] * (x.ndim - 2))
            taken = jnp.take_along_axis(flat, index, axis=1, mode="clip")
            return taken.reshape(-1, *x.shape[2:])

        def attend(q, k, v, store, layer):
            mixed = self.attention(q, k, v, prompts.segment, causal=True)
            own = (
                at(x, places.reshape(groups, -1)).reshape(rows, width, *x.shape[2:]) for x in (k, v)
            )
            return mixed, _write(store, tuple(own), layer, jnp.int32(0))

        empty = self.empty_cache(rows, width, room)
        store = (empty.k, empty.v)
        x, (k, v) = self._layers(params, prompts.ids, prompts.position, store, attend, None)
        cache = empty._replace(
            k=k,
            v=v,
            filled=jnp.pad(filled, ((0, 0), (0, room))),
            position=jnp.sum(filled, axis=-1).astype(jnp.int32),
        )
        return at(x, places[:, :, -1]), cache

    def empty_cache(self, rows: int, width: int, room: int) -> Cache:
        """Return a cache without prompts, for B rows of P + room columns."""
        c = self.config
        lead, columns = (c.layers, rows, c.kv_heads), width + room
        return Cache(
            k=jnp.zeros((*lead, c.head_width, columns), self.dtype),
            v=jnp.zeros((*lead, columns, c.head_width), self.dtype),
            filled=jnp.zeros((rows, columns), bool),
            slot=jnp.int32(width),
            first=jnp.int32(width),
            position=jnp.zeros((rows,), jnp.int32),
        )

    def decode_step(
        self, params: Params, token: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Run one more token per row, i32[B]; return its hidden states [B, D] and the new cache."""
        filled = cache.filled.at[:, cache.slot].set(True)

        def attend(q, k, v, store, layer):
            store = _write(store, (k, v), layer, cache.slot)
            keys, values = (jax.lax.dynamic_index_in_dim(s, layer, keepdims=False) for s in store)
            return decode_attention(q, keys, values, filled), store

        x, (k, v) = self._layers(
            params, token[:, None], cache.position[:, None], (cache.k, cache.v), attend, None
        )
        after = cache.slot + 1
        slot = jnp.where(after == filled.shape[1], cache.first, after)
        return x[:, 0], Cache(k, v, filled, slot, cache.first, cache.position + 1)

    def _layers(self, params, tokens, positions, store, attend, key, types=None):
        """Apply the embedding, a scan over the blocks, and the final norm.

        ``store`` (the cache) is carried from layer to layer and returned. A scan updates a carry in
        place, but would need two buffers for an array that it scans over.
        """
        x = self._embed(params, tokens, positions, types)
        stacked = subtree(params, "layers")
        indices = jnp.arange(self.config.layers, dtype=jnp.int32)

        def layer(carried, inputs):
            (x, store), (leaves, index) = carried, inputs
            block = bind(self._block, leaves)
            layer_key = None if key is None else jax.random.fold_in(key, index)

            def attend_here(q, k, v):
                return attend(q, k, v, store, index)

            return block(x, positions, attend_here, layer_key), None

        body = REMAT[self.remat](layer)
        (x, store), _ = jax.lax.scan(body, (x, store), (stacked, indices))
        if self.config.post_norm:
            return x, store
        return bind(self._norm, subtree(params, "final_norm"))(x), store

    def _embed(self, params, tokens, positions, types):
        """Return the input [B, T, D] of the first block."""
        x = jnp.take(params["embed/embedding"], tokens, axis=0)
        if self.config.rotary is None:
            rows = positions + self.config.position_offset
            x = x + jnp.take(params["positions/embedding"], rows, axis=0)
        if self.config.token_types:
            kinds = params["token_types/embedding"]
            x = x + (kinds[:1, None] if types is None else jnp.take(kinds, types, axis=0))
        x = x.astype(self.dtype)
        if self.config.post_norm:
            x = bind(self._norm, subtree(params, "embed_norm"))(x)
        return x


def is_block_kernel(path: str) -> bool:
    """Return True for the kernels of the blocks, which NF4 quantises."""
    return path.startswith("layers/") and path.endswith("/kernel")


def param_shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the float32 parameters of a model without adapters, by path."""
    model = Transformer(config, None, jnp.dtype("float32"), remat="none")
    return jax.eval_shape(model.init, jax.random.key(0))


def quantise_params(params: Params, nf4: NF4) -> Params:
    """Return ``params`` with the stacked kernels [L, in, out] of the blocks as NF4."""
    found: Params = {}
    for path, leaf in params.items():
        if is_block_kernel(path):
            stem = path.removesuffix("kernel")
            parts = jax.vmap(functools.partial(quantise, nf4=nf4))(leaf)
            found |= {stem + name: part for name, part in parts.items()}
        else:
            found[path] = leaf
    return found


def _normal(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Draw f32[rows, columns] from N(0, 0.02²)."""
    return 0.02 * jax.random.normal(key, (rows, columns), jnp.float32)


def _write(store, new, layer, slot):
    """Write keys and values [B, T, G, H] of a layer into a `Cache`'s, from ``slot`` on."""
    keys, values = jnp.transpose(new[0], (0, 2, 3, 1)), jnp.transpose(new[1], (0, 2, 1, 3))
    zero = jnp.int32(0)
    return (
        jax.lax.dynamic_update_slice(store[0], keys[None], (layer, zero, zero, zero, slot)),
        jax.lax.dynamic_update_slice(store[1], values[None], (layer, zero, zero, slot, zero)),
    )
