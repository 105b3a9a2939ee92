"""Kill a run at random moments until it ends, and compare its results with an undisturbed run's.

    python -m benchmarks.preemption --kills=25 --seed=0
    python -m benchmarks.preemption --kills=25 -- --config.objective.name=ppo

Runs a small config twice undisturbed: the first run compiles, the second tells how long each stage
takes and has to give the same results. Then it starts the same command in another workdir, kills it
(kill -9 and SIGTERM in turn) and starts it again, until every kill is spent and the run ends. The
moments are drawn over the time of the undisturbed run, at least one in each stage if there are
enough. ``certificate.json`` in ``--workdir`` says what was killed where, how long the process took
to leave after SIGTERM, and which results are equal. The exit code is 0 if all are, and if every
SIGTERM was answered within 10 s. What follows ``--`` goes to the run.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks.preemption.disturb import (
    UNDISTURBED,
    Job,
    Process,
    certificate,
    circumstances,
    disturb,
    draw_moments,
)
from benchmarks.run_results import digests

CONFIG = flags.DEFINE_string("config", "configs/quickstart.py:debug", "The config of the run.")
WORKDIR = flags.DEFINE_string("workdir", "runs/preemption", "Made anew; gets the certificate.")
KILLS = flags.DEFINE_integer("kills", 25, "How often to kill.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", "", "Folder of compiled programs; '' = in the workdir."
)


def main(arguments: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # this process; the accelerator is for the runs
    logging.set_verbosity(logging.WARNING)
    folder = Path(WORKDIR.value).absolute()
    cache = Path(COMPILE_CACHE.value).absolute() if COMPILE_CACHE.value else folder / "compiled"
    job = Job(folder, CONFIG.value, cache, tuple(arguments[1:]))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name in UNDISTURBED:
        process = Process(job.command(name))
        process.finish()
    print(f"undisturbed: {process.stages[-1][1]:.1f} s", flush=True)
    moments = draw_moments(process.stages, KILLS.value, np.random.default_rng(SEED.value))
    done = disturb(job, moments)
    both = (digests(folder / name) for name in UNDISTURBED)
    written = circumstances(job, process, SEED.value) | certificate(*both, done)
    place = folder / "certificate.json"
    place.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    short = {key: value for key, value in written.items() if not key.startswith("each")}
    print(json.dumps(short, indent=1, ensure_ascii=False))
    print(place)
    sys.exit(0 if written["passed"] else 1)


if __name__ == "__main__":
    app.run(main)
