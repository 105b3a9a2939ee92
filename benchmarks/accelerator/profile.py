"""Where the time of a training step goes: Llama-3.2-1B with LoRA at 2 × 2048.

Whole steps with one thing changed, then pieces of the step as programs of their own. Pieces overlap
(a program that is cut loses fusions), so they need not add up to the step.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from alol_jax.models.kernels import Rule, Seen
from alol_jax.models.transformer import Transformer
from alol_jax.objectives.logprobs import grid_logp
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Grid, Params
from benchmarks.accelerator.measuring import Row, Tell, attempt, compiled, in_a_row, median_of
from benchmarks.accelerator.steps import NARROW, ONE_B, step_row
from benchmarks.accelerator.subjects import CHUNK, OPTIMIZER, full_batch, weights


def run(tell: Tell, tiny: bool) -> None:
    """Pieces first: they are quick to compile."""
    load = NARROW.shrunk() if tiny else NARROW
    model, _ = ONE_B.open(tiny, (load.width,))
    trained, frozen = weights(model)
    grid = full_batch(model, load, 1).grids[0]
    for name, piece in PIECES.items():
        attempt(tell, f"piece: {name}", functools.partial(piece, model, trained, frozen, grid))
    del trained, frozen
    changed = {
        "as it is": ONE_B,
        "blocks not recomputed (remat=none)": dataclasses.replace(ONE_B, remat="none"),
        "no dropout in the adapters": dataclasses.replace(ONE_B, dropout=0.0),
        "attention by plain XLA": dataclasses.replace(ONE_B, attention="xla"),
    }
    for name, subject in changed.items():
        row = functools.partial(step_row, subject, "a_lol", load)
        attempt(tell, f"whole step: {name}", row)


def _timed(function, *arguments) -> Row:
    call, compiling = compiled(jax.jit(function), *arguments)
    seconds = median_of(lambda: call(*arguments), most=10, seconds=1.0)
    return {"seconds": seconds, "compile_seconds": compiling}


def _forward(model: Transformer, trained: Params, frozen: Params, grid: Grid) -> Row:
    """Hidden states."""

    def hidden(trained, frozen, grid, key):
        params = {**frozen, **trained}
        return model.hidden(params, grid.ids, grid.segment, key, positions=grid.position)

    return _timed(hidden, trained, frozen, grid, jax.random.key(0))


def _both_ways(model: Transformer, trained: Params, frozen: Params, grid: Grid) -> Row:
    """Forward and backward pass of the blocks, the head left out."""

    def gradient(trained, frozen, grid, key):
        def total(trained):
            params = {**frozen, **trained}
            hidden = model.hidden(params, grid.ids, grid.segment, key, positions=grid.position)
            return jnp.sum(hidden.astype(jnp.float32))

        return jax.grad(total)(trained)

    return _timed(gradient, trained, frozen, grid, jax.random.key(0))


def _head(model: Transformer, trained: Params, frozen: Params, grid: Grid) -> Row:
    """Logits and log-probabilities of the responses, and back to the hidden states."""
    hidden = jnp.ones((*grid.ids.shape, model.config.width), model.dtype)

    def gradient(hidden, frozen, grid):
        def total(hidden):
            return jnp.sum(grid_logp(hidden, model.unembedding(frozen), grid, chunk=CHUNK))

        return jax.grad(total)(hidden)

    return _timed(gradient, hidden, frozen, grid)


def _attention(model: Transformer, trained: Params, frozen: Params, grid: Grid) -> Row:
    """Attention of all layers, forward and backward, from one layer's."""
    c, segments = model.config, grid.segment
    q, k = (
        jax.random.normal(jax.random.key(0), (*segments.shape, n, c.head_width), model.dtype)
        for n in (c.heads, c.kv_heads)
    )

    @jax.jit
    def gradient(q, k, v, segments):
        def total(q, k, v):
            mixed = model.attention(q, k, v, Seen(segments), Rule(causal=True))
            return jnp.sum(mixed.astype(jnp.float32))

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    one = in_a_row(lambda: gradient(q, k, k, segments), seconds=0.3)
    return {"seconds": one * c.layers, "note": f"{c.layers} times one layer's"}


def _optimizer(model: Transformer, trained: Params, frozen: Params, grid: Grid) -> Row:
    """The optimizer on gradients that are there."""
    tx = make_optimizer(OPTIMIZER, steps=1000)

    def update(grads, state, trained):
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state

    return _timed(update, trained, tx.init(trained), trained)


PIECES = {
    "hidden states, forward": _forward,
    "blocks, forward and backward": _both_ways,
    "head, forward and backward": _head,
    "attention of all layers, forward and backward": _attention,
    "optimizer": _optimizer,
}
