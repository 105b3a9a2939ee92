"""What the training rows of a config say about a step: its grids, and how many tokens are real."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel
from alol_jax.objectives.registry import Objective, num_responses
from alol_jax.stages.load import counter_of, read_splits
from alol_jax.stages.score import rows_of
from alol_jax.tasks.registry import get_task
from alol_jax.text.packing import GridShape, Lengths, grids_of
from alol_jax.training.batches import shuffled
from alol_jax.training.grids import SAMPLE_STEPS, make_packer
from alol_jax.training.items import ranked_items, single_items, tokenise


class Epoch(NamedTuple):
    """One pass over all items: rows, or prompts with K responses."""

    items: int
    tokens: int  # real ones; those of a prompt count once per copy in a row
    real: float  # their share of the tokens that a training step computes
    shape: GridShape  # the grid that a run on these items chooses


def read_lengths(lm: LanguageModel, config: ConfigDict, objective: Objective) -> Lengths:
    """Read and tokenise the training rows of a config; return the lengths of the items.

    Pairs are ranked by reward where the data has rewards, else as they are in the data.

    Raises:
        UserError: the objective trains on answers that a run has yet to write, or the data is bad.
    """
    name = config.objective.name
    if objective.online:
        raise UserError(f"--data: {name} trains on answers, which are not in the data")
    task = get_task(config.task)
    examples = read_splits(task, config.task, counter_of(lm, task, config.task)).train
    rows, _ = tokenise(rows_of(examples), task, lm.tokenizer, lm.limits)
    count, ranking = num_responses(objective, config.objective), "data"
    if (examples["rewards"].lengths == examples["responses"].lengths).all():
        rows, ranking = rows.replace(reward=examples["rewards"].flat), config.policy.ranking
    items = single_items(rows)
    if count > 1:
        items = ranked_items(rows, rows["response_text"], count, ranking, name).items
    return items.lengths(share=lm.transformer.attention.branches)


def epoch_of(lm: LanguageModel, config: ConfigDict, lengths: Lengths, room: float) -> Epoch:
    """Lay out some steps on items of these lengths as a run does, if it keeps them all.

    Args:
        room: bytes of memory on each chip.
    """
    every = np.ones(len(lengths.tokens), bool)
    order = shuffled(every, size=config.policy.batch_size, seed=config.seed)
    draws = [order(step) for step in range(SAMPLE_STEPS)]
    longest, length = lengths.longest, lm.limits.response
    packer = make_packer(lm, lengths, draws, longest=longest, length=length, room=room)
    steps = [lengths.take(draw) for draw in draws]
    computed = sum(size.tokens for step in steps for size, _ in grids_of(step, packer.shape))
    real = sum(int(step.tokens.sum()) for step in steps) / computed
    return Epoch(len(every), int(lengths.tokens.sum()), real, packer.shape)
