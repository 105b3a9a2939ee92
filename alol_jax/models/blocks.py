"""One transformer block as Flax NNX modules, and conversion between modules and flat parameters.

Modules only describe the computation; parameters are passed in. `graphdef` gives the structure of a
module, and `bind` puts arrays into it inside a jit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from alol_jax.models.config import ModelConfig
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


class RMSNormPlusOne(nnx.Module):
    """x / √(mean x² + ε) · (1 + scale), all in float32, as Gemma stores its norms."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (normed * (1.0 + _row(self.scale[...], x32))).astype(x.dtype)


NORMS: dict[str, type[nnx.Module]] = {
    "rms": RMSNorm,
    "rms_plus_one": RMSNormPlusOne,
    "layer": LayerNorm,
}
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def make_norm(config: ModelConfig, width: int | None = None) -> nnx.Module:
    """Make a norm of the architecture, over the model's width unless another is given."""
    return NORMS[config.norm](width or config.width, config.norm_epsilon)


ATTENTION, MLP = "attention projections", "MLP projections"
"""Names of the outputs that a remat policy may keep."""


class Residual(NamedTuple):
    """Where the norms of a layer are.

    Attributes:
        norms: their names; parameters of the block.
        join: (block, x, attention, mlp) -> the output of the layer.
        outer: the one norm outside of the layers: of the embeddings or of the last output.
    """

    norms: tuple[str, ...]
    join: Callable
    outer: str


def _pre(block, x, attention, mlp):
    """Llama: norms before the halves."""
    x = x + attention(block.attention_norm(x))
    return x + mlp(block.mlp_norm(x))


def _parallel(block, x, attention, mlp):
    """GPT-NeoX: both halves read the input."""
    return x + attention(block.attention_norm(x)) + mlp(block.mlp_norm(x))


def _post(block, x, attention, mlp):
    """BERT: norms of the sums."""
    x = block.attention_norm(x + attention(x))
    return block.mlp_norm(x + mlp(x))


def _around(block, x, attention, mlp):
    """Gemma 2 and 3: norms before and after the halves."""
    x = x + block.attention_out_norm(attention(block.attention_norm(x)))
    return x + block.mlp_out_norm(mlp(block.mlp_norm(x)))


def _after(block, x, attention, mlp):
    """OLMo 2: norms after the halves."""
    x = x + block.attention_out_norm(attention(x))
    return x + block.mlp_out_norm(mlp(x))


_BEFORE, _BEHIND = ("attention_norm", "mlp_norm"), ("attention_out_norm", "mlp_out_norm")
RESIDUALS: dict[str, Residual] = {
    "pre": Residual(_BEFORE, _pre, "final_norm"),
    "parallel": Residual(_BEFORE, _parallel, "final_norm"),
    "post": Residual(_BEFORE, _post, "embed_norm"),
    "around": Residual(_BEFORE + _BEHIND, _around, "final_norm"),
    "after": Residual(_BEHIND, _after, "final_norm"),
}


class Block(nnx.Module):
    """One layer: attention, then an MLP, joined to the input as a row of `RESIDUALS` says."""

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
        for name in RESIDUALS[config.residual].norms:
            setattr(self, name, make_norm(config))
        if config.attention.query_key_norm is not None:
            every = config.attention.query_key_norm == "all"
            self.q_norm = make_norm(config, queries if every else config.head_width)
            self.k_norm = make_norm(config, keys if every else config.head_width)
        for name in config.projections:
            adapter = lora if lora is not None and name in lora.modules else None
            parts = Projection(name in config.biases, adapter, nf4)
            setattr(self, name, Linear(*sizes[name], parts, rngs))

    def __call__(self, x, attend, key):
        """Apply the layer.

        Args:
            x: [B, T, D].
            attend: (q [B, T, N, H], k and v [B, T, G, H]) -> (outputs [B, T, N, H], cache). It
                applies rotary positions. The caller decides what the cache is; the layer only
                returns it.
            key: dropout key or None.

        Returns:
            [B, T, D] and the cache.
        """
        keys = [None] * 7 if key is None else list(jax.random.split(key, 7))
        cache = None

        def attention(x):
            nonlocal cache
            mixed, cache = self._attention(x, attend, keys[:4])
            return mixed

        join = RESIDUALS[self.config.residual].join
        return join(self, x, attention, lambda x: self._mlp(x, keys[4:])), cache

    def _attention(self, x, attend, keys):
        """o(softmax(q kᵀ / √H) v), with N query heads and G key/value heads."""
        heads = (*x.shape[:2], -1, self.config.head_width)
        q = checkpoint_name(self.q_proj(x, keys[0]), ATTENTION)
        k = checkpoint_name(self.k_proj(x, keys[1]), ATTENTION)
        v = checkpoint_name(self.v_proj(x, keys[2]), ATTENTION).reshape(heads)
        if self.config.attention.query_key_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.reshape(heads), k.reshape(heads)
        if self.config.attention.query_key_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
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
