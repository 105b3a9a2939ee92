"""Gold responses: the best of the data's responses to a prompt, for rewards that compare."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from alol_jax.tables.columns import Ragged
from alol_jax.tables.table import Table
from alol_jax.types import Example, Gold


def gold_of(examples: Table[Example]) -> Table[Gold]:
    """Return the responses to each prompt with the highest stored reward, each text once.

    Examples of one prompt, like the repetitions of a weight above 1, are compared together: one
    row is returned for each prompt, by first occurrence. Unless all responses to a prompt have a
    reward, all are returned.
    """
    responses, rewards = examples["responses"], examples["rewards"]
    prompts = examples["prompt"].codes()
    count = int(prompts.max(initial=-1)) + 1
    owner = np.repeat(prompts, responses.lengths)
    stored = np.zeros(len(owner))
    has = rewards.lengths == responses.lengths
    stored[np.repeat(has, responses.lengths)] = rewards.flat[np.repeat(has, rewards.lengths)]
    stored[np.isin(owner, prompts[~has])] = 0
    most = np.full(count, -np.inf)
    np.maximum.at(most, owner, stored)
    best = np.flatnonzero(stored == most[owner])
    best = best[np.argsort(owner[best], kind="stable")]
    pairs = owner[best] * len(best) + responses.flat.take(best).codes()
    best = best[np.sort(np.unique(pairs, return_index=True)[1])]
    columns = {
        "prompt": examples["prompt"].distinct(),
        "responses": Ragged.of(
            responses.flat.take(best), np.bincount(owner[best], minlength=count)
        ),
    }
    return Table(Gold, columns)


def by_prompt(gold: Iterable[Gold]) -> dict[str, tuple[str, ...]]:
    """Return the gold responses of each prompt, by its text."""
    found: dict[str, tuple[str, ...]] = {}
    for row in gold:
        found[row.prompt] = (*found.get(row.prompt, ()), *row.responses)
    return found
