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

from typing import NamedTuple

from alol_jax.models.config import ModelConfig
from alol_jax.types import Branches, Params


class Forward(NamedTuple):
    """FLOPs of one forward pass, split by how the backward pass treats each part."""

    kernels: float
    adapters: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return sum(self)


def weights_per_token(params: Params) -> tuple[float, float]:
    """Count the weights that multiply one token in the blocks: (kernels, adapters)."""
    kernels = adapters = 0
    for path, leaf in params.items():
        name = path.rsplit("/", 1)[-1]
        if path.startswith("layers/") and name in ("kernel", "nf4_codes"):
            kernels += leaf.size * (2 if name == "nf4_codes" else 1)
        elif name in ("lora_a", "lora_b"):
            adapters += leaf.size
    return kernels, adapters


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
    kernels, adapters = weights_per_token(params)
    seen = _seen(width, branches) if config.causal else width
    scores = rows * width * seen * config.heads * config.layers
    return Forward(
        kernels=2.0 * rows * width * kernels,
        adapters=2.0 * rows * width * adapters,
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


def step(one: Forward, *, all_train: bool, remat: bool, head_again: bool) -> float:
    """Return the FLOPs of a forward and backward pass.

    Args:
        one: the forward pass.
        all_train: whether every weight is trained, not only the adapters.
        remat: whether the blocks are recomputed in the backward pass.
        head_again: whether the logits are.
    """
    trained, again = int(all_train), int(remat)
    return (
        one.kernels * (2 + trained + again)
        + (one.adapters + one.attention) * (3 + again)
        + one.head * (2 + trained + int(head_again))
    )


def decoding(
    params: Params, config: ModelConfig, *, rows: int, beams: int, prompt: int, new: int
) -> float:
    """Return the FLOPs of decoding: prefill, then ``new`` tokens per beam.

    The key-value cache has prompt + new slots.
    """
    kernels, adapters = weights_per_token(params)
    read = forward(params, config, rows=rows, width=prompt, head_tokens=0).total
    sequences = rows * beams
    scores = sequences * (prompt + new) * config.heads * config.layers
    logits = 2.0 * sequences * config.width * config.vocab_size
    each = 2.0 * sequences * (kernels + adapters) + 4.0 * scores * config.head_width + logits
    return read + new * each


def value_head(width: int, *, rows: int, prompt: int) -> float:
    """Return the FLOPs of the value head: keys and values of every prompt token."""
    return 4.0 * rows * prompt * width * width
