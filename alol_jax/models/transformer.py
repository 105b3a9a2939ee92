"""A transformer as pure functions of flat parameters: hidden states, prefill, decoding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from alol_jax.models.attention import Attention, decode_attention
from alol_jax.models.blocks import (
    ATTENTION,
    MLP,
    RESIDUALS,
    Block,
    LoRA,
    bind,
    graphdef,
    initialise,
    make_norm,
    subtree,
)
from alol_jax.models.cache import Cache, pad_places, write
from alol_jax.models.config import ModelConfig
from alol_jax.models.kernels import Rule, Seen
from alol_jax.models.layers import stacked_layers
from alol_jax.models.nf4 import NF4, quantise
from alol_jax.models.rotary import apply_rotary
from alol_jax.types import Params, Prompts, Unembedding


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
            rows = c.max_positions + c.embedding.position_offset
            params["positions/embedding"] = _normal(position_key, rows, c.width)
        if types := c.embedding.token_types:
            params["token_types/embedding"] = jnp.zeros((types, c.width), jnp.float32)
        norm = initialise(lambda rngs: make_norm(c), key)
        outer = RESIDUALS[c.residual].outer
        params |= {f"{outer}/{path}": leaf for path, leaf in norm.items()}
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
            return self._attention(q, k, v, Seen(segments, branch), positions, layer), None

        x, _ = self._layers(params, tokens, positions, None, attend, key, types)
        return x

    def unembedding(self, params: Params) -> Unembedding:
        """Return the head: its kernel is the transposed embedding if tied."""
        tied = self.config.tied_embeddings
        kernel = params["embed/embedding"].T if tied else params["head/kernel"]
        return Unembedding(kernel, self.config.logit_cap)

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
            positions = prompts.position
            mixed = self._attention(q, k, v, Seen(prompts.segment), positions, layer)
            own = (
                at(x, places.reshape(groups, -1)).reshape(rows, width, *x.shape[2:]) for x in (k, v)
            )
            return mixed, write(store, tuple(own), layer.index, jnp.int32(0))

        empty = self.empty_cache(rows, width, room)
        store = (empty.k, empty.v)
        x, (k, v) = self._layers(params, prompts.ids, prompts.position, store, attend, None)
        cache = empty._replace(
            k=k,
            v=v,
            places=pad_places(jnp.where(filled, position_ids(filled), -1), room),
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
            places=jnp.full((rows, columns), -1, jnp.int32),
            slot=jnp.int32(width),
            first=jnp.int32(width),
            position=jnp.zeros((rows,), jnp.int32),
        )

    def decode_step(
        self, params: Params, token: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """Run one more token per row, i32[B]; return its hidden states [B, D] and the new cache."""
        places = cache.places.at[:, cache.slot].set(cache.position)
        filled, local = places >= 0, self.config.attention.local
        near = filled
        if local is not None:
            near = filled & (cache.position[:, None] - places < local.window)

        def attend(q, k, v, store, layer):
            store = write(store, (k, v), layer.index, cache.slot)
            keys, values = (
                jax.lax.dynamic_index_in_dim(s, layer.index, keepdims=False) for s in store
            )
            seen = near if layer.local is None else jnp.where(layer.local, near, filled)
            return decode_attention(q, keys, values, seen, cap=self.config.attention.cap), store

        x, (k, v) = self._layers(
            params, token[:, None], cache.position[:, None], (cache.k, cache.v), attend, None
        )
        after = cache.slot + 1
        slot = jnp.where(after == places.shape[1], cache.first, after)
        return x[:, 0], Cache(k, v, places, slot, cache.first, cache.position + 1)

    def _attention(self, q, k, v, seen, positions, layer):
        """Attend over whole sequences, in the window of a local layer."""
        local = self.config.attention.local
        rule = Rule(self.config.causal, cap=self.config.attention.cap)
        if local is not None:
            seen = seen._replace(positions=positions, local=layer.local)
            rule = rule._replace(window=local.window)
        return self.attention(q, k, v, seen, rule)

    def _layers(self, params, tokens, positions, store, attend, key, types=None):
        """Apply the embedding, a scan over the blocks, and the final norm.

        ``store`` (the cache) is carried from layer to layer and returned. A scan updates a carry in
        place, but would need two buffers for an array that it scans over.
        """
        x = self._embed(params, tokens, positions, types)

        def layer(carried, inputs):
            (x, store), (leaves, here) = carried, inputs
            block = bind(self._block, leaves)
            layer_key = None if key is None else jax.random.fold_in(key, here.index)

            def attend_here(q, k, v):
                q, k = self._rotated(q, positions, here), self._rotated(k, positions, here)
                return attend(self._scaled(q), k, v, store, here)

            return block(x, attend_here, layer_key), None

        body = REMAT[self.remat](layer)
        layers = (subtree(params, "layers"), stacked_layers(self.config))
        (x, store), _ = jax.lax.scan(body, (x, store), layers)
        return self._outer_norm(params, "final_norm", x), store

    def _rotated(self, x, positions, layer):
        """Apply the rotary positions of a layer, if the model has any."""
        if layer.frequency is not None:
            return apply_rotary(x, positions, layer.frequency, layer.magnitude)
        rotary = self.config.rotary_of(bool(self.config.local_layers[0]))
        if rotary is None:
            return x
        return apply_rotary(x, positions, rotary.frequencies(), rotary.magnitude)

    def _scaled(self, q):
        """Multiply queries so that dividing the scores by √H scales them as the config says."""
        scale = self.config.attention.scale
        factor = 1.0 if scale is None else scale * self.config.head_width**0.5
        return q if factor == 1.0 else q * jnp.asarray(factor, q.dtype)

    def _outer_norm(self, params, place, x):
        """Apply the norm outside of the layers if it is at this place."""
        if RESIDUALS[self.config.residual].outer != place:
            return x
        return bind(self._norm, subtree(params, place))(x)

    def _embed(self, params, tokens, positions, types):
        """Return the input [B, T, D] of the first block."""
        c = self.config.embedding
        x = jnp.take(params["embed/embedding"], tokens, axis=0)
        if self.config.rotary is None:
            rows = positions + c.position_offset
            x = x + jnp.take(params["positions/embedding"], rows, axis=0)
        if c.token_types:
            kinds = params["token_types/embedding"]
            x = x + (kinds[:1, None] if types is None else jnp.take(kinds, types, axis=0))
        x = x.astype(self.dtype)
        if c.scaled:
            x = x * jnp.asarray(self.config.width**0.5, self.dtype)
        return self._outer_norm(params, "embed_norm", x)


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
