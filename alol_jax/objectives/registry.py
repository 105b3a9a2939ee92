"""The table of objectives: the loss of each, and what the pipeline must know about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from alol_jax.errors import UserError
from alol_jax.objectives.advantage import FILTERS
from alol_jax.objectives.losses import (
    a_lol,
    a_lol_kl,
    a_lol_ref_free,
    a_lol_seq,
    nll,
    r_gold,
    r_lol,
    wbc,
)
from alol_jax.objectives.pairs import dpo, dpo_ref_free, pro
from alol_jax.objectives.ppo import ppo
from alol_jax.objectives.terms import Metrics


class Objective(NamedTuple):
    """A row of `OBJECTIVES`."""

    loss: Callable[..., tuple[jax.Array, Metrics]]
    reads: tuple[str, ...]  # fields of Targets besides ``mask``; these decide which stages run
    responses: int  # responses per prompt (K)
    draw_by: str | None  # the column for priority sampling; None: only uniform sampling
    online: bool = False  # trains on its own samples: other arguments, another stage (`ppo`)
    any_count: bool = False  # K is set by ``config.objective.responses``
    positive: bool = False  # weighs rows by the reward itself, which may not be below 0


OBJECTIVES: dict[str, Objective] = {
    "nll": Objective(nll, (), 1, None),
    "wbc": Objective(wbc, ("reward",), 1, "reward", positive=True),
    "r_gold": Objective(r_gold, ("reward",), 1, "reward", positive=True),
    "r_lol": Objective(r_lol, ("ref_logp", "reward"), 1, "reward", positive=True),
    "a_lol": Objective(a_lol, ("ref_logp", "advantage"), 1, "advantage"),
    "a_lol_ref_free": Objective(a_lol_ref_free, ("advantage",), 1, "advantage"),
    "a_lol_seq": Objective(a_lol_seq, ("ref_logp", "advantage"), 1, "advantage"),
    "a_lol_kl": Objective(a_lol_kl, ("ref_logp", "advantage"), 1, "advantage"),
    "dpo": Objective(dpo, ("ref_logp",), 2, None),
    "dpo_ref_free": Objective(dpo_ref_free, (), 2, None),
    "pro": Objective(pro, ("reward",), 2, None, any_count=True),
    "ppo": Objective(ppo, (), 1, None, online=True),
}


def hyper_parameters(objective: Objective) -> tuple[str, ...]:
    """Return the names of the hyper-parameters: the keyword-only arguments of the loss."""
    parameters = inspect.signature(objective.loss).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def num_responses(objective: Objective, hyper: Mapping[str, Any]) -> int:
    """Return K, the number of responses per prompt; ``hyper`` is ``config.objective``."""
    return hyper["responses"] if objective.any_count else objective.responses


def drops_rows(objective: Objective, name: str) -> bool:
    """Return whether training leaves out the rows with A ≤ 0; ``name`` is a key of `FILTERS`."""
    return FILTERS[name]("advantage" in objective.reads)


def columns_read(objective: Objective, name: str) -> set[str]:
    """Return the columns that training reads: those of the loss, and the advantage if it filters.

    Args:
        name: a key of `FILTERS`, ``config.policy.filter``.
    """
    return {*objective.reads} | ({"advantage"} if drops_rows(objective, name) else set())


def get_objective(name: str) -> Objective:
    """Look up a row of `OBJECTIVES`.

    Raises:
        UserError: the name is unknown.
    """
    if name not in OBJECTIVES:
        said = f"config.objective.name={name!r} is not an objective"
        raise UserError.unknown(said, name, OBJECTIVES)
    return OBJECTIVES[name]
