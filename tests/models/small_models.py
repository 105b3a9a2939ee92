"""Models of every family so small that compiling is most of their cost, and their weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.models.adapters import is_adapter
from alol_jax.models.blocks import LoRA
from alol_jax.models.config import (
    UNGATED,
    AttentionConfig,
    EmbeddingConfig,
    Local,
    ModelConfig,
)
from alol_jax.models.rotary import Llama3Scaling, Rotary
from alol_jax.models.transformer import Transformer

SMALL = ModelConfig(
    family="llama",
    vocab_size=38,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=12,  # heads · head_width is not the width
    mlp_width=48,
    max_positions=64,
    norm_epsilon=1e-5,
    tied_embeddings=False,
    rotary=Rotary(1e4, 12),
)
_BIASED = dataclasses.replace(
    SMALL, kv_heads=4, norm="layer", activation="gelu", gated_mlp=False, biases=UNGATED
)
GEMMA = dataclasses.replace(
    SMALL,
    norm="rms_plus_one",
    residual="around",
    activation="gelu_tanh",
    tied_embeddings=True,
    embedding=EmbeddingConfig(scaled=True),
)
SMALLS = {
    "llama": SMALL,
    "llama with scaled rotary positions": dataclasses.replace(
        SMALL, rotary=Rotary(1e4, 12, Llama3Scaling(4.0, 1.0, 4.0, 8))
    ),
    "qwen2: biases, every second layer local": dataclasses.replace(
        SMALL,
        family="qwen2",
        biases=("q_proj", "k_proj", "v_proj"),
        attention=AttentionConfig(local=Local(3, (False, True))),
    ),
    "qwen3: norms of heads, a window": dataclasses.replace(
        SMALL, family="qwen3", attention=AttentionConfig("head", Local(6))
    ),
    "gemma2": dataclasses.replace(
        GEMMA,
        family="gemma2",
        attention=AttentionConfig(None, Local(3, (True, False)), 0.25, 2.0),
        logit_cap=3.0,
    ),
    "gemma3": dataclasses.replace(
        GEMMA,
        family="gemma3_text",
        attention=AttentionConfig("head", Local(3, (True, False), Rotary(1e2, 12)), 0.25),
    ),
    "olmo2": dataclasses.replace(
        SMALL, family="olmo2", residual="after", attention=AttentionConfig("all")
    ),
    "gpt_neox": dataclasses.replace(
        _BIASED, family="gpt_neox", rotary=Rotary(1e4, 6), residual="parallel"
    ),
    "gpt2": dataclasses.replace(
        _BIASED, family="gpt2", rotary=None, activation="gelu_tanh", tied_embeddings=True
    ),
    "bert": dataclasses.replace(
        _BIASED,
        family="bert",
        rotary=None,
        residual="post",
        causal=False,
        embedding=EmbeddingConfig(token_types=2),
    ),
    "roberta": dataclasses.replace(
        _BIASED,
        family="roberta",
        rotary=None,
        residual="post",
        causal=False,
        embedding=EmbeddingConfig(position_offset=2, token_types=1),
    ),
}
"""Every choice that a family makes, at the size of SMALL."""

ADAPTERS = LoRA(rank=3, alpha=6.0, dropout=0.0, modules=SMALL.projections)


def small(config=SMALL, lora=None, dtype="float32", remat="none") -> Transformer:
    return Transformer(config, lora, jnp.dtype(dtype), remat)


def random_params(model: Transformer, seed: int = 0) -> dict[str, jax.Array]:
    """Every leaf random, at a scale that keeps activations near one: N(0, 1/inputs) kernels and
    adapters (B too), norms around one."""
    draw = np.random.default_rng(seed)
    params = {}
    for path, leaf in sorted(jax.eval_shape(model.init, jax.random.key(0)).items()):
        if path.endswith("scale"):
            values = draw.uniform(0.5, 1.5, leaf.shape)
        elif path.endswith("bias"):
            values = draw.uniform(-0.5, 0.5, leaf.shape)
        else:
            inputs = model.config.width if path.endswith("embedding") else leaf.shape[-2]
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
