"""A Llama so small that compiling is most of its cost, with weights at which every part matters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.adapters import is_adapter
from alol_jax.models.blocks import LoRA
from alol_jax.models.config import ModelConfig
from alol_jax.models.transformer import Transformer

SMALL = ModelConfig(
    vocab_size=38,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=12,  # heads · head_width is not the width
    mlp_width=48,
    max_positions=64,
    norm_epsilon=1e-5,
    rope_theta=1e4,
    tied_embeddings=False,
)
ADAPTERS = LoRA(rank=3, alpha=6.0, dropout=0.0)


def small(config=SMALL, lora=None, dtype="float32", remat=False) -> Transformer:
    return Transformer(config, lora, jnp.dtype(dtype), remat)


def random_params(model: Transformer, seed: int = 0) -> dict[str, jax.Array]:
    """Every leaf random, at a scale that keeps activations near one: N(0, 1/inputs) kernels and
    adapters (B too), norms around one."""
    draw = np.random.default_rng(seed)
    params = {}
    for path, leaf in sorted(jax.eval_shape(model.init, jax.random.key(0)).items()):
        if path.endswith("scale"):
            values = draw.uniform(0.5, 1.5, leaf.shape)
        else:
            inputs = model.config.width if path == "embed/embedding" else leaf.shape[-2]
            values = draw.normal(0.0, inputs**-0.5, leaf.shape)
        params[path] = jnp.asarray(values, jnp.float32)
    return params


def base_of(params):
    """The leaves that are not adapters."""
    return {path: leaf for path, leaf in params.items() if not is_adapter(path)}


@functools.cache
def hidden_of(model: Transformer):
    """(params, tokens, mask, dropout key) -> hidden states, jitted once per model."""
    return jax.jit(model.hidden)


def close(left, right, tolerance=1e-5):
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)
