"""Training objectives: arrays in, a scalar loss and its metrics out.

Start at `registry`, the table of objectives. `losses` has the losses of single responses, `pairs`
those of preference pairs and rankings; both are built from `terms`. `ppo` has PPO. `advantage`
selects and weighs training rows. `logprobs` is the only module that shifts logits against tokens.
Nothing here depends on a model, a file or a config.
"""

from alol_jax.objectives.advantage import SAMPLING, advantages, kept
from alol_jax.objectives.logprobs import sequence_logp
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
from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.types import Targets

__all__ = [
    "OBJECTIVES",
    "SAMPLING",
    "Targets",
    "a_lol",
    "a_lol_kl",
    "a_lol_ref_free",
    "a_lol_seq",
    "advantages",
    "dpo",
    "dpo_ref_free",
    "kept",
    "nll",
    "ppo",
    "pro",
    "r_gold",
    "r_lol",
    "sequence_logp",
    "wbc",
]
