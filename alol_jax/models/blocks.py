"""One transformer block as Flax NNX modules, and the bridge between a module and flat parameters.

Modules describe; they hold no state of their own beyond a call. `describe` splits one off once,
`bind` puts arrays back into it inside a jit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from alol_jax.models.config import ModelConfig
from alol_jax.types import Params

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters: kernel + alpha/rank · A B on the named projections (Hu et al. 2021)."""

    rank: int
    alpha: float
    dropout: float
    modules: tuple[str, ...] = PROJECTIONS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def describe(build: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    """The structure of the module that ``build`` makes, without making its arrays."""
    return nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))[0]


def initialise(build: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Params:
    """Fresh parameters of the module that ``build`` makes, as a flat dict."""
    state = nnx.split(build(nnx.Rngs(key)))[1]
    return {"/".join(path): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def bind(graph: nnx.GraphDef, params: Params) -> nnx.Module:
    """The module of ``graph`` holding ``params`` (every path, no other)."""
    flat = [(tuple(path.split("/")), leaf) for path, leaf in params.items()]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def below(params: Params, prefix: str) -> Params:
    """The leaves whose path starts with ``prefix/``, without the prefix."""
    start = prefix + "/"
    return {path[len(start) :]: leaf for path, leaf in params.items() if path.startswith(start)}


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; the identity without a key or a rate."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class Linear(nnx.Module):
    """x W, plus scale · dropout(x) A B where the projection carries an adapter.

    A starts Kaiming-uniform with a = √5, that is U(±1/√D_in); B starts at zero. Both are float32.
    """

    def __init__(self, width: int, out: int, name: str, lora: LoRA | None, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width, out)))
        self.lora = lora if lora is not None and name in lora.modules else None
        if self.lora is not None:
            limit = width**-0.5
            shape = (width, self.lora.rank)
            self.lora_a = nnx.Param(
                jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
            )
            self.lora_b = nnx.Param(jnp.zeros((self.lora.rank, out)))

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        y = x @ self.kernel[...].astype(x.dtype)
        if self.lora is None:
            return y
        low = dropout(x, self.lora.dropout, key) @ self.lora_a[...].astype(x.dtype)
        return y + self.lora.scale * (low @ self.lora_b[...].astype(x.dtype))


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · scale, the mean in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(self.scale[...].astype(x.dtype), range(x.ndim - 1))
        return normed.astype(x.dtype) * scale


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary embedding, halves layout (Su et al. 2021). x [B, T, N, H], positions [B, T]."""
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


class Block(nnx.Module):
    """One pre-norm layer: x + attention(norm x), then x + down(silu(gate x) · up x)."""

    def __init__(self, config: ModelConfig, lora: LoRA | None, rngs: nnx.Rngs):
        queries = config.heads * config.head_width
        keys = config.kv_heads * config.head_width
        self.config = config
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.q_proj = Linear(config.width, queries, "q_proj", lora, rngs)
        self.k_proj = Linear(config.width, keys, "k_proj", lora, rngs)
        self.v_proj = Linear(config.width, keys, "v_proj", lora, rngs)
        self.o_proj = Linear(queries, config.width, "o_proj", lora, rngs)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.gate_proj = Linear(config.width, config.mlp_width, "gate_proj", lora, rngs)
        self.up_proj = Linear(config.width, config.mlp_width, "up_proj", lora, rngs)
        self.down_proj = Linear(config.mlp_width, config.width, "down_proj", lora, rngs)

    def __call__(self, x, positions, attend, key):
        """One layer.

        Args:
            x: [B, T, D].
            positions: i32[B, T], counting real tokens.
            attend: (k, v) of this call -> (k, v) to attend to, mask bool[B, T, S] that allows every
                query at least one key, and a store that is handed back: the caller decides what a
                cache is.
            key: dropout key or None.

        Returns:
            [B, T, D] and the store.
        """
        keys = [None] * 7 if key is None else list(jax.random.split(key, 7))
        mixed, store = self._attention(self.attention_norm(x), positions, attend, keys[:4])
        x = x + mixed
        return x + self._mlp(self.mlp_norm(x), keys[4:]), store

    def _attention(self, x, positions, attend, keys):
        """o(softmax(q kᵀ / √H) v), queries in N heads, keys and values in G."""
        theta = self.config.rope_theta
        heads = (*x.shape[:2], -1, self.config.head_width)
        q = rotate(self.q_proj(x, keys[0]).reshape(heads), positions, theta)
        k = rotate(self.k_proj(x, keys[1]).reshape(heads), positions, theta)
        v = self.v_proj(x, keys[2]).reshape(heads)
        k, v, mask, store = attend(k, v)
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        return self.o_proj(mixed.reshape(*x.shape[:2], -1), keys[3]), store

    def _mlp(self, x, keys):
        gate = jax.nn.silu(self.gate_proj(x, keys[0]))
        return self.down_proj(gate * self.up_proj(x, keys[1]), keys[2])
