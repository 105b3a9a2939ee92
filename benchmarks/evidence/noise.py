"""Robustness to noise: a share of the training responses is moved to other prompts.

    python -m benchmarks.evidence.noise --workdir=runs/evidence/noise

The reward must read the prompt, or it cannot see the noise. For each share and seed everything is
computed anew: reference, V and policies. First, rows are annotated for every share and seed, which
trains no policy: the share of moved rows that the filter keeps, against that of the others, is the
direct measure (``--policies=False`` stops there). Then every objective is trained.

Cost: docs/evidence.md. Run the same command again to go on.
"""

from __future__ import annotations

from absl import flags
from ml_collections import ConfigDict

from alol_jax.main import entry
from alol_jax.runs.command_line import connected
from alol_jax.runs.progress import say
from benchmarks.evidence.running import Asked, annotate, asked, train

CONFIG = "configs/quickstart.py:reward=relevance"
NAMES = ("nll", "wbc", "r_lol", "a_lol", "a_lol_seq", "a_lol_ref_free")

SHARES = flags.DEFINE_list("shares", ["0", "0.25", "0.5", "0.75"], "Shares to move, from 0 to 1.")
POLICIES = flags.DEFINE_bool("policies", True, "Train policies, or only annotate the rows.")


def configs_of(wanted: Asked, share: str, seed: int) -> dict[str, ConfigDict]:
    """Objective -> config, with this share of noise."""
    changes = {"task__swapped": float(share), "seed": seed}
    return {name: wanted.config(name, **changes) for name in wanted.objectives}


def main(_):
    wanted = asked(CONFIG, NAMES, range(3))
    places = [(seed, share) for seed in wanted.seeds for share in SHARES.value]
    for seed, share in places:
        say(f"--- {share} moved, seed {seed}")
        folder = wanted.workdir / f"{share}-{seed}"
        annotate(wanted, configs_of(wanted, share, seed).values(), folder)
    for seed, share in places if POLICIES.value else ():
        say(f"--- {share} moved, seed {seed}")
        train(wanted, configs_of(wanted, share, seed), wanted.workdir / f"{share}-{seed}", [0])
    say(f"done: {wanted.workdir}; python -m benchmarks.evidence.draw collects and draws it")


if __name__ == "__main__":
    entry(connected(main))
