"""Values that cross jit boundaries: NamedTuples of arrays.

Axis letters, used in every docstring, einsum and ``chex.Dimensions`` ::

    B  prompts in a batch      P  prompt tokens                   D  model width     H  head width
    K  responses per prompt    R  response tokens (right-padded)  N  query heads     F  mlp width
    E* = [B, K] or [B]         T  tokens of a row                 G  key/value heads  V  vocabulary
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

Params = dict[str, jax.Array]
"""Parameters: a flat dict from path (``"layers/q_proj/kernel"``) to array. Leaves whose path
starts with ``layers/`` have all layers stacked on their first axis."""


class Grid(NamedTuple):
    """Examples side by side in the rows of a grid, with little padding.

    An example is a prompt with its responses, ``[prompt | response 1 | … | response K]``, in one
    row. A response attends to the prompt and to itself, and nothing attends to another example. A
    row of T tokens has S slots for examples and M places for response tokens. What is real follows
    from lengths, never from ``id == pad``.
    """

    ids: jax.Array  # i32[rows, T]
    segment: jax.Array  # i32[rows, T], the slot of the token's example + 1; 0 on padding
    branch: jax.Array  # i32[rows, T], 0 in the prompt, k in response k = 1 … K
    position: jax.Array  # i32[rows, T], from 0 in each example; every response goes on from P
    prompt: jax.Array  # i32[rows, S], tokens of each prompt; 0 in an empty slot
    before: jax.Array  # i32[rows, M], the column whose state predicts a response token
    target: jax.Array  # i32[rows, M], the response token
    real: jax.Array  # f32[rows, M], 1 where there is one
    place: jax.Array  # i32[rows, M], where it stands in the flattened [E*, R] of its batch


class Unembedding(NamedTuple):
    """The head of a language model: logits are h · kernel, or cap · tanh(h · kernel / cap)."""

    kernel: jax.Array  # [D, V]
    cap: float | None = None


class Prompts(NamedTuple):
    """B prompts to answer, side by side. Rows and prompts are in D groups, one per device."""

    ids: jax.Array  # i32[rows, T]
    segment: jax.Array  # i32[rows, T], as in `Grid`
    position: jax.Array  # i32[rows, T]
    source: jax.Array  # i32[D, B/D, P], index into the rows of the group; −1 before a prompt


class Targets(NamedTuple):
    """What an objective reads besides the policy's ``logp``. Carries no gradient."""

    mask: jax.Array  # f32[E*, R], 1 on response tokens, the end token included
    ref_logp: jax.Array  # f32[E*, R], log π_ref of the same tokens
    reward: jax.Array  # f32[E*]
    advantage: jax.Array  # f32[E*], R − V; above 0 unless the config turns the filter off


class Work(NamedTuple):
    """What is computed for a batch, counted on the host."""

    tokens: int = 0  # real ones
    computed: int = 0  # with padding
    forward: float = 0.0  # FLOPs of a forward pass, in closed form (`flops`), with padding
    flops: float = 0.0  # of an optimizer step

    def metrics(self) -> dict[str, float]:
        """What is logged of it."""
        return {"tokens": self.tokens, "computed_tokens": self.computed, "flops": self.flops}


class Batch(NamedTuple):
    """What one optimizer step trains on: B items, in as many grids as they need."""

    grids: tuple[Grid, ...]
    targets: Any  # of all items: what the loss reads besides what the model computes
    work: Work
