"""Floating-point operations in closed form: 2 for every weight and token, 4 for every score.

XLA's own count sees the body of a scanned loop once. Only products of matrices are counted; the
rest is small. With t tokens in sequences of T, W weights in the blocks' kernels, A in adapters::

    forward   2 t W + 2 t A + 4 t N H L (T + 1)/2 + 2 · (response tokens) · D V
    backward  the same for what passes gradients on, and once more for what is trained

A frozen kernel passes gradients on and gets none: about 4 per weight and token, not 6. Recomputing
the blocks in the backward pass (remat) costs their forward pass again.
"""

from __future__ import annotations

from typing import NamedTuple

from alol_jax.models.config import ModelConfig
from alol_jax.types import Branches, Params


class Forward(NamedTuple):
    """Operations of one forward pass, by what the backward pass does with them."""

    kernels: float
    adapters: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        return sum(self)


def weights_per_token(params: Params) -> tuple[float, float]:
    """Weights that one token is multiplied with in the blocks: kernels, and adapters."""
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
    """One pass over sequences that are read as a whole.

    Args:
        params: flat parameters, or their shapes.
        rows: sequences; width: T, padding included.
        head_tokens: positions whose logits are computed, over all rows.
        branches: of sequences with several responses.
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
    """Mean number of positions that a causal query sees."""
    if branches is None:
        return (width + 1) / 2
    p, r = branches
    responses = (width - p) // r
    return (p * (p + 1) / 2 + responses * (r * p + r * (r + 1) / 2)) / width


def step(one: Forward, *, all_train: bool, remat: bool, head_again: bool) -> float:
    """Forward and backward pass.

    Args:
        one: the forward pass.
        all_train: every weight is trained (else the adapters alone).
        remat: the blocks are recomputed.
        head_again: the logits are recomputed.
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
    """Reading the prompts once, then ``new`` tokens one by one, in every beam, over a cache of
    prompt + new slots."""
    kernels, adapters = weights_per_token(params)
    read = forward(params, config, rows=rows, width=prompt, head_tokens=0).total
    written = rows * beams
    scores = written * (prompt + new) * config.heads * config.layers
    logits = 2.0 * written * config.width * config.vocab_size
    each = 2.0 * written * (kernels + adapters) + 4.0 * scores * config.head_width + logits
    return read + new * each


def value_head(width: int, *, rows: int, prompt: int) -> float:
    """The value head's keys and values of every prompt token."""
    return 4.0 * rows * prompt * width * width
