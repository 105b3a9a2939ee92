"""The language model as pure functions of flat parameters: hidden states, prefill, decoding."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alol_jax.models.blocks import Block, LoRA, RMSNorm, below, bind, describe, initialise
from alol_jax.models.config import ModelConfig
from alol_jax.types import Params


class Cache(NamedTuple):
    """Keys and values of S slots per row; the same slot is written for every row of the batch."""

    k: jax.Array  # [L, B, S, G, H]
    v: jax.Array  # [L, B, S, G, H]
    filled: jax.Array  # bool[B, S], True where a real token sits
    slot: jax.Array  # i32[], the next slot to write
    position: jax.Array  # i32[B], the position of the next token


def positions_of(mask: jax.Array) -> jax.Array:
    """Position ids count real tokens: max(cumsum(mask) − 1, 0). mask [B, T] -> i32[B, T]."""
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1, 0)


def causal_mask(mask: jax.Array) -> jax.Array:
    """bool[B, T, T]: a query sees real tokens up to itself, and always itself (so no empty row)."""
    width = mask.shape[1]
    earlier = jnp.tril(jnp.ones((1, width, width), bool))
    itself = jnp.eye(width, dtype=bool)[None]
    return (earlier & (mask > 0)[:, None, :]) | itself


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A decoder-only language model: a description, hashable, without arrays.

    Attributes:
        config: the architecture.
        lora: adapters that the parameters carry, or None.
        dtype: dtype of activations; parameters are cast to it at use.
        remat: recompute a layer's activations in the backward pass instead of keeping them.
    """

    config: ModelConfig
    lora: LoRA | None
    dtype: jnp.dtype
    remat: bool

    @functools.cached_property
    def _block(self):
        return describe(functools.partial(Block, self.config, self.lora))

    @functools.cached_property
    def _norm(self):
        return describe(lambda rngs: RMSNorm(self.config.width, self.config.norm_epsilon))

    def init(self, key: jax.Array) -> Params:
        """Random float32 parameters: N(0, 0.02²) kernels and embeddings, unit norms."""
        c = self.config
        layer_key, embed_key, head_key = jax.random.split(key, 3)
        build = functools.partial(Block, c, self.lora)
        layers = jax.vmap(functools.partial(initialise, build))(
            jax.random.split(layer_key, c.layers)
        )
        params = {f"layers/{path}": leaf for path, leaf in layers.items()}
        params["embed/embedding"] = 0.02 * jax.random.normal(embed_key, (c.vocab_size, c.width))
        params["final_norm/scale"] = jnp.ones((c.width,))
        if not c.tied_embeddings:
            params["head/kernel"] = 0.02 * jax.random.normal(head_key, (c.width, c.vocab_size))
        return params

    def hidden(
        self, params: Params, tokens: jax.Array, mask: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states after the final norm.

        Args:
            params: flat parameters.
            tokens: i32[B, T].
            mask: [B, T], 1 on real tokens; padding may sit anywhere and changes nothing.
            key: dropout key, None for none.

        Returns:
            dtype[B, T, D].
        """
        allowed = causal_mask(mask)
        x, _ = self._layers(
            params, tokens, positions_of(mask), None, lambda k, v, *_: (k, v, allowed, None), key
        )
        return x

    def unembedding(self, params: Params) -> jax.Array:
        """The head's kernel [D, V] (the transposed embedding where the two are tied)."""
        if self.config.tied_embeddings:
            return params["embed/embedding"].T
        return params["head/kernel"]

    def prefill(
        self, params: Params, tokens: jax.Array, mask: jax.Array, *, room: int
    ) -> tuple[jax.Array, Cache]:
        """Reads left-padded prompts and leaves ``room`` free slots for what follows.

        Returns the last position's hidden states [B, D] and the cache of P + room slots.
        """
        allowed, c = causal_mask(mask), self.config
        slots = (c.layers, tokens.shape[0], tokens.shape[1] + room, c.kv_heads, c.head_width)

        def attend(k, v, store, layer):
            return k, v, allowed, _written(store, (k, v), layer, 0)

        empty = (jnp.zeros(slots, self.dtype), jnp.zeros(slots, self.dtype))
        x, (k, v) = self._layers(params, tokens, positions_of(mask), empty, attend, None)
        cache = Cache(
            k=k,
            v=v,
            filled=jnp.pad(mask > 0, ((0, 0), (0, room))),
            slot=jnp.int32(tokens.shape[1]),
            position=jnp.sum(mask > 0, axis=-1).astype(jnp.int32),
        )
        return x[:, -1], cache

    def decode_step(
        self, params: Params, token: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """One more token per row: i32[B] -> hidden [B, D] and the cache that holds it."""
        filled = cache.filled.at[:, cache.slot].set(True)

        def attend(k, v, store, layer):
            store = _written(store, (k, v), layer, cache.slot)
            keys, values = (jax.lax.dynamic_index_in_dim(s, layer, keepdims=False) for s in store)
            return keys, values, filled[:, None, :], store

        x, (k, v) = self._layers(
            params, token[:, None], cache.position[:, None], (cache.k, cache.v), attend, None
        )
        return x[:, 0], Cache(k, v, filled, cache.slot + 1, cache.position + 1)

    def _layers(self, params, tokens, positions, store, attend, key):
        """Embedding, all blocks by scan, final norm.

        ``store`` goes from layer to layer and is given back. It is carried, not scanned over:
        what a scan reads and what it writes are two buffers, what it carries is updated in place.
        """
        x = jnp.take(params["embed/embedding"], tokens, axis=0).astype(self.dtype)
        stacked = below(params, "layers")
        indices = jnp.arange(self.config.layers)

        def layer(carried, inputs):
            (x, store), (leaves, index) = carried, inputs
            block = bind(self._block, leaves)
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return block(x, positions, lambda k, v: attend(k, v, store, index), layer_key), None

        body = jax.checkpoint(layer) if self.remat else layer
        (x, store), _ = jax.lax.scan(body, (x, store), (stacked, indices))
        return bind(self._norm, below(params, "final_norm"))(x), store


def _written(store, new, layer, slot):
    """Keys and values [L, B, S, G, H] with those of one layer [B, T, G, H] from ``slot`` on."""
    return tuple(
        jax.lax.dynamic_update_slice(old, part[None], (layer, 0, slot, 0, 0))
        for old, part in zip(store, new, strict=True)
    )
