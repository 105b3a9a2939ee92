"""Sequence classifiers and reward models: a transformer, a pooling, and a float32 head.

The head reads one pooled vector per text. Pooling depends on the mask and never on the id of the
padding token, so that padding changes nothing even if it is the end token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from alol_jax.models.blocks import bind, graphdef, initialise
from alol_jax.models.heads import Affine
from alol_jax.models.transformer import Transformer
from alol_jax.types import Params

CRITIC_WIDTH = 512  # hidden width of the critic's head

_init = nnx.initializers.normal(0.02)


# heads


class Linear(nnx.Module):
    """x W."""

    def __init__(self, width: int, out: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_init(rngs.params(), (width, out)))

    def __call__(self, x):
        return x @ self.kernel[...]


class TwoLayers(nnx.Module):
    """act(x W + b) W' + b'."""

    def __init__(self, width: int, inner: int, out: int, activation: Callable, rngs: nnx.Rngs):
        self.dense = Affine(width, inner, _init, rngs)
        self.out = Affine(inner, out, _init, rngs)
        self.activation = activation

    def __call__(self, x):
        return self.out(self.activation(self.dense(x)))


class LinearHead(nnx.Module):
    """x W, without a bias."""

    def __init__(self, width: int, labels: int, rngs: nnx.Rngs):
        self.score = Linear(width, labels, rngs)

    def __call__(self, x):
        return self.score(x)


class AffineHead(nnx.Module):
    """x W + b."""

    def __init__(self, width: int, labels: int, rngs: nnx.Rngs):
        self.score = Affine(width, labels, _init, rngs)

    def __call__(self, x):
        return self.score(x)


class TanhHead(nnx.Module):
    """tanh(x W + b) W' + b', with hidden width D."""

    def __init__(self, width: int, labels: int, rngs: nnx.Rngs):
        self.score = TwoLayers(width, width, labels, jnp.tanh, rngs)

    def __call__(self, x):
        return self.score(x)


class CriticHead(nnx.Module):
    """gelu(p W + b) W' + b' with p = tanh(x P + c), exact GELU, hidden width 512."""

    def __init__(self, width: int, labels: int, rngs: nnx.Rngs):
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        self.pooler = Affine(width, width, _init, rngs)
        self.score = TwoLayers(width, CRITIC_WIDTH, labels, gelu, rngs)

    def __call__(self, x):
        return self.score(jnp.tanh(self.pooler(x)))


Head = Callable[[int, int, nnx.Rngs], nnx.Module]
"""(D, number of labels, rngs) -> a module that maps [..., D] to [..., labels]."""

HEADS: dict[str, Head] = {
    "linear": LinearHead,
    "affine": AffineHead,
    "tanh": TanhHead,
    "critic": CriticHead,
}


# poolings


def pool_first(hidden: jax.Array, chosen: jax.Array) -> jax.Array:
    """Take the first chosen position: [B, T, D], bool[B, S, T] -> [B, S, D]."""
    return _at(hidden, jnp.argmax(chosen, axis=-1))


def pool_last(hidden: jax.Array, chosen: jax.Array) -> jax.Array:
    """Take the last chosen position: [B, T, D], bool[B, S, T] -> [B, S, D]."""
    return _at(hidden, chosen.shape[-1] - 1 - jnp.argmax(chosen[..., ::-1], axis=-1))


def pool_mean(hidden: jax.Array, chosen: jax.Array) -> jax.Array:
    """Average over the chosen positions: [B, T, D], bool[B, S, T] -> [B, S, D]."""
    with jax.default_matmul_precision("float32"):
        total = jnp.einsum("bst,btd->bsd", chosen.astype(hidden.dtype), hidden)
    return total / jnp.maximum(jnp.sum(chosen, axis=-1, keepdims=True), 1)


def _at(hidden, index):
    return jnp.take_along_axis(hidden, index[..., None], axis=1)


POOLINGS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "first": pool_first,
    "last": pool_last,
    "mean": pool_mean,
}

PROBLEMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "single_label_classification": functools.partial(jax.nn.softmax, axis=-1),
    "multi_label_classification": jax.nn.sigmoid,
    "regression": lambda logits: logits,
}
"""config.json's ``problem_type`` -> the map from logits [..., labels] to scores."""


# the classifier


@dataclasses.dataclass(frozen=True)
class Classifier:
    """head(pool(body(text))): a hashable description without arrays.

    The body runs in its own dtype. Pooling and head run in float32, with full float32 matrix
    products on TPUs and GPUs. There is no dropout.

    Attributes:
        body: the transformer. One flat dict holds its parameters and those of the head, which are
            under ``score/`` and ``pooler/``.
        head: a key of `HEADS`.
        pooling: a key of `POOLINGS`.
        labels: the name of each logit.
        problem: a key of `PROBLEMS`: how logits become scores.
        end: if not None, pool only over real tokens with this id, the ends of utterances.
    """

    body: Transformer
    head: str
    pooling: str
    labels: tuple[str, ...]
    problem: str
    end: int | None = None

    def _build(self, rngs: nnx.Rngs) -> nnx.Module:
        return HEADS[self.head](self.body.config.width, len(self.labels), rngs)

    @functools.cached_property
    def _graph(self):
        return graphdef(self._build)

    @functools.cached_property
    def head_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of the head's parameters, by path."""
        return jax.eval_shape(lambda: initialise(self._build, jax.random.key(0)))

    def init(self, key: jax.Array) -> Params:
        """Initialise float32 parameters: the body's; for the head, N(0, 0.02²) and zero biases."""
        body_key, head_key = jax.random.split(key)
        params = self.body.init(body_key)
        params.pop("head/kernel", None)  # the head of the language model
        return params | initialise(self._build, head_key)

    def __call__(
        self,
        params: Params,
        tokens: jax.Array,
        segments: jax.Array,
        positions: jax.Array | None,
        mask: jax.Array,
        types: jax.Array | None = None,
    ) -> jax.Array:
        """Return the logits of each text.

        Args:
            params: from `init` or a checkpoint.
            tokens: i32[B, T], several texts in a row.
            segments, positions, types: as in `Transformer.hidden`.
            mask: bool[B, S, T], the tokens of each of the S texts of a row.

        Returns:
            f32[B, S, labels]; NaN for texts without a position to pool over (no token, or no end of
            an utterance).
        """
        chosen = mask if self.end is None else mask & (tokens == self.end)[:, None]
        hidden = self.body.hidden(params, tokens, segments, positions=positions, types=types)
        logits = self._apply(params, POOLINGS[self.pooling](hidden.astype(jnp.float32), chosen))
        return jnp.where(jnp.any(chosen, axis=-1, keepdims=True), logits, jnp.nan)

    def scores(self, logits: jax.Array) -> jax.Array:
        """Map logits f32[..., labels] to scores: probabilities, or the logits of a regression."""
        return PROBLEMS[self.problem](logits)

    def _apply(self, params, pooled):
        leaves = {path: params[path].astype(jnp.float32) for path in self.head_shapes}
        with jax.default_matmul_precision("float32"):
            return bind(self._graph, leaves)(pooled)
