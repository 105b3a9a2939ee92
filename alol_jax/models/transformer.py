"""A transformer as pure functions of flat parameters: hidden states, prefill, decoding."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alol_jax.models.attention import Attention, decode_attention
from alol_jax.models.blocks import Block, LoRA, bind, graphdef, initialise, make_norm, subtree
from alol_jax.models.config import ModelConfig
from alol_jax.models.nf4 import NF4, quantise
from alol_jax.types import Branches, Params


class Cache(NamedTuple):
    """Keys and values of S slots per row; the same slot is written for every row of the batch."""

    k: jax.Array  # [L, B, S, G, H]
    v: jax.Array  # [L, B, S, G, H]
    filled: jax.Array  # bool[B, S], True where a real token sits
    slot: jax.Array  # i32[], the next slot to write
    position: jax.Array  # i32[B], the position of the next token

    def take(self, beam: jax.Array) -> Cache:
        """The cache of B · m rows -> that of B · n rows: each prompt's n beams from its own m.

        Rows are looked up among the m of one prompt, not among all: rows that are cut over devices
        stay where they are.

        Args:
            beam: i32[B, n], numbers below m.
        """
        prompts, n = beam.shape

        def among(x, axis):
            before, after = x.shape[:axis], x.shape[axis + 1 :]
            grouped = x.reshape(*before, prompts, -1, *after)
            place = beam.reshape((1,) * axis + beam.shape + (1,) * len(after))
            picked = jnp.take_along_axis(grouped, place, axis=axis + 1, mode="clip")
            return picked.reshape(*before, prompts * n, *after)

        return self._replace(
            k=among(self.k, 1),
            v=among(self.v, 1),
            filled=among(self.filled, 0),
            position=among(self.position, 0),
        )


def position_ids(mask: jax.Array, branches: Branches | None = None) -> jax.Array:
    """Position ids count real tokens: max(cumsum(mask) − 1, 0). mask [B, T] -> i32[B, T].

    Every response of a sequence with ``branches`` counts on from the prompt.
    """
    real = (mask > 0).astype(jnp.int32)
    if branches is None:
        return jnp.maximum(jnp.cumsum(real, axis=-1) - 1, 0)
    before, after = real[:, : branches.prompt], real[:, branches.prompt :]
    asked = jnp.sum(before, axis=-1)[:, None, None]
    each = after.reshape(after.shape[0], -1, branches.response)
    counted = (asked + jnp.cumsum(each, axis=-1)).reshape(after.shape)
    return jnp.maximum(jnp.concatenate([jnp.cumsum(before, axis=-1), counted], axis=1) - 1, 0)


@dataclasses.dataclass(frozen=True)
class Transformer:
    """A stack of blocks: a description, hashable, without arrays.

    Attributes:
        config: the architecture.
        lora: adapters that the parameters carry, or None.
        dtype: dtype of activations; parameters are cast to it at use.
        remat: recompute a layer's activations in the backward pass instead of keeping them.
        attention: the kernel that whole sequences are mixed with.
        nf4: how the kernels of the blocks are quantised, or None.
    """

    config: ModelConfig
    lora: LoRA | None
    dtype: jnp.dtype
    remat: bool
    attention: Attention = Attention("xla", None)
    nf4: NF4 | None = None

    @functools.cached_property
    def _block(self):
        return graphdef(functools.partial(Block, self.config, self.lora, self.nf4))

    @functools.cached_property
    def _norm(self):
        return graphdef(lambda rngs: make_norm(self.config))

    def init(self, key: jax.Array) -> Params:
        """Random parameters: N(0, 0.02²) kernels and embeddings, unit norms, zero biases, f32.

        Where the base is NF4, the kernels of the blocks are the quantised ones.
        """
        c = self.config
        layer_key, embed_key, head_key, position_key = jax.random.split(key, 4)
        build = functools.partial(Block, c, self.lora, None)
        layers = jax.vmap(functools.partial(initialise, build))(
            jax.random.split(layer_key, c.layers)
        )
        params = {f"layers/{path}": leaf for path, leaf in layers.items()}
        params["embed/embedding"] = 0.02 * jax.random.normal(embed_key, (c.vocab_size, c.width))
        if c.rotary is None:
            rows = c.max_positions + c.position_offset
            params["positions/embedding"] = 0.02 * jax.random.normal(position_key, (rows, c.width))
        if c.token_types:
            params["token_types/embedding"] = jnp.zeros((c.token_types, c.width))
        norm = initialise(lambda rngs: make_norm(c), key)
        place = "embed_norm" if c.post_norm else "final_norm"
        params |= {f"{place}/{path}": leaf for path, leaf in norm.items()}
        if not c.tied_embeddings:
            params["head/kernel"] = 0.02 * jax.random.normal(head_key, (c.width, c.vocab_size))
        return params if self.nf4 is None else quantise_params(params, self.nf4)

    def hidden(
        self,
        params: Params,
        tokens: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        branches: Branches | None = None,
    ) -> jax.Array:
        """Hidden states after the last norm.

        Args:
            params: flat parameters.
            tokens: i32[B, T].
            mask: [B, T], 1 on real tokens; padding may sit anywhere and changes nothing.
            key: dropout key, None for none.
            branches: of sequences with several responses to one prompt: each response sees the
                prompt and itself, as if it stood there alone. For causal models.

        Returns:
            dtype[B, T, D].
        """

        def attend(q, k, v, store, layer):
            causal = self.config.causal
            return self.attention(q, k, v, mask, causal=causal, branches=branches), None

        x, _ = self._layers(params, tokens, position_ids(mask, branches), None, attend, key)
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
        c = self.config
        slots = (c.layers, tokens.shape[0], tokens.shape[1] + room, c.kv_heads, c.head_width)

        def attend(q, k, v, store, layer):
            mixed = self.attention(q, k, v, mask, causal=True)
            return mixed, _written(store, (k, v), layer, 0)

        empty = (jnp.zeros(slots, self.dtype), jnp.zeros(slots, self.dtype))
        x, (k, v) = self._layers(params, tokens, position_ids(mask), empty, attend, None)
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

        def attend(q, k, v, store, layer):
            store = _written(store, (k, v), layer, cache.slot)
            keys, values = (jax.lax.dynamic_index_in_dim(s, layer, keepdims=False) for s in store)
            return decode_attention(q, keys, values, filled), store

        x, (k, v) = self._layers(
            params, token[:, None], cache.position[:, None], (cache.k, cache.v), attend, None
        )
        return x[:, 0], Cache(k, v, filled, cache.slot + 1, cache.position + 1)

    def _layers(self, params, tokens, positions, store, attend, key):
        """Embedding, all blocks by scan, the norm at the end.

        ``store`` goes from layer to layer and is given back. It is carried, not scanned over:
        what a scan reads and what it writes are two buffers, what it carries is updated in place.
        """
        x = self._embedded(params, tokens, positions)
        stacked = subtree(params, "layers")
        indices = jnp.arange(self.config.layers)

        def layer(carried, inputs):
            (x, store), (leaves, index) = carried, inputs
            block = bind(self._block, leaves)
            layer_key = None if key is None else jax.random.fold_in(key, index)

            def attend_here(q, k, v):
                return attend(q, k, v, store, index)

            return block(x, positions, attend_here, layer_key), None

        body = jax.checkpoint(layer) if self.remat else layer
        (x, store), _ = jax.lax.scan(body, (x, store), (stacked, indices))
        if self.config.post_norm:
            return x, store
        return bind(self._norm, subtree(params, "final_norm"))(x), store

    def _embedded(self, params, tokens, positions):
        """What the first block reads: [B, T, D]."""
        x = jnp.take(params["embed/embedding"], tokens, axis=0)
        if self.config.rotary is None:
            rows = positions + self.config.position_offset
            x = x + jnp.take(params["positions/embedding"], rows, axis=0)
        if self.config.token_types:
            x = x + params["token_types/embedding"][:1, None]
        x = x.astype(self.dtype)
        if self.config.post_norm:
            x = bind(self._norm, subtree(params, "embed_norm"))(x)
        return x


def quantise_params(params: Params, nf4: NF4) -> Params:
    """``params`` with the stacked kernels [L, in, out] of the blocks as NF4."""
    found: Params = {}
    for path, leaf in params.items():
        if path.startswith("layers/") and path.endswith("/kernel"):
            stem = path.removesuffix("kernel")
            parts = jax.vmap(functools.partial(quantise, nf4=nf4))(leaf)
            found |= {stem + name: part for name, part in parts.items()}
        else:
            found[path] = leaf
    return found


def _written(store, new, layer, slot):
    """Keys and values [L, B, S, G, H] with those of one layer [B, T, G, H] from ``slot`` on."""
    return tuple(
        jax.lax.dynamic_update_slice(old, part[None], (layer, 0, slot, 0, 0))
        for old, part in zip(store, new, strict=True)
    )
