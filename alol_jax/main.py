"""Train a policy with A-LoL: nine stages from data to report.

python -m alol_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from alol_jax.checks import COLUMNS, check
from alol_jax.checks_of_rows import check_scored
from alol_jax.decoding.answers import Setup
from alol_jax.devices.opening import open_devices
from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import Finished, Interrupted, UserError
from alol_jax.forecast import Forecast, counts_of, in_words
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.objectives.registry import columns_read, drops_rows, get_objective, hyper_parameters
from alol_jax.paths import with_local_copies, workdir_of
from alol_jax.reports.results import result_table
from alol_jax.rewards.opening import open_reward_models
from alol_jax.rewards.reward import Scoring
from alol_jax.runs.command_line import (
    STOPPED,
    cached,
    connected,
    guarded,
    leave,
    parse,
    stop_on_signals,
)
from alol_jax.runs.lock import lock_workdir
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import Run, check_same, log_options
from alol_jax.stages.distil import distil, scored_by
from alol_jax.stages.evaluate import evaluate
from alol_jax.stages.evaluate_reference import evaluate_reference
from alol_jax.stages.fit_policy import fit_policy
from alol_jax.stages.fit_policy_online import fit_policy_online
from alol_jax.stages.fit_reference import fit_reference
from alol_jax.stages.fit_value import fit_value
from alol_jax.stages.generate import generate
from alol_jax.stages.load import counter_of, load
from alol_jax.stages.report import report
from alol_jax.stages.score import score
from alol_jax.stages.select import select
from alol_jax.tasks.registry import get_task
from alol_jax.text.prompts import notes_on_template
from alol_jax.training.boards import check_boards
from alol_jax.types import Agreement, Evaluation, RunSummary, ScoredSplits

STAGES = {
    "load": 1,
    "score": 2,
    "distil": 2,  # after score, if config.score.distil fits the scorer of what is generated
    "fit_reference": 3,
    "generate": 4,
    "fit_value": 5,
    "select": 6,
    "fit_policy": 7,
    "fit_policy_online": 7,  # instead of fit_policy if the objective needs rollouts
    "evaluate_reference": 8,
    "evaluate": 8,
    "report": 9,
}
"""Stage -> its number, which is part of its folder's name."""
QUIET = 3.0  # seconds in which nothing is said, so that an error in the data stands alone
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with :argument.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; finished stages are reused.")
_STAGES = flags.DEFINE_list("stages", list(STAGES), "The stages that may run.")
REDO = flags.DEFINE_bool("redo", False, "Recompute stages whose config has changed.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


class Opened(NamedTuple):
    """The models that a run opens before its first stage; several runs can share them."""

    lm: LanguageModel
    scoring: Scoring  # the reward in training
    test_scoring: Scoring  # the reward on the test prompts
    notes: tuple[str, ...]  # lines for the log, once the data is read


def prepare(config: ConfigDict) -> Opened:
    """Open the models; raise `UserError` if the config cannot run to its end."""
    c, task = config, get_task(config.task)
    lm = open_language_model(c.model, make_mesh(**c.mesh)).for_template(task.template)
    check(c, task, get_objective(c.objective.name), lm)
    check_boards(log_options(c))
    notes = (*lm.notes, *notes_on_template(lm.tokenizer, task))
    test = c.evaluate.rewards or c.rewards
    used = [name for weights in (c.rewards, test) for name, weight in weights.items() if weight]
    models = open_reward_models(c.reward_models, used, task.exchange, lm)
    scoring = Scoring(task.rewards, models, c.rewards, tuple(c.reward_models))
    tested = Scoring(task.rewards, models, test, tuple(c.reward_models), trained_on=False)
    return Opened(lm, scoring, tested if c.evaluate.rewards else scoring, notes)


def told(opened: Opened) -> Opened:
    """Say the notes now; return what was opened without them."""
    for note in opened.notes:
        say(note)
    return opened._replace(notes=())


def recipe(
    config: ConfigDict, run: Run, opened: Opened, same_rows: Sequence[ConfigDict] = ()
) -> Evaluation:
    """Run all stages, from raw data to report.

    A stage whose inputs have not changed is loaded from the workdir instead.

    Args:
        same_rows: all configs that will train on these rows, to be checked now; empty: this one.
    """
    c = config
    task, objective = get_task(c.task), get_objective(c.objective.name)
    lm, scoring, test_scoring, _ = opened
    read = columns_read(objective, c.policy.filter)
    wanted = {*(c.select.columns or read), "reward"}  # every row has a reward
    columns = tuple(column for column in COLUMNS if column in wanted)

    counter = counter_of(lm, task, c.task)
    files = task.files(with_local_copies(c.task))
    splits = run.stage("load", load, task, c.task, files, counter, once=True, quiet_for=QUIET)
    told(opened)
    scored = run.stage("score", score, scoring, c.score, splits, once=not scoring.models)
    for each in same_rows or (c,):
        check_scored(each, get_objective(each.objective.name), scored)
    scoring, agreement = _judge(c, run, opened, scored)
    forecast = Forecast(c, lm, counts_of(scored), scores=scoring.can_score, say=say)
    run.pace = forecast.tell
    setup = Setup(lm, task, scoring, c.decode, c.seed, agreement)
    reference = run.stage("fit_reference", fit_reference, lm, task, c.reference, c.seed, scored)
    if "advantage" in columns:
        answers = run.stage("generate", generate, setup, c.generate, scored, reference)
        value = run.stage(
            "fit_value", fit_value, lm, task, c.value, c.seed, scored, reference, answers
        )
    else:
        value = None
        for name in ("generate", "fit_value"):
            run.skip(name, f"{c.objective.name} does not read the advantage")
    table = run.stage("select", select, lm, task, columns, c.value, scored, reference, value)
    if objective.online:
        policy = run.stage(
            "fit_policy_online", fit_policy_online, setup, c.policy, c.ppo, scored, table, reference
        )
    else:
        policy = run.stage(
            "fit_policy", fit_policy, setup, objective, c.objective, c.policy, scored, table,
            reference,
        )  # fmt: skip
    tested = setup
    if c.evaluate.rewards:  # of another scale than the stored rewards
        tested = setup._replace(scoring=test_scoring, agreement=None)
    read_by = run.stage("evaluate_reference", evaluate_reference, tested, scored, reference)
    evaluation = run.stage(
        "evaluate", evaluate, tested, c.evaluate, scored, reference, policy, read_by
    )
    commits = splits.commits | lm.commits | scoring.commits | test_scoring.commits
    summary = summarise(c, task.name, hyper_parameters(objective), commits)
    judged = value if "advantage" in read else None
    run.stage(
        "report", report, c.report, scored, reference, judged, table, policy, evaluation, summary,
        once=True,
    )  # fmt: skip
    return evaluation


def _judge(
    c: ConfigDict, run: Run, opened: Opened, scored: ScoredSplits
) -> tuple[Scoring, Agreement | None]:
    """What scores generated answers, and how far it agrees with the stored rewards of the rows."""
    if not c.score.distil:
        return opened.scoring, scored.agreement
    lm, task = opened.lm, get_task(c.task)
    distilled = run.stage("distil", distil, lm, task, c.distill, c.seed, scored)
    return scored_by(distilled, opened.scoring, lm, task, c.distill), distilled.agreement


def summarise(
    config: ConfigDict, task: str, hyper: tuple[str, ...], commits: Mapping[str, str]
) -> RunSummary:
    """Describe the run for the report; ``commits`` are what was read of the hub."""
    values = config.ppo if get_objective(config.objective.name).online else config.objective
    return RunSummary(
        objective=config.objective.name,
        hyper_parameters=tuple((name, float(values[name])) for name in hyper),
        task=task,
        model=config.model.path,
        config_json=config.to_json_best_effort(indent=1, sort_keys=True),
        versions=tuple((name, importlib.metadata.version(name)) for name in PACKAGES),
        commits=tuple(commits.items()),
        drops=drops_rows(get_objective(config.objective.name), config.policy.filter),
    )


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}: settings go as --config.x.y=value")
    if CONFIG.value is None or not WORKDIR.value:
        raise UserError("--config and --workdir are needed: see README.md for a command to copy")
    for name in _STAGES.value:
        if name not in STAGES:
            raise UserError.unknown(f"--stages: {name!r} is not a stage", name, STAGES)
    stopping = stop_on_signals()
    started = time.monotonic()
    run = Run(
        workdir_of(WORKDIR.value),
        STAGES,
        CONFIG.value,
        allowed=_STAGES.value,
        redo=REDO.value,
        stopping=stopping,
        say=say,
    )
    check_same("config", json.loads(CONFIG.value.to_json()))
    devices = open_devices()
    here = f"{len(devices)} × {devices[0].device_kind} ({jax.default_backend()}), {WORKDIR.value}"
    page = run.folder / f"{STAGES['report']:02d}_report" / "report.html"
    with lock_workdir(run.folder):
        opened = prepare(CONFIG.value)
        opened = opened._replace(notes=(here, *in_words(CONFIG.value, page), *opened.notes))
        if _DEBUG.value:
            opened = told(opened)
        evaluation = recipe(CONFIG.value, run, opened)
    say(result_table(evaluation))
    say(f"done in {time.monotonic() - started:.0f} s; report: {page}")


def entry(program: Callable[[list[str]], None]) -> None:
    """Run a program; a `UserError` is printed as one line on stderr, with exit code 2."""

    def run() -> None:
        try:
            app.run(cached(program), flags_parser=parse)
        except Finished as finished:
            say(str(finished))
        except Interrupted as stopped:
            print(f"stopped: {stopped}; run the same command again to resume", file=sys.stderr)
            leave(STOPPED)

    sys.exit(
        guarded(
            run,
            debug=lambda: _DEBUG.present and _DEBUG.value,
            writing=writing,
        )
    )


def writing() -> str:
    """Say what is being written, for a file-system error that names no file."""
    return f"writing below {WORKDIR.value}" if WORKDIR.present else ""


if __name__ == "__main__":
    entry(connected(main, writing=writing))
