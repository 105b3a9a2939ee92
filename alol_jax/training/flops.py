"""Floating-point operations in closed form: 2 per weight and token, 4 H per attention score.

XLA's own count is not used because it counts the body of a scanned loop once. Only matrix products
are counted; the rest is small. With t tokens in sequences of length T, L layers, W weights in the
blocks' kernels and A in adapters::

    forward   2 t W + 2 t A + 4 t N H L (T + 1)/2 + 2 · (response tokens) · D V
    backward  the same for gradients of activations, and again for gradients of trained weights

A frozen kernel has no weight gradient: about 4 operations per weight and token, not 6. Recomputing
the blocks in the backward pass (remat) costs their forward pass once more.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from alol_jax.models.config import ModelConfig
from alol_jax.types import Branches, Params


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
    params: Params,
    config: ModelConfig,
    *,
    rows: int,
    width: int,
    head_tokens: int,
    branches: Branches | None = None,
) -> Forward:
    """Return the FLOPs of one forward pass over whole sequences.

    Args:
        params: flat parameters, or their shapes.
        rows: number of sequences; width: T, including padding.
        head_tokens: positions whose logits are computed, over all rows.
        branches: the layout of sequences with several responses.
    """
    weights = weights_per_token(params)
    seen = _seen(width, branches) if config.causal else width
    scores = rows * width * seen * config.heads * config.layers
    return Forward(
        attention_kernels=2.0 * rows * width * weights.attention,
        mlp_kernels=2.0 * rows * width * weights.mlp,
        adapters=2.0 * rows * width * weights.adapters,
        attention=4.0 * scores * config.head_width,
        head=2.0 * head_tokens * config.width * config.vocab_size,
    )


def _seen(width: int, branches: Branches | None) -> float:
    """Return the mean number of positions that a causal query attends to."""
    if branches is None:
        return (width + 1) / 2
    p, r = branches
    responses = (width - p) // r
    return (p * (p + 1) / 2 + responses * (r * p + r * (r + 1) / 2)) / width


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

    The key-value cache has prompt + new slots.
    """
    weights = sum(weights_per_token(params))
    read = forward(params, config, rows=rows, width=prompt, head_tokens=0).total
    sequences = rows * beams
    scores = sequences * (prompt + new) * config.heads * config.layers
    logits = 2.0 * sequences * config.width * config.vocab_size
    each = 2.0 * sequences * weights + 4.0 * scores * config.head_width + logits
    return read + new * each


def value_head(width: int, *, rows: int, prompt: int) -> float:
    """Return the FLOPs of the value head: keys and values of every prompt token."""
    return 4.0 * rows * prompt * width * width
