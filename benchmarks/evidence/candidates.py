"""Which reward? A policy for each sum of candidates, and the rows that each candidate pays.

    python -m benchmarks.evidence.candidates --workdir=runs/evidence/candidates

Each of `SUMS` is the reward of an `a_lol` with the quickstart's settings, one seed. Its answers to
the test prompts are scored with all candidates, so that what a sum does not pay for is seen, too.
The training rows are scored with those that need no gold response: `draw` shows what each of them
pays best and worst.

Cost: docs/evidence.md. Run the same command again to go on.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from alol_jax.main import entry
from alol_jax.runs.command_line import connected
from alol_jax.runs.progress import say
from benchmarks.evidence.running import Asked, asked, refuse, run_stages, train

CONFIG = "configs/quickstart.py:reward=relevance"
OF_ROWS = ("relevance", "novelty", "diversity", "positivity", "safety")
CANDIDATES = (*OF_ROWS, "similarity")
SUMS = (
    ("relevance",),
    ("relevance", "positivity"),
    ("relevance", "safety"),
    ("relevance", "novelty"),
    ("relevance", "diversity"),
    ("relevance", "novelty", "diversity"),
)
ROWS = "rows"  # the folder of the scored training rows


def paying(wanted: Asked, paid: Sequence[str]) -> ConfigDict:
    """The config of an `a_lol` whose reward is the sum of ``paid``."""
    weights = {name: float(name in paid) for name in CANDIDATES}
    config = wanted.config("a_lol", **{f"rewards__{name}": w for name, w in weights.items()})
    config.evaluate.rewards = dict.fromkeys(CANDIDATES, 1.0)
    return config


def main(_):
    refuse(("objectives", "seeds"), "each sum trains one a_lol, with seed 0")
    wanted = asked(CONFIG, ("a_lol",), (0,))
    say("--- what each candidate pays")
    run_stages(wanted, paying(wanted, OF_ROWS), wanted.workdir / ROWS, ("load", "score"))
    for paid in SUMS:
        name = "+".join(paid)
        say(f"--- {name}")
        train(wanted, {"a_lol": paying(wanted, paid)}, wanted.workdir / name, wanted.seeds)
    say(f"done: {wanted.workdir}; python -m benchmarks.evidence.draw collects and draws it")


if __name__ == "__main__":
    entry(connected(main))
