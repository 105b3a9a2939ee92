"""The value head V(x): attention pooling over the reference model's hidden states of a prompt."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alol_jax.errors import UserError
from alol_jax.models.blocks import bind, dropout, graphdef, initialise
from alol_jax.types import Grid, Params


def slot_mask(grid: Grid) -> jax.Array:
    """Return bool[rows, S, T], True on the tokens of the example in each slot."""
    slots = np.arange(1, grid.prompt.shape[1] + 1)
    return grid.segment[:, None] == slots[None, :, None]


class Affine(nnx.Module):
    """x W + b."""

    def __init__(self, width: int, out: int, init, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init(rngs.params(), (width, out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out,), jnp.float32))

    def __call__(self, x):
        return x @ self.kernel[...] + jnp.expand_dims(self.bias[...], range(x.ndim - 1))


class AttentionPooling(nnx.Module):
    """Attend with one learned query over the positions of each text, and map to one number each."""

    def __init__(self, width: int, heads: int, rate: float, rngs: nnx.Rngs):
        self.heads, self.rate = heads, rate
        self.query = nnx.Param(jax.random.normal(rngs.params(), (width,), jnp.float32))
        xavier = nnx.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        torch_linear = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.q_proj = Affine(width, width, xavier, rngs)
        self.k_proj = Affine(width, width, xavier, rngs)
        self.v_proj = Affine(width, width, xavier, rngs)
        self.o_proj = Affine(width, width, torch_linear, rngs)
        self.summary = Affine(width, 1, nnx.initializers.zeros, rngs)

    def __call__(self, hidden, mask, key):
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        hidden = dropout(hidden, self.rate, keys[0])
        split = (*hidden.shape[:2], self.heads, -1)
        q = self.q_proj(self.query[...][None]).reshape(self.heads, -1)
        k, v = self.k_proj(hidden).reshape(split), self.v_proj(hidden).reshape(split)
        scores = jnp.einsum("nh,bpnh->bnp", q, k) / q.shape[-1] ** 0.5
        never = jnp.finfo(jnp.float32).min  # finite, so that a text without tokens is, too
        scores = jnp.where((mask > 0)[:, :, None], scores[:, None], never)
        mixed = jnp.einsum("bsnp,bpnh->bsnh", jax.nn.softmax(scores, axis=-1), v)
        pooled = dropout(self.o_proj(mixed.reshape(*mask.shape[:2], -1)), self.rate, keys[1])
        return self.summary(pooled)[..., 0]


@dataclasses.dataclass(frozen=True)
class ValueHead:
    """V(x) = min + (max − min) · sigmoid(w · pool(h(x)) + b), with the rewards' bounds min and max.

    pool is 8-head attention with a learned query.

    The architecture of Leftover Lunch (arXiv 2305.14718, Section 3), with padding masked out of the
    attention. Everything is float32, including matrix products, which TPUs would otherwise compute
    in bfloat16 and GPUs in TF32.

    Attributes:
        width: D of the hidden states; divisible by ``heads``.
        max_value, min_value: the largest and the smallest reward.
        heads: number of attention heads of the pooling.
        dropout: rate on the hidden states and the pooled vector, in training only.

    Raises:
        UserError: ``heads`` does not divide ``width``.
    """

    width: int
    max_value: float
    heads: int = 8
    dropout: float = 0.1
    min_value: float = 0.0

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(
                f"config.value.heads = {self.heads} does not divide the model's width {self.width}"
            )

    def _build(self, rngs: nnx.Rngs) -> AttentionPooling:
        return AttentionPooling(self.width, self.heads, self.dropout, rngs)

    @functools.cached_property
    def _graph(self):
        return graphdef(self._build)

    def init(self, key: jax.Array, mean_reward: float) -> Params:
        """Initialise parameters with which V is ``mean_reward`` for every prompt.

        The last layer is zero except for its bias. The others are initialised as in PyTorch: the
        packed input projection Xavier-uniform over [3D, D] (bound √(6/4D)), the output projection
        U(±1/√D), the query N(0, 1).
        """
        share = (mean_reward - self.min_value) / (self.max_value - self.min_value)
        share = jnp.float32(min(max(share, 1e-3), 1 - 1e-3))
        bias = jnp.log(share) - jnp.log1p(-share)
        return initialise(self._build, key) | {"summary/bias": jnp.full((1,), bias)}

    def __call__(
        self, params: Params, hidden: jax.Array, mask: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Return the value of each prompt.

        Args:
            params: from `init` or a checkpoint.
            hidden: [B, P, D] hidden states of the prompt, cast to float32.
            mask: [B, P], 1 on real prompt tokens, at least one per row; or [B, S, P] for S prompts
                in each row.
            key: dropout key; None for no dropout (inference).

        Returns:
            f32[B], or f32[B, S], in (min_value, max_value).
        """
        chex.assert_rank([hidden, mask], [3, {2, 3}])
        if mask.ndim == 2:
            return self(params, hidden, mask[:, None], key)[:, 0]
        chex.assert_shape(mask, (hidden.shape[0], None, hidden.shape[1]))
        with jax.default_matmul_precision("float32"):
            score = bind(self._graph, params)(hidden.astype(jnp.float32), mask, key)
        return self.min_value + (self.max_value - self.min_value) * jax.nn.sigmoid(score)
