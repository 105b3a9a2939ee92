"""Measure robustness to noise: reward against the share of training responses that are swapped.

    python -m benchmarks.noise --config=configs/quickstart.py --workdir=runs/noise

Runs a sweep (`alol_jax.sweep`) for each share, with ``config.task.swapped`` at that share. Then
prints the policies' total reward and distinct-2 on the test prompts with 95% intervals, and plots
both (``reward.svg`` and ``distinct-2.svg`` in the workdir). A reward that does not read the prompt
cannot see that an answer belongs to another prompt; distinct-2 is shown for that reason. Run the
same command again to resume.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from alol_jax.main import REDO, WORKDIR, entry
from alol_jax.reports.compare.figures import Series, curves
from alol_jax.runs.artifacts import load_fields
from alol_jax.runs.command_line import stop_on_signals
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import finished_stage
from alol_jax.sweep import config_from, sweep
from alol_jax.types import Evaluation, Interval

SHARES = flags.DEFINE_list("shares", ["0", "0.25", "0.5", "0.75"], "Shares to swap, from 0 to 1.")
NAMES = flags.DEFINE_list("noisy", ["nll", "wbc", "a_lol_ref_free", "a_lol_seq"], "Objectives.")
METRICS = {
    "reward": lambda system: system.reward,
    "distinct-2": lambda system: system.distinct[1],
}
"""Metric -> its interval in a system's scores."""


def systems_of(workdir):
    """Name -> scores, for data, reference and policy."""
    stage = finished_stage(workdir, "evaluate")
    (systems,) = load_fields(stage.folder, Evaluation, ("systems",))
    return {system.name: system for system in systems}


def show(metric: str, found: Mapping[str, Mapping[str, Interval]], folder: Path) -> None:
    """Print a metric, by name and share, as a table, and plot it."""
    shares = list(next(iter(found.values())))
    say(f"{metric:<16}" + "".join(f"{share:>24}" for share in shares))
    for name, by_share in found.items():
        cells = (f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in by_share.values())
        say(f"{name:<16}" + "".join(f"{cell:>24}" for cell in cells))
    x = 100 * np.array([float(share) for share in shares])
    lines = [
        Series(name, ((x, np.array([one.mean for one in by_share.values()])),))
        for name, by_share in found.items()
    ]
    svg = curves(lines, label=metric, over="% of training responses swapped", marks=True)
    (folder / f"{metric}.svg").write_text(svg, encoding="utf-8")
    say(f"plot: {folder / f'{metric}.svg'}")


def main(_):
    logging.set_verbosity(logging.WARNING)
    flag, stopping = flags.FLAGS["config"], stop_on_signals()
    file, overrides = config_flags.get_config_filename(flag), flag.override_values
    found = {metric: {} for metric in METRICS}
    for share in SHARES.value:
        config_of = config_from(file, {**overrides, "task.swapped": float(share)})
        folder = Path(WORKDIR.value) / share
        configs = {name: config_of(name) for name in NAMES.value}
        folders = sweep(configs, folder, [0], redo=REDO.value, stopping=stopping)
        for name, workdir in zip(NAMES.value, folders, strict=True):
            systems = systems_of(workdir)
            for metric, interval in METRICS.items():
                found[metric].setdefault("reference", {})[share] = interval(systems["reference"])
                found[metric].setdefault(name, {})[share] = interval(systems["policy"])
    for metric, by_name in found.items():
        show(metric, by_name, Path(WORKDIR.value))


if __name__ == "__main__":
    entry(main)
