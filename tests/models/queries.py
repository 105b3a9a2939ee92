"""Random queries, keys and values, the texts they belong to, and what attention makes of them."""

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.kernels import Rule

CAUSAL = Rule(True)


def padded_mask(pads, width):
    places = np.arange(width)
    rows = [(places >= left) & (places < width - right) for left, right in pads]
    return jnp.array(np.stack(rows), jnp.float32)


def heads(rows, width, queries, keys, size, dtype=jnp.float32, seed=0):
    shapes = [(rows, width, n, size) for n in (queries, keys, keys)]
    split = jax.random.split(jax.random.key(seed), 3)
    return [jax.random.normal(k, s, dtype) for k, s in zip(split, shapes, strict=True)]


def mixed_and_gradients(attention, qkv, seen, rule=CAUSAL):
    """The mixture at real tokens (0 elsewhere), and its pull-back to q, k, v."""
    real = (seen.segments > 0)[..., None, None]

    def loss(q, k, v):
        mixed = attention(q, k, v, seen, rule)
        mixed = jnp.where(real, mixed, 0.0)
        ripple = jnp.sin(jnp.arange(mixed.size, dtype=jnp.float32)).reshape(mixed.shape)
        return jnp.sum(mixed * ripple), mixed

    grads, mixed = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return [mixed, *grads]


def examples_side_by_side(rows, width):
    """Segment and branch of rows full of examples of random lengths, with 0 to 3 responses, and a
    little padding at the end."""
    draw = np.random.default_rng(width)
    segments, branch = np.zeros((2, rows, width), np.int32)
    for row in range(rows):
        column = example = 0
        while column < width - 3:
            example += 1
            for part in range(draw.integers(1, 5)):
                end = min(column + draw.integers(1, max(width // 8, 3)), width - 3)
                segments[row, column:end], branch[row, column:end] = example, part
                column = end
    return jnp.array(segments), jnp.array(branch)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def positions_in(segments, branch):
    """The position of each token in its text: a response goes on where the prompt ends."""
    found = np.zeros(segments.shape, np.int32)
    for row, example in {(r, s) for r, s in np.ndindex(segments.shape)}:
        mine = (segments[row] == segments[row, example]) & (np.arange(segments.shape[1]) < example)
        seen = mine & ((branch[row] == 0) | (branch[row] == branch[row, example]))
        found[row, example] = seen.sum()
    return jnp.array(found)
