"""What noise in the data does: reward against the share of training responses given to others.

    python -m benchmarks.noise --config=configs/quickstart.py --workdir=runs/noise

For each share a sweep (`alol_jax.sweep`) with ``config.task.swapped`` at that share; then a table
of the policies' total reward on the test prompts with 95 % intervals, and the same as a plot
(``noise.svg`` in the workdir). Run the same command again to go on.
"""

from pathlib import Path

import numpy as np
from absl import flags, logging
from ml_collections import config_flags

from alol_jax.artifacts import load_fields
from alol_jax.command_line import stop_when_asked
from alol_jax.comparison_figures import Series, curves
from alol_jax.main import REDO, WORKDIR, entry
from alol_jax.progress import say
from alol_jax.sweep import config_from, sweep
from alol_jax.types import Evaluation
from alol_jax.workdir import finished_stage

SHARES = flags.DEFINE_list("shares", ["0", "0.25", "0.5", "0.75"], "Of training responses.")
NAMES = flags.DEFINE_list("noisy", ["nll", "wbc", "a_lol_ref_free", "a_lol_seq"], "Objectives.")


def systems_of(workdir):
    """Name -> the total reward of data, reference and policy, as an interval."""
    stage = finished_stage(workdir, "evaluate")
    (systems,) = load_fields(stage.folder, Evaluation, ("systems",))
    return {system.name: system.reward for system in systems}


def main(_):
    logging.set_verbosity(logging.WARNING)
    holder, stopping = flags.FLAGS["config"], stop_when_asked()
    file, changed = config_flags.get_config_filename(holder), holder.override_values
    rewards = {}
    for share in SHARES.value:
        config_of = config_from(file, {**changed, "task.swapped": float(share)})
        folder = Path(WORKDIR.value) / share
        folders = sweep(config_of, folder, NAMES.value, [0], redo=REDO.value, stopping=stopping)
        for name, workdir in zip(NAMES.value, folders, strict=True):
            found = systems_of(workdir)
            rewards.setdefault("reference", {})[share] = found["reference"]
            rewards.setdefault(name, {})[share] = found["policy"]
    say(f"{'swapped':<16}" + "".join(f"{share:>24}" for share in SHARES.value))
    for name, by_share in rewards.items():
        cells = (f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in by_share.values())
        say(f"{name:<16}" + "".join(f"{cell:>24}" for cell in cells))
    shares = 100 * np.array([float(share) for share in SHARES.value])
    lines = [
        Series(name, ((shares, np.array([one.mean for one in by_share.values()])),))
        for name, by_share in rewards.items()
    ]
    svg = curves(lines, label="total reward", over="% of training responses swapped", marks=True)
    (Path(WORKDIR.value) / "noise.svg").write_text(svg, encoding="utf-8")
    say(f"plot: {Path(WORKDIR.value) / 'noise.svg'}")


if __name__ == "__main__":
    entry(main)
