"""The table of objectives: each one's loss, and what the pipeline must know about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

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
from alol_jax.types import UserError


class Objective(NamedTuple):
    """A row of ``OBJECTIVES``: the loss and what the pipeline must know about it."""

    loss: Callable[..., tuple[jax.Array, Metrics]]
    reads: tuple[str, ...]  # fields of Targets besides ``mask``; decides which stages run
    responses: int  # responses per prompt (K)
    draw_by: str | None  # the column that priority sampling draws by; None = uniform only
    online: bool = False  # it writes its own responses: other arguments, another stage (`ppo`)
    more: bool = False  # K may be larger: ``config.objective.responses``


OBJECTIVES: dict[str, Objective] = {
    "nll": Objective(nll, (), 1, None),
    "wbc": Objective(wbc, ("reward",), 1, "reward"),
    "r_gold": Objective(r_gold, ("reward",), 1, "reward"),
    "r_lol": Objective(r_lol, ("ref_logp", "reward"), 1, "reward"),
    "a_lol": Objective(a_lol, ("ref_logp", "advantage"), 1, "advantage"),
    "a_lol_ref_free": Objective(a_lol_ref_free, ("advantage",), 1, "advantage"),
    "a_lol_seq": Objective(a_lol_seq, ("ref_logp", "advantage"), 1, "advantage"),
    "a_lol_kl": Objective(a_lol_kl, ("ref_logp", "advantage"), 1, "advantage"),
    "dpo": Objective(dpo, ("ref_logp",), 2, None),
    "dpo_ref_free": Objective(dpo_ref_free, (), 2, None),
    "pro": Objective(pro, ("reward",), 2, None, more=True),
    "ppo": Objective(ppo, (), 1, None, online=True),
}


def hyper_parameters(objective: Objective) -> tuple[str, ...]:
    """The keyword-only arguments of an objective's loss."""
    parameters = inspect.signature(objective.loss).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def responses_of(objective: Objective, hyper: Mapping[str, Any]) -> int:
    """K, the responses of a prompt side by side; ``hyper`` is ``config.objective``."""
    return hyper["responses"] if objective.more else objective.responses


def get_objective(name: str) -> Objective:
    """The row of `OBJECTIVES`; an unknown name is a UserError."""
    if name not in OBJECTIVES:
        said = f"config.objective.name={name!r} is no objective"
        raise UserError.unknown(said, name, OBJECTIVES)
    return OBJECTIVES[name]
