"""Forward passes of frozen models over rows: log-probabilities, values, and KL divergence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from alol_jax.devices.out_of_memory import Program, watching_memory
from alol_jax.devices.sharding import fetch, own_part, place_params, place_rows
from alol_jax.models.grid_sizes import Packed
from alol_jax.models.heads import ValueHead, slot_mask
from alol_jax.models.language_model import LanguageModel
from alol_jax.models.savings import PASS, program_of
from alol_jax.objectives.logprobs import grid_kl, grid_lead, grid_logp
from alol_jax.runs.progress import progress
from alol_jax.tables.columns import Ragged
from alol_jax.tables.table import Table
from alol_jax.text.packing import Layout, to_grid
from alol_jax.training.items import tokenise
from alol_jax.types import Annotated, Grid, Params, Scored, Task, Watch


@functools.lru_cache(maxsize=16)
def annotator(model, head: ValueHead | None, chunk: int, logp: bool):
    """Return a jitted (params, value parameters, Grid) -> (logp f32[rows, M], value f32[rows, S]).

    Values are 0 without a head; log-probabilities are 0 without ``logp``.
    """

    @jax.jit
    def annotate_grid(params, value_params, grid):
        hidden = model.hidden(params, grid.ids, grid.segment, positions=grid.position)
        token_logp = jnp.zeros(grid.target.shape, jnp.float32)
        if logp:
            token_logp = grid_logp(hidden, model.unembedding(params), grid, chunk=chunk)
        if head is None:
            return token_logp, jnp.zeros(grid.prompt.shape, jnp.float32)
        in_prompt = grid.position[:, None] < grid.prompt[:, :, None]
        return token_logp, head(value_params, hidden, slot_mask(grid) & in_prompt)

    return annotate_grid


def annotate(
    lm: LanguageModel,
    trained: Params,
    rows: Table[Annotated],
    *,
    value: tuple[ValueHead, Params] | None = None,
    logp: bool = True,
    watch: Watch,
) -> tuple[Ragged, np.ndarray]:
    """Compute logp of every response token and V of every prompt in one forward pass.

    The hidden states of the prompt do not depend on the response, because attention is causal, so
    one pass gives both. Rows are packed side by side into grids.

    Args:
        trained: leaves on top of ``lm.frozen()``.
        rows: tokenised rows.
        value: the value head and its parameters, or None for values of 0.
        logp: whether to compute log-probabilities; if False, only the prompts are read.
        watch: gets a line with the share of real tokens.

    Returns:
        f32[response length] of each row (empty without ``logp``), and f32[rows].
    """
    head, value_params = value or (None, {})
    step = annotator(lm.transformer, head, lm.logprob_chunk, logp)
    params = {**lm.frozen(), **trained}
    prompts, responses = rows["prompt"], rows["response"]
    if not logp:
        responses = Ragged.empty(len(rows), np.int32)
    logps, values = Responses(responses.lengths), np.zeros(len(rows), np.float32)
    packed = lm.pack_table(prompts.lengths, responses.lengths)
    grids = _grids(lm, packed, prompts, responses)
    with watching_memory(_program(lm, packed, watch)):
        for members, grid in progress(grids, watch, total=len(packed.grids)):
            out = step(params, value_params, place_rows(grid, lm.mesh))
            grid_logps, grid_values = fetch(out)
            logps.put(members, grid_logps)
            for row, examples in enumerate(members):
                values[examples] = grid_values[row, : len(examples)]
    if packed.grids:
        watch.say(f"{watch.label}: {packed.real:.0%} of the computed tokens are real")
    return logps.rows, values


def _program(lm: LanguageModel, packed: Packed, watch: Watch) -> Program:
    """Describe the pass for the error of a failed allocation."""
    rows, width = packed.grids[0][0][:2] if packed.grids else (0, 0)
    return program_of(lm, PASS, watch.label, rows, width)


def _grids(
    lm: LanguageModel, packed: Packed, prompts: Ragged, responses: Ragged, *, last: bool = True
) -> Iterator[tuple[list[list[int]], Grid]]:
    """Yield the examples of each row, and the grid, one grid after the other.

    Args:
        last: see `Layout`.
    """
    layout = Layout(length=0, share=True, pad_id=lm.tokenizer.pad_id, last=last)

    def example(n: int) -> tuple[np.ndarray, tuple[np.ndarray]]:
        return prompts[n], (responses[n],)

    for size, members in packed.grids:
        mine = own_part(members, size.rows, lm.mesh)
        yield members, to_grid(mine, example, size, layout)


def token_numbers(
    lm: LanguageModel,
    rows: Table[Annotated],
    run: Callable[[Grid], jax.Array],
    *,
    watch: Watch,
) -> Ragged:
    """Compute one number per response token of a table: f32[response length] of each row.

    Args:
        run: grid -> f32[rows, M].
    """
    prompts, responses = rows["prompt"], rows["response"]
    packed, found = lm.pack_table(prompts.lengths, responses.lengths), Responses(responses.lengths)
    grids = _grids(lm, packed, prompts, responses)
    with watching_memory(_program(lm, packed, watch)):
        for members, grid in progress(grids, watch, total=len(packed.grids)):
            found.put(members, fetch(run(place_rows(grid, lm.mesh))))
    return found.rows


@functools.lru_cache(maxsize=4)
def _scorer(model, chunk: int):
    """Return a jitted (params, Grid) -> (logp f32[rows, M], lead f32[rows, M])."""

    @jax.jit
    def score(params, grid):
        hidden = model.hidden(params, grid.ids, grid.segment, positions=grid.position)
        head = model.unembedding(params)
        return tuple(found(hidden, head, grid, chunk=chunk) for found in (grid_logp, grid_lead))

    return score


def continuations(
    lm: LanguageModel, trained: Params, prompts: Ragged, responses: Ragged, *, watch: Watch
) -> tuple[Ragged, Ragged]:
    """Compute logp of every response token, and how far it is behind the likeliest token.

    Args:
        trained: leaves on top of ``lm.frozen()``.
        prompts, responses: token ids, i32 of N rows each, none empty. The last token of a response
            is not read, so both together may have one token more than the model can read.

    Returns:
        f32[response length] of each row, twice: `logprobs.grid_logp` and `logprobs.grid_lead`.
    """
    step, params = _scorer(lm.transformer, lm.logprob_chunk), {**lm.frozen(), **trained}
    found = Responses(responses.lengths), Responses(responses.lengths)
    packed = lm.pack_table(prompts.lengths - 1, responses.lengths)
    grids = _grids(lm, packed, prompts, responses, last=False)
    with watching_memory(_program(lm, packed, watch)):
        for members, grid in progress(grids, watch, total=len(packed.grids)):
            out = fetch(step(params, place_rows(grid, lm.mesh)))
            for numbers, those in zip(found, out, strict=True):
                numbers.put(members, those)
    return found[0].rows, found[1].rows


class Responses:
    """One number per response token, as grids give them."""

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths, self._starts = lengths, np.cumsum(lengths) - lengths
        self._flat = np.zeros(lengths.sum(), np.float32)

    def put(self, members: list[list[int]], found: np.ndarray) -> None:
        """Take over f32[rows, M] of a grid with these examples in its rows."""
        for row, examples in enumerate(members):
            at = 0
            for example in examples:
                start, length = self._starts[example], self._lengths[example]
                self._flat[start : start + length] = found[row, at : at + length]
                at += length

    @property
    def rows(self) -> Ragged:
        """f32[response length] of each row."""
        return Ragged.of(self._flat, self._lengths)


@functools.lru_cache(maxsize=4)
def _divergence(model, chunk: int):
    """Return a jitted (params, reference params, Grid) -> f32[rows, M]."""

    @jax.jit
    def divergence(params, other, grid):
        read = (grid.ids, grid.segment)
        hidden = tuple(model.hidden(p, *read, positions=grid.position) for p in (params, other))
        heads = (model.unembedding(params), model.unembedding(other))
        return grid_kl(hidden, heads, grid, chunk=chunk)

    return divergence


def divergence(
    lm: LanguageModel,
    trained: Params,
    reference: Params,
    rows: Table[Annotated],
    *,
    watch: Watch,
) -> np.ndarray:
    """Return the KL divergence from policy to reference on each response: f64[rows], in nats.

    The sum of `logprobs.grid_kl` over its tokens, never negative.

    Args:
        trained, reference: leaves of each on top of ``lm.frozen()``.
        rows: tokenised rows.
    """
    step = _divergence(lm.transformer, lm.logprob_chunk)
    both = ({**lm.frozen(), **trained}, {**lm.frozen(), **reference})
    per_token = token_numbers(lm, rows, lambda grid: step(*both, grid), watch=watch)
    return np.maximum(per_token.sums(), 0.0)


def divergence_of_answers(
    lm: LanguageModel,
    task: Task,
    trained: Params,
    reference: Params,
    answers: Table[Scored],
    *,
    watch: Watch,
) -> np.ndarray:
    """Return `divergence` on a policy's answers, tokenised again from their text: f64[rows].

    Args:
        task: how prompts are asked.
        trained, reference: as in `divergence`, on the mesh or not.
        answers: prompts with what the policy answered.
    """
    rows, _ = tokenise(answers, task, lm.tokenizer, lm.limits)
    both = (place_params(leaves, lm.mesh) for leaves in (trained, reference))
    return divergence(lm, *both, rows, watch=watch)
