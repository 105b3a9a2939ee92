"""Forward passes of frozen models over rows: log-probabilities, values, and KL divergence."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.devices.sharding import place_rows
from alol_jax.models.heads import ValueHead
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.logprobs import response_kl, response_logp, to_sequences
from alol_jax.runs.progress import progress
from alol_jax.tables.columns import Ragged
from alol_jax.tables.table import Table
from alol_jax.training.batches import collate, pieces_of, single_items
from alol_jax.types import Annotated, Params, Watch


@functools.lru_cache(maxsize=16)
def annotator(model, head: ValueHead | None, chunk: int, logp: bool):
    """Return a jitted (params, value parameters, Tokens) -> (logp f32[B, R], value f32[B]).

    Values are 0 without a head. Without ``logp``, log-probabilities are 0 and only the prompt is
    read.
    """

    @jax.jit
    def annotate_batch(params, value_params, tokens):
        read = to_sequences(tokens)[:2] if logp else (tokens.prompt, tokens.prompt_mask)
        hidden = model.hidden(params, *read)
        token_logp = jnp.zeros(tokens.response.shape, jnp.float32)
        if logp:
            token_logp = response_logp(hidden, model.unembedding(params), tokens, chunk=chunk)
        if head is None:
            return token_logp, jnp.zeros(token_logp.shape[:1], jnp.float32)
        width = tokens.prompt.shape[1]
        return token_logp, head(value_params, hidden[:, :width], tokens.prompt_mask)

    return annotate_batch


def annotate(
    lm: LanguageModel,
    trained: Params,
    rows: Table[Annotated],
    *,
    value: tuple[ValueHead, Params] | None = None,
    logp: bool = True,
    batch_size: int,
    watch: Watch,
) -> tuple[Ragged, np.ndarray]:
    """Compute logp of every response token and V of every prompt in one forward pass.

    The hidden states of the prompt do not depend on the response, because attention is causal, so
    one pass gives both. Rows of one shape are batched together; the last batch of a shape is filled
    with repeats.

    Args:
        trained: leaves on top of ``lm.frozen()``.
        rows: tokenised rows.
        value: the value head and its parameters, or None for values of 0.
        logp: whether to compute log-probabilities; if False, only the prompts are read.

    Returns:
        f32[response length] of each row (empty without ``logp``), and f32[rows].
    """
    head, value_params = value or (None, {})
    step = annotator(lm.transformer, head, lm.logprob_chunk, logp)
    params = {**lm.frozen(), **trained}
    items = single_items(rows, lm.shapes)
    pieces = pieces_of(items, batch_size)
    lengths = rows["response"].lengths if logp else np.zeros(len(rows), np.int64)
    starts, flat = np.cumsum(lengths) - lengths, np.zeros(lengths.sum(), np.float32)
    values = np.zeros(len(rows), np.float32)
    for piece in progress(pieces, watch, total=len(pieces)):
        batch = collate(items, np.resize(piece, batch_size), pad_id=lm.tokenizer.pad_id)
        out = step(params, value_params, place_rows(batch.tokens, lm.mesh))
        batch_logp, value = jax.device_get(out)
        values[piece] = value[: len(piece)]
        for place, row in enumerate(piece if logp else ()):
            flat[starts[row] : starts[row] + lengths[row]] = batch_logp[place, : lengths[row]]
    return Ragged.of(flat, lengths), values


def sums(rows: Ragged) -> np.ndarray:
    """Return the sum of each row, none of which is empty: f32[rows]."""
    return np.array([row.sum() for row in rows])


@functools.lru_cache(maxsize=4)
def _divergence(model, chunk: int):
    """Return a jitted (params, reference params, Tokens) -> f32[B]."""

    @jax.jit
    def divergence(params, other, tokens):
        read = to_sequences(tokens)[:2]
        hidden = (model.hidden(params, *read), model.hidden(other, *read))
        kernels = (model.unembedding(params), model.unembedding(other))
        return response_kl(hidden, kernels, tokens, chunk=chunk)

    return divergence


def divergence(
    lm: LanguageModel,
    trained: Params,
    reference: Params,
    rows: Table[Annotated],
    *,
    batch_size: int,
    watch: Watch,
) -> np.ndarray:
    """Return the KL divergence from policy to reference on each response: f64[rows], in nats.

    See `logprobs.response_kl`.

    Args:
        trained, reference: leaves of each on top of ``lm.frozen()``.
        rows: tokenised rows.
    """
    step = _divergence(lm.transformer, lm.logprob_chunk)
    both = ({**lm.frozen(), **trained}, {**lm.frozen(), **reference})
    items = single_items(rows, lm.shapes)
    pieces = pieces_of(items, batch_size)
    kl = np.zeros(len(rows))
    for piece in progress(pieces, watch, total=len(pieces)):
        batch = collate(items, np.resize(piece, batch_size), pad_id=lm.tokenizer.pad_id)
        batch_kl = np.asarray(step(*both, place_rows(batch.tokens, lm.mesh)))
        kl[piece] = batch_kl[: len(piece)]
    return kl
