"""Floating-point operations in closed form: 2 per weight and token, 4 H per attention score.

XLA's own count is not used because it counts the body of a scanned loop once. Only matrix products
are counted; the rest is small. With t tokens, L layers, W weights in the blocks' kernels, A in
adapters, and S pairs of a query and a key that it attends to, in all layers together::

    forward   2 t W + 2 t A + 4 S N H + 2 · (response tokens) · D V
    backward  the same for gradients of activations, and again for gradients of trained weights

A frozen kernel has no weight gradient: about 4 operations per weight and token, not 6. Recomputing
the blocks in the backward pass (remat) costs their forward pass once more.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from alol_jax.models.config import ModelConfig
from alol_jax.types import Params


class Forward(NamedTuple):
    """FLOPs of one forward pass, split by how the backward pass treats each part."""

    attention_kernels: float  # of the projections around attention
    mlp_kernels: float
    adapters: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def kernels(self) -> float:
        return self.attention_kernels + self.mlp_kernels


class Weights(NamedTuple):
    """The weights that multiply one token in the blocks."""

    attention: float
    mlp: float
    adapters: float


def weights_per_token(params: Params) -> Weights:
    """Count the weights that multiply one token in the blocks."""
    counts = {"attention": 0.0, "mlp": 0.0, "adapters": 0.0}
    for path, leaf in params.items():
        name = path.rsplit("/", 1)[-1]
        if path.startswith("layers/") and name in ("kernel", "nf4_codes"):
            part = "mlp" if re.search("/(gate|up|down)_proj/", path) else "attention"
            counts[part] += leaf.size * (2 if name == "nf4_codes" else 1)
        elif name in ("lora_a", "lora_b"):
            counts["adapters"] += leaf.size
    return Weights(**counts)


def forward(
    params: Params, config: ModelConfig, *, tokens: float, pairs: float, head_tokens: float
) -> Forward:
    """Return the FLOPs of one forward pass.

    Args:
        params: flat parameters, or their shapes.
        tokens: t, including padding.
        pairs: Σ over layers and tokens of the keys that each attends to (`pairs_of`).
        head_tokens: tokens whose logits are computed.
    """
    weights = weights_per_token(params)
    return Forward(
        attention_kernels=2.0 * tokens * weights.attention,
        mlp_kernels=2.0 * tokens * weights.mlp,
        adapters=2.0 * tokens * weights.adapters,
        attention=4.0 * pairs * config.heads * config.head_width,
        head=2.0 * head_tokens * config.width * config.vocab_size,
    )


def pairs_of(config: ModelConfig, prompt: Any, responses: Any = 0, *, share: bool = True) -> Any:
    """Return the pairs (query, key) of causal attention in one example, in all layers together.

    Args:
        config: its local layers see no further than their window.
        prompt: P, a number or i64[N].
        responses: R_1 … R_K, a number or i64[…, K].
        share: whether the responses share one copy of the prompt.
    """
    prompt, responses = np.asarray(prompt, float), np.atleast_1d(np.asarray(responses, float))
    copies = 1 if share else responses.shape[-1]

    def in_a_layer(window: float) -> Any:
        before = _pairs_up_to(prompt, window)
        each = _pairs_up_to(prompt[..., None] + responses, window) - before[..., None]
        return copies * before + each.sum(axis=-1)

    local, whole = config.attention.local, in_a_layer(np.inf)
    if local is None:
        return config.layers * whole
    near = int(config.local_layers.sum())
    return near * in_a_layer(local.window) + (config.layers - near) * whole


def _pairs_up_to(length: Any, window: float) -> Any:
    """Return Σ min(t, window) over the tokens t = 1 … length of a text."""
    inside = np.minimum(length, window)
    return inside * (inside + 1) / 2 + (length - inside) * inside


def step(one: Forward, *, all_train: bool, remat: str, head_again: bool) -> float:
    """Return the FLOPs of a forward and backward pass.

    Args:
        one: the forward pass.
        all_train: whether every weight is trained, not only the adapters.
        remat: a key of `transformer.REMAT`: what of the blocks the backward pass computes again.
        head_again: whether it computes the logits again.
    """
    trained = int(all_train)
    again = {
        "none": 0.0,
        "projections": one.adapters + one.attention,
        "attention": one.mlp_kernels + one.adapters + one.attention,
        "full": one.kernels + one.adapters + one.attention,
    }
    return (
        one.kernels * (2 + trained)
        + (one.adapters + one.attention) * 3
        + again[remat]
        + one.head * (2 + trained + int(head_again))
    )


def decoding(
    params: Params, config: ModelConfig, *, rows: int, beams: int, prompt: int, new: int
) -> float:
    """Return the FLOPs of decoding: prefill, then ``new`` tokens per beam.

    The key-value cache has prompt + new slots in every layer, and each is read for every token: a
    window masks what lies outside of it.
    """
    weights, pairs = sum(weights_per_token(params)), rows * float(pairs_of(config, prompt))
    read = forward(params, config, tokens=rows * prompt, pairs=pairs, head_tokens=0).total
    sequences = rows * beams
    scores = sequences * (prompt + new) * config.heads * config.layers
    logits = 2.0 * sequences * config.width * config.vocab_size
    each = 2.0 * sequences * weights + 4.0 * scores * config.head_width + logits
    return read + new * each


def value_head(width: int, *, rows: int, prompt: int) -> float:
    """Return the FLOPs of the value head: keys and values of every prompt token."""
    return 4.0 * rows * prompt * width * width
