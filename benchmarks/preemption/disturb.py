"""Kills a run at random moments, and compares its results with an undisturbed run's."""

import collections
import importlib.metadata
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.run_results import LEFT_OUT, digests

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
LONGEST = 10.0  # seconds from SIGTERM to the end of the process
START, BETWEEN, EXIT = "start-up", "between stages", "exit"  # besides the stages' names
# Exit codes: -SIGTERM before the program handles it; 0 if its last stage ends in the time to leave.
ENDED = {"SIGKILL": (-signal.SIGKILL,), "SIGTERM": (-signal.SIGTERM, 143, 0)}
UNDISTURBED = ("compiling", "undisturbed")  # two runs that nobody kills
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")


class Job(NamedTuple):
    """What is run."""

    folder: Path  # of all runs and of the certificate, absolute
    config: str
    cache: Path  # of compiled programs
    arguments: tuple[str, ...]  # further ones

    def command(self, name: str) -> list[str]:
        """Return the command of the run in the workdir ``name``, the same for every start."""
        where = (f"--workdir={self.folder / name}", f"--compile_cache={self.cache}")
        program = [sys.executable, "-m", "alol_jax.main"]
        return [*program, f"--config={self.config}", *where, *self.arguments]


class Moment(NamedTuple):
    """When to kill."""

    stage: str
    seconds: float  # after the stage has begun


class Kill(NamedTuple):
    """A signal that ended a process."""

    stage: str  # in which the process was
    signal: str
    code: int  # the exit code
    seconds: float  # from the signal to the end
    said: str  # the last line on stderr


class Process:
    """A started run, the lines that it has printed, and the stage that it is in."""

    def __init__(self, command: Sequence[str]):
        self.began = time.monotonic()
        self.lines: list[str] = []
        self.stages = [(START, 0.0)]  # each with the seconds at which it was entered
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._errors: list[str] = []
        self._readers = (
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        )
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            seconds = time.monotonic() - self.began
            self.lines.append(line)
            found = re.match(r"\[(\w+)\] (running|already done|not needed|took)", line)
            if found:
                stage = found[1] if found[2] == "running" else BETWEEN
                with self._changed:
                    self.stages.append((stage, seconds))
                    self._changed.notify_all()
        with self._changed:
            self.stages.append((EXIT, time.monotonic() - self.began))
            self._changed.notify_all()

    def _read_errors(self) -> None:
        self._errors.extend(self._process.stderr)

    def kill_at(self, moment: Moment, number: signal.Signals) -> Kill | None:
        """Kill at ``moment``, or after its stage if that is done; None if the run ends first."""

        def reached() -> bool:
            named = any(line.startswith(f"[{moment.stage}] ") for line in self.lines)
            return named or moment.stage == START or self.stages[-1][0] == EXIT

        with self._changed:
            self._changed.wait_for(reached)
        try:
            self._process.wait(timeout=moment.seconds)
        except subprocess.TimeoutExpired:
            stage, sent = self.stages[-1][0], time.monotonic()
            self._process.send_signal(number)
            code = self.wait()
            seconds = time.monotonic() - sent
            if code in ENDED[number.name]:
                said = self._errors[-1].strip() if self._errors else ""
                return Kill(stage, number.name, int(code), round(seconds, 2), said)
        self.finish()
        return None

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self._process.wait()
        for reader in self._readers:
            reader.join()
        return code

    def finish(self) -> None:
        """Wait for the end, which has to be a success."""
        code = self.wait()
        if code:
            sys.exit(f"error: the run ended with exit code {code}:\n{''.join(self._errors[-20:])}")


def draw_moments(
    stages: Sequence[tuple[str, float]], count: int, rng: np.random.Generator
) -> list[Moment]:
    """Draw ``count`` moments, uniform over the time of a run, in order.

    If there are enough, each stage gets one of them first, in the half of its time that a faster
    machine still spends on it.

    Args:
        stages: each stage with the second at which it was entered; the last is the end of the run.
    """
    starts = np.array([second for _, second in stages])
    named = [n for n, (stage, _) in enumerate(stages[:-1]) if stage != BETWEEN]
    halves = [rng.uniform(starts[n], (starts[n] + starts[n + 1]) / 2) for n in named]
    drawn = halves if count >= len(named) else []
    drawn += list(rng.uniform(starts[0], starts[-1], count - len(drawn)))
    found = []
    for at in sorted(drawn):
        n = max(m for m in named if starts[m] <= at)  # "between" counts as the stage before
        found.append(Moment(stages[n][0], float(at - starts[n])))
    return found


class Disturbed(NamedTuple):
    """What became of the killed runs."""

    kills: list[Kill]
    starts: int  # processes
    resumed: int  # fits that went on from a checkpoint
    found: list[dict[str, str]]  # the results of each run that has ended


def disturb(job: Job, moments: Sequence[Moment]) -> Disturbed:
    """Kill a run at every moment. If it ends before one, kill another run, at half the seconds."""
    done = Disturbed([], 0, 0, [])
    waiting = list(moments)
    while waiting or not done.found:
        name = f"killed-{len(done.found) + 1}"
        ended = False
        while not ended:
            process = Process(job.command(name))
            number = SIGNALS[len(done.kills) % len(SIGNALS)]
            kill = process.kill_at(waiting[0], number) if waiting else process.finish()
            resumed = sum("resuming at step" in line for line in process.lines)
            done = done._replace(starts=done.starts + 1, resumed=done.resumed + resumed)
            ended = kill is None or kill.code == 0
            if kill:
                done.kills.append(kill)
                waiting.pop(0)
                line = f"{len(done.kills)}: {kill.signal} in {kill.stage}, {kill.seconds} s"
                print(line, flush=True)
            elif waiting:  # the stage takes less time than before
                waiting[0] = waiting[0]._replace(seconds=waiting[0].seconds / 2)
        done.found.append(digests(job.folder / name))
    return done


def certificate(
    undisturbed: dict[str, str], again: dict[str, str], done: Disturbed
) -> dict[str, Any]:
    """Return counts, the time to leave after SIGTERM, and which results are equal.

    Args:
        undisturbed: the results of the first undisturbed run; again: those of the second.
    """
    places = collections.defaultdict(collections.Counter)
    for kill in done.kills:
        places[kill.stage][kill.signal] += 1
    leaving = [kill.seconds for kill in done.kills if kill.signal == "SIGTERM"]
    longest = max(leaving, default=0.0)
    others = (again, *done.found)
    results = {
        name: {
            "sha256": undisturbed.get(name),
            "equal": all(one.get(name) == undisturbed.get(name) for one in others),
        }
        for name in sorted(set(undisturbed).union(*others))
    }
    equal = sum(result["equal"] for result in results.values())
    return {
        "passed": equal == len(results) and longest <= LONGEST,
        "kills": len(done.kills),
        "kills_by_signal": collections.Counter(kill.signal for kill in done.kills),
        "kills_by_stage": places,
        "killed_runs": len(done.found),
        "starts": done.starts,
        "fits_resumed_from_a_checkpoint": done.resumed,
        "results": len(results),
        "results_equal": equal,
        "longest_seconds_from_sigterm_to_the_end": longest,
        "allowed_seconds": LONGEST,
        "each_result": results,
        "each_kill": [kill._asdict() for kill in done.kills],
        "left_out": LEFT_OUT,
    }


def circumstances(job: Job, process: Process, seed: int) -> dict[str, Any]:
    """Return what was run, where, with which versions, and how long it takes undisturbed."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "command": [
            "python",
            *job._replace(folder=Path(), cache=Path("compiled")).command("WORKDIR")[1:],
        ],
        "device": process.lines[0].partition(",")[0],
        "versions": {"python": platform.python_version(), **versions},
        "seed": seed,
        "undisturbed_seconds": round(process.stages[-1][1], 1),
    }
