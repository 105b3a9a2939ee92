"""The order of methods, their reward–KL frontiers, ablations, and best of n.

    python -m benchmarks.evidence.order --workdir=runs/evidence/order

All policies start from one reference. ``--parts`` chooses among

* order: every objective with every seed;
* frontier: other learning rates (of dpo: other betas), whose looks at the validation prompts, with
  their KL, are points of the frontier;
* ablations: a_lol without clip, without priority sampling, and without filter (which can only be
  drawn uniformly, so its base is a_lol without priority); baselines on the filtered rows;
* best_of_n: the reference's best of 1, 2, 4, 8 and 16 sampled answers;
* value: V fitted to 1, 2 and 4 sampled answers per prompt, and the policy after that.

``--objectives`` are those of order, frontier and ablations. Cost: docs/evidence.md. Run the same
command again to go on.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict

from alol_jax.decoding.answers import Setup
from alol_jax.errors import UserError
from alol_jax.main import entry, prepare
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.command_line import connected
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import finished_stage
from alol_jax.tasks.registry import get_task
from alol_jax.types import Policy, ScoredSplits, Watch
from benchmarks.evidence.best_of_n import best_of_n
from benchmarks.evidence.running import Asked, Variants, annotate, asked, train

CONFIG = "configs/quickstart.py:reward=relevance"
NAMES = ("nll", "wbc", "r_gold", "r_lol", "a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl", "dpo")
COUNTS = (1, 2, 4, 8, 16)  # of answers to choose from
SAMPLES = (1, 2, 4)  # answers per prompt that V is fitted to
SAMPLED = {"generate__temperature": 1.0}
LOOKS = {"policy__validation_kl": True}
BEST_OF_N = "best_of_n.json"
UNIFORM = {"policy__sampling": "uniform"}
ABLATIONS: Variants = {
    "a_lol_no_clip": ("a_lol", {"objective__clip": math.inf}),
    "a_lol_no_priority": ("a_lol", UNIFORM),
    "a_lol_no_filter": ("a_lol", {"policy__filter": "none", **UNIFORM}),
    "nll_filtered": ("nll", {"policy__filter": "kept"}),
    "wbc_filtered": ("wbc", {"policy__filter": "kept"}),
    "r_lol_filtered": ("r_lol", {"policy__filter": "kept"}),
}
RATE = "policy__optimizer__learning_rate"
FRONTIER: Variants = {
    f"{name}_rate_{rate:g}": (name, {RATE: rate})
    for name in ("wbc", "r_lol", "a_lol", "a_lol_seq", "dpo")
    for rate in (3e-4, 3e-3)
} | {f"dpo_beta_{beta:g}": ("dpo", {"objective__beta": beta}) for beta in (0.03, 0.3)}

_PARTS = flags.DEFINE_list("parts", None, "The parts to run; all if not given.")


def order(wanted: Asked) -> None:
    """Every objective with every seed."""
    _sweep(wanted, {name: (name, {}) for name in wanted.objectives})


def frontier(wanted: Asked) -> None:
    """Other learning rates and betas."""
    _sweep(wanted, FRONTIER)


def ablations(wanted: Asked) -> None:
    """a_lol without one of its parts, and baselines on the filtered rows."""
    _sweep(wanted, ABLATIONS)


def _sweep(wanted: Asked, variants: Variants) -> None:
    configs = wanted.variants(variants, **LOOKS)
    if not configs:
        say(f"nothing to vary of {', '.join(wanted.objectives)}")
        return
    annotate(wanted, [_first(wanted), *configs.values()], wanted.workdir)
    for seed in wanted.seeds:
        train(wanted, configs, wanted.workdir, [seed])


def _first(wanted: Asked) -> ConfigDict:
    """The config whose shared stages have what all parts read."""
    return wanted.config("a_lol", **LOOKS)


def choose_of_n(wanted: Asked) -> None:
    """The reference's best of n answers, kept in ``best_of_n.json``.

    Raises:
        UserError: the file was made from another reference.
    """
    annotate(wanted, [_first(wanted)], wanted.workdir)
    shared, file = wanted.workdir / "shared", wanted.workdir / BEST_OF_N
    stage = finished_stage(shared, "fit_reference")
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8"))["reference"] == stage.fingerprint:
            return
        if not wanted.redo:
            raise UserError(f"{file} was made from another reference: delete it, or give --redo")
    config = wanted.config("a_lol", **SAMPLED)
    opened = prepare(config)
    found = best_of_n(
        Setup(opened.lm, get_task(config.task), opened.test_scoring, config.decode, config.seed),
        config.generate,
        COUNTS,
        load_result(finished_stage(shared, "score").folder, ScoredSplits),
        load_result(stage.folder, Policy),
        watch=Watch("best of n", say, wanted.stopping),
    )
    text = json.dumps({"reference": stage.fingerprint, **dataclasses.asdict(found)})
    file.write_text(text, encoding="utf-8")


def value(wanted: Asked) -> None:
    """V fitted to 1, 2 and 4 sampled answers per prompt, on the reference of the other parts."""
    annotate(wanted, [_first(wanted)], wanted.workdir)
    for samples in SAMPLES:
        say(f"--- {samples} answers per prompt")
        folder = wanted.workdir / f"samples_{samples}"
        config = wanted.config("a_lol", generate__samples=samples, **SAMPLED)
        annotate(wanted, [config], folder, reference=wanted.workdir / "shared")
        train(wanted, {"a_lol": config}, folder, wanted.seeds)


PARTS: dict[str, Callable[[Asked], None]] = {
    "order": order,
    "ablations": ablations,
    "best_of_n": choose_of_n,
    "value": value,
    "frontier": frontier,
}
"""Part -> what runs it."""


def main(_):
    wanted = asked(CONFIG, NAMES, range(5))
    parts = _PARTS.value or list(PARTS)
    for part in parts:
        if part not in PARTS:
            raise UserError.unknown(f"--parts: no part {part!r}", part, PARTS)
    for part in parts:
        PARTS[part](wanted)
    say(f"done: {wanted.workdir}; python -m benchmarks.evidence.draw collects and draws it")


if __name__ == "__main__":
    entry(connected(main))
