"""Where the time of a training step goes: Llama-3.2-1B with LoRA at 4 × (512 + 512).

Whole steps with one thing changed, then pieces of the step as programs of their own. Pieces overlap
(a program that is cut loses fusions), so they need not add up to the step.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from alol_jax.models.transformer import Transformer
from alol_jax.objectives.logprobs import response_logp, to_sequences
from alol_jax.training.optim import make_optimizer
from alol_jax.types import Batch, Params, Tokens
from benchmarks.accelerator.measuring import Row, Tell, attempt, compiled, in_a_row, median_of
from benchmarks.accelerator.steps import ONE_B, shrunk, step_row
from benchmarks.accelerator.subjects import CHUNK, OPTIMIZER, random_batch, weights


def run(tell: Tell, tiny: bool) -> None:
    """Pieces first: they are quick to compile."""
    shape = shrunk((4, 512, 512), tiny)
    rows, prompt, response = shape
    model, _ = ONE_B.open(tiny, (prompt, prompt + response))
    trained, frozen = weights(model)
    batch = jax.tree.map(lambda x: x[0], random_batch(model.config, (prompt, response), rows, 1))
    for name, piece in PIECES.items():
        attempt(tell, f"piece: {name}", functools.partial(piece, model, trained, frozen, batch))
    del trained, frozen
    changed = {
        "as it is": ONE_B,
        "blocks not recomputed (remat=none)": dataclasses.replace(ONE_B, remat="none"),
        "no dropout in the adapters": dataclasses.replace(ONE_B, dropout=0.0),
        "attention by plain XLA": dataclasses.replace(ONE_B, attention="xla"),
    }
    for name, subject in changed.items():
        row = functools.partial(step_row, subject, "a_lol", shape, tiny)
        attempt(tell, f"whole step: {name}", row)


def _timed(function, *arguments) -> Row:
    call, compiling = compiled(jax.jit(function), *arguments)
    seconds = median_of(lambda: call(*arguments), most=10, seconds=1.0)
    return {"seconds": seconds, "compile_seconds": compiling}


def _forward(model: Transformer, trained: Params, frozen: Params, batch: Batch) -> Row:
    """Hidden states."""

    def hidden(trained, frozen, tokens, key):
        read = to_sequences(tokens)
        return model.hidden({**frozen, **trained}, read.ids, read.mask, key)

    return _timed(hidden, trained, frozen, batch.tokens, jax.random.key(0))


def _both_ways(model: Transformer, trained: Params, frozen: Params, batch: Batch) -> Row:
    """Forward and backward pass of the blocks, the head left out."""

    def gradient(trained, frozen, tokens, key):
        def total(trained):
            read = to_sequences(tokens)
            hidden = model.hidden({**frozen, **trained}, read.ids, read.mask, key)
            return jnp.sum(hidden.astype(jnp.float32))

        return jax.grad(total)(trained)

    return _timed(gradient, trained, frozen, batch.tokens, jax.random.key(0))


def _head(model: Transformer, trained: Params, frozen: Params, batch: Batch) -> Row:
    """Logits and log-probabilities of the response, and back to the hidden states."""
    tokens: Tokens = batch.tokens
    width = tokens.prompt.shape[1] + tokens.response.shape[1]
    hidden = jnp.ones((tokens.prompt.shape[0], width, model.config.width), model.dtype)

    def gradient(hidden, frozen, tokens):
        def total(hidden):
            kernel = model.unembedding(frozen)
            return jnp.sum(response_logp(hidden, kernel, tokens, chunk=CHUNK))

        return jax.grad(total)(hidden)

    return _timed(gradient, hidden, frozen, tokens)


def _attention(model: Transformer, trained: Params, frozen: Params, batch: Batch) -> Row:
    """Attention of all layers, forward and backward, from one layer's."""
    c, mask = model.config, to_sequences(batch.tokens).mask
    q, k = (
        jax.random.normal(jax.random.key(0), (*mask.shape, n, c.head_width), model.dtype)
        for n in (c.heads, c.kv_heads)
    )

    @jax.jit
    def gradient(q, k, v, mask):
        def total(q, k, v):
            return jnp.sum(model.attention(q, k, v, mask, causal=True).astype(jnp.float32))

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    one = in_a_row(lambda: gradient(q, k, k, mask), seconds=0.3)
    return {"seconds": one * c.layers, "note": f"{c.layers} times one layer's"}


def _optimizer(model: Transformer, trained: Params, frozen: Params, batch: Batch) -> Row:
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
