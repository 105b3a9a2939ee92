"""What noise in the data does: reward against the share of training responses given to others.

    python -m benchmarks.noise --config=configs/quickstart.py --workdir=runs/noise

For each share a sweep (`alol_jax.sweep`) with ``config.task.swapped`` at that share; then tables of
the policies' total reward and distinct-2 on the test prompts with 95 % intervals, and both as plots
(``reward.svg`` and ``distinct-2.svg`` in the workdir). A reward that does not read the prompt pays
as much for an answer to another one: distinct-2 shows what it does not see. Run the same command
again to go on.
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

SHARES = flags.DEFINE_list("shares", ["0", "0.25", "0.5", "0.75"], "Of training responses.")
NAMES = flags.DEFINE_list("noisy", ["nll", "wbc", "a_lol_ref_free", "a_lol_seq"], "Objectives.")
SHOWN = {
    "reward": lambda system: system.reward,
    "distinct-2": lambda system: system.distinct[1],
}
"""What is shown -> the interval of a system's scores."""


def systems_of(workdir):
    """Name -> the scores of data, reference and policy."""
    stage = finished_stage(workdir, "evaluate")
    (systems,) = load_fields(stage.folder, Evaluation, ("systems",))
    return {system.name: system for system in systems}


def show(what: str, found: Mapping[str, Mapping[str, Interval]], folder: Path) -> None:
    """A table of name -> share -> figure on the terminal, and the plot of it."""
    shares = list(next(iter(found.values())))
    say(f"{what:<16}" + "".join(f"{share:>24}" for share in shares))
    for name, by_share in found.items():
        cells = (f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in by_share.values())
        say(f"{name:<16}" + "".join(f"{cell:>24}" for cell in cells))
    x = 100 * np.array([float(share) for share in shares])
    lines = [
        Series(name, ((x, np.array([one.mean for one in by_share.values()])),))
        for name, by_share in found.items()
    ]
    svg = curves(lines, label=what, over="% of training responses swapped", marks=True)
    (folder / f"{what}.svg").write_text(svg, encoding="utf-8")
    say(f"plot: {folder / f'{what}.svg'}")


def main(_):
    logging.set_verbosity(logging.WARNING)
    holder, stopping = flags.FLAGS["config"], stop_on_signals()
    file, changed = config_flags.get_config_filename(holder), holder.override_values
    found = {what: {} for what in SHOWN}
    for share in SHARES.value:
        config_of = config_from(file, {**changed, "task.swapped": float(share)})
        folder = Path(WORKDIR.value) / share
        folders = sweep(config_of, folder, NAMES.value, [0], redo=REDO.value, stopping=stopping)
        for name, workdir in zip(NAMES.value, folders, strict=True):
            systems = systems_of(workdir)
            for what, of in SHOWN.items():
                found[what].setdefault("reference", {})[share] = of(systems["reference"])
                found[what].setdefault(name, {})[share] = of(systems["policy"])
    for what, by_name in found.items():
        show(what, by_name, Path(WORKDIR.value))


if __name__ == "__main__":
    entry(main)
