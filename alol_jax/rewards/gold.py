"""Gold responses: the best of the data's responses to a prompt, for rewards that compare."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from alol_jax.tables.columns import Ragged
from alol_jax.tables.table import Table
from alol_jax.types import Example, Gold


def gold_of(examples: Table[Example]) -> Table[Gold]:
    """Return the responses to each prompt with the highest stored reward.

    Without one reward for each response, all are returned.
    """
    responses, rewards = examples["responses"], examples["rewards"]
    owner = np.repeat(np.arange(len(examples)), responses.lengths)
    stored = np.zeros(len(owner))
    has = rewards.lengths == responses.lengths
    stored[np.repeat(has, responses.lengths)] = rewards.flat[np.repeat(has, rewards.lengths)]
    most = np.full(len(examples), -np.inf)
    np.maximum.at(most, owner, stored)
    best = np.flatnonzero(stored == most[owner])
    counts = np.bincount(owner[best], minlength=len(examples))
    columns = {
        "prompt": examples["prompt"],
        "responses": Ragged.of(responses.flat.take(best), counts),
    }
    return Table(Gold, columns)


def by_prompt(gold: Iterable[Gold]) -> dict[str, tuple[str, ...]]:
    """Return the gold responses of each prompt, by its text."""
    found: dict[str, tuple[str, ...]] = {}
    for row in gold:
        found[row.prompt] = (*found.get(row.prompt, ()), *row.responses)
    return found
