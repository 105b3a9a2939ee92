"""One transformer block as Flax NNX modules, and conversion between modules and flat parameters.

Modules only describe the computation; parameters are passed in. `graphdef` gives the structure of a
module, and `bind` puts arrays into it inside a jit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from alol_jax.models.config import ModelConfig, Rotary
from alol_jax.models.nf4 import NF4, matmul, quantised_shapes
from alol_jax.types import Params


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters: kernel + alpha/rank · A B on the named projections (Hu et al. 2021)."""

    rank: int
    alpha: float
    dropout: float
    modules: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def graphdef(build: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    """Return the structure of the module that ``build`` makes, without allocating its arrays."""
    return nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))[0]


def initialise(build: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Params:
    """Initialise the parameters of the module that ``build`` makes, as a flat dict."""
    state = nnx.split(build(nnx.Rngs(key)))[1]
    return {"/".join(path): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def bind(graph: nnx.GraphDef, params: Params) -> nnx.Module:
    """Return the module of ``graph`` with ``params``, which must have exactly its paths."""
    flat = [(tuple(path.split("/")), leaf) for path, leaf in params.items()]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def subtree(params: Params, prefix: str) -> Params:
    """Return the leaves whose path starts with ``prefix/``, with the prefix removed."""
    start = prefix + "/"
    return {path[len(start) :]: leaf for path, leaf in params.items() if path.startswith(start)}


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Apply inverted dropout; the identity if there is no key or the rate is 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, jnp.float32(1.0 - rate), x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def _row(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape and cast a vector [D] so that it broadcasts against ``x``."""
    return jnp.expand_dims(vector.astype(x.dtype), range(x.ndim - 1))


@jax.custom_vjp
def times_b(low: jax.Array, b: jax.Array) -> jax.Array:
    """Return x B, the second product of an adapter, for x [..., r] and B [r, D].

    Its gradient for B is computed as xᵀ ∂y. JAX computes it as (∂yᵀ x)ᵀ, for which XLA on a CPU
    writes every ∂y transposed: a tenth of the time of a pass of the quickstart.
    """
    return low @ b


def _times_b_forward(low, b):
    return low @ b, (low, b)


def _times_b_backward(saved, dy):
    low, b = saved
    tokens = tuple(range(dy.ndim - 1))
    return dy @ b.T, jnp.tensordot(low, dy, axes=(tokens, tokens))


times_b.defvjp(_times_b_forward, _times_b_backward)


@dataclasses.dataclass(frozen=True)
class Projection:
    """The parts of a linear map besides its kernel."""

    bias: bool = False
    lora: LoRA | None = None
    nf4: NF4 | None = None  # the kernel is stored as NF4 and dequantised at use


class Linear(nnx.Module):
    """x W + b, plus scale · dropout(x) A B if the projection has an adapter.

    A is Kaiming-uniform with a = √5, that is U(±1/√D_in); B is zero. Both are float32. An NF4
    kernel is created as zeros: `Transformer.init` quantises an ordinary one instead.
    """

    def __init__(self, width: int, out: int, parts: Projection, rngs: nnx.Rngs):
        self.lora, self.nf4 = parts.lora, parts.nf4
        if self.nf4 is None:
            self.kernel = nnx.Param(
                nnx.initializers.normal(0.02)(rngs.params(), (width, out), jnp.float32)
            )
        else:
            for name, leaf in quantised_shapes((width, out), self.nf4).items():
                setattr(self, name, nnx.Param(jnp.zeros(leaf.shape, leaf.dtype)))
        self.bias = nnx.Param(jnp.zeros((out,), jnp.float32)) if parts.bias else None
        if self.lora is not None:
            limit = width**-0.5
            shape = (width, self.lora.rank)
            self.lora_a = nnx.Param(
                jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit)
            )
            self.lora_b = nnx.Param(jnp.zeros((self.lora.rank, out), jnp.float32))

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        y = self._product(x)
        if self.bias is not None:
            y = y + _row(self.bias[...], y)
        if self.lora is None:
            return y
        low = dropout(x, self.lora.dropout, key) @ self.lora_a[...].astype(x.dtype)
        return y + self.lora.scale * times_b(low, self.lora_b[...].astype(x.dtype))

    def _product(self, x: jax.Array) -> jax.Array:
        """x W, without bias and adapter."""
        if self.nf4 is None:
            return x @ self.kernel[...].astype(x.dtype)
        state = nnx.to_flat_state(nnx.split(self)[1])
        return matmul(x, {path[0]: leaf[...] for path, leaf in state})


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · scale, the mean in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return normed.astype(x.dtype) * _row(self.scale[...], x)


class LayerNorm(nnx.Module):
    """(x − mean x) / √(var x + ε) · scale + bias, mean and variance in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        centred = x.astype(jnp.float32)
        centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = (centred * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype)
        return normed * _row(self.scale[...], x) + _row(self.bias[...], x)


NORMS: dict[str, type[nnx.Module]] = {"rms": RMSNorm, "layer": LayerNorm}
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def make_norm(config: ModelConfig) -> nnx.Module:
    """Make the norm of the architecture."""
    return NORMS[config.norm](config.width, config.norm_epsilon)


def apply_rotary(x: jax.Array, positions: jax.Array, rotary: Rotary) -> jax.Array:
    """Apply rotary embeddings to the first ``rotary.width`` features of each head.

    Args:
        x: [B, T, N, H].
        positions: i32[B, T].
    """
    rotary_part = x[..., : rotary.width].astype(jnp.float32)
    frequency = jnp.array(rotary.frequencies(), jnp.float32)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(rotary_part, 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., rotary.width :]], axis=-1)


ATTENTION, MLP = "attention projections", "MLP projections"
"""Names of the outputs that a remat policy may keep."""


class Block(nnx.Module):
    """One layer: attention, then an MLP, each with a residual connection.

    Pre-norm: x + attention(norm x), then x + mlp(norm x); with a parallel residual,
    x + attention(norm x) + mlp(norm x). Post-norm: norm(x + attention(x)), then norm(x + mlp(x)).
    """

    def __init__(self, config: ModelConfig, lora: LoRA | None, nf4: NF4 | None, rngs: nnx.Rngs):
        self.config = config
        queries = config.heads * config.head_width
        keys = config.kv_heads * config.head_width
        sizes = {
            "q_proj": (config.width, queries),
            "k_proj": (config.width, keys),
            "v_proj": (config.width, keys),
            "o_proj": (queries, config.width),
            "gate_proj": (config.width, config.mlp_width),
            "up_proj": (config.width, config.mlp_width),
            "down_proj": (config.mlp_width, config.width),
        }
        self.attention_norm, self.mlp_norm = make_norm(config), make_norm(config)
        for name in config.projections:
            adapter = lora if lora is not None and name in lora.modules else None
            parts = Projection(config.biases, adapter, nf4)
            setattr(self, name, Linear(*sizes[name], parts, rngs))

    def __call__(self, x, positions, attend, key):
        """Apply the layer.

        Args:
            x: [B, T, D].
            positions: i32[B, T], counting real tokens.
            attend: (q [B, T, N, H], k and v [B, T, G, H]) -> (outputs [B, T, N, H], cache). The
                caller decides what the cache is; the layer only returns it.
            key: dropout key or None.

        Returns:
            [B, T, D] and the cache.
        """
        keys = [None] * 7 if key is None else list(jax.random.split(key, 7))
        if self.config.post_norm:
            mixed, cache = self._attention(x, positions, attend, keys[:4])
            x = self.attention_norm(x + mixed)
            return self.mlp_norm(x + self._mlp(x, keys[4:])), cache
        mixed, cache = self._attention(self.attention_norm(x), positions, attend, keys[:4])
        if self.config.parallel_residual:
            return x + mixed + self._mlp(self.mlp_norm(x), keys[4:]), cache
        x = x + mixed
        return x + self._mlp(self.mlp_norm(x), keys[4:]), cache

    def _attention(self, x, positions, attend, keys):
        """o(softmax(q kᵀ / √H) v), with N query heads and G key/value heads."""
        heads = (*x.shape[:2], -1, self.config.head_width)
        q = checkpoint_name(self.q_proj(x, keys[0]), ATTENTION).reshape(heads)
        k = checkpoint_name(self.k_proj(x, keys[1]), ATTENTION).reshape(heads)
        v = checkpoint_name(self.v_proj(x, keys[2]), ATTENTION).reshape(heads)
        if self.config.rotary is not None:
            q, k = (apply_rotary(part, positions, self.config.rotary) for part in (q, k))
        mixed, cache = attend(q, k, v)
        return checkpoint_name(
            self.o_proj(mixed.reshape(*x.shape[:2], -1), keys[3]), ATTENTION
        ), cache

    def _mlp(self, x, keys):
        act = ACTIVATIONS[self.config.activation]
        up = checkpoint_name(self.up_proj(x, keys[1]), MLP)
        inner = (
            act(checkpoint_name(self.gate_proj(x, keys[0]), MLP)) * up
            if self.config.gated_mlp
            else act(up)
        )
        return checkpoint_name(self.down_proj(inner, keys[2]), MLP)
