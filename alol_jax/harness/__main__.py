"""Run tasks of lm-eval on the reference and the policy of a finished run, and compare them.

    python -m alol_jax.harness runs/quickstart --tasks=tasks/mine.yaml,tasks/more

Tasks are YAML files of EleutherAI's lm-evaluation-harness, or folders of them, with data as they
name it. The table is printed and written to WORKDIR/lm_eval.json. ``pip install ".[lm-eval]"``
installs what it needs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from alol_jax import paths
from alol_jax.devices.sharding import place_params
from alol_jax.errors import UserError, reason
from alol_jax.harness.scores import Score, scores, table, to_json
from alol_jax.paths import AnyPath
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.command_line import Parser, parsed, started
from alol_jax.runs.progress import say
from alol_jax.trained import open_trained, trained_stage
from alol_jax.types import Policy

FILE = "lm_eval.json"  # in the workdir
WAY_OUT = 'pip install "lm_eval>=0.4.13,<0.5"'


class Options(argparse.Namespace):
    """The flags."""

    workdir: AnyPath
    tasks: str
    num_fewshot: int | None
    limit: int | None
    apply_chat_template: bool
    base: str
    adapter: str
    compile_cache: str
    debug: bool


def compare(options: Options) -> tuple[Score, ...]:
    """Run the tasks on both models, print the table and write the file.

    Raises:
        UserError: lm_eval is not installed, the run has no policy, a model or a task cannot be
            read, or a task asks for what the model cannot do.
    """
    try:
        from alol_jax.harness.model import HarnessModel, notes_on_length, run_tasks, version
    except ImportError as error:
        raise UserError(f"lm_eval cannot be imported ({reason(error)}): {WAY_OUT}") from error
    stage, config, lm = open_trained(
        options.workdir, "policy", base=options.base, adapter=options.adapter
    )
    stages = {"reference": trained_stage(options.workdir, "reference"), "policy": stage}
    places = [place for place in options.tasks.split(",") if place]
    for line in notes_on_length(lm.transformer.config):
        say(line)
    outcomes = []
    for name, one in stages.items():
        trained = place_params(load_result(one.folder, Policy).trained, lm.mesh)
        model = HarnessModel(
            lm,
            trained,
            batch_size=config.decode.batch_size,
            date=config.task.date,
            label=name,
            say=say,
        )
        outcomes.append(
            run_tasks(
                model,
                places,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                chat=options.apply_chat_template,
            )
        )
    found = scores(*outcomes, draws=config.evaluate.bootstrap, seed=config.seed)
    settings = {
        "lm_eval": version(),
        "tasks": places,
        "num_fewshot": options.num_fewshot,
        "limit": options.limit,
        "apply_chat_template": options.apply_chat_template,
        **{name: one.fingerprint for name, one in stages.items()},
    }
    text = json.dumps(to_json(found, settings), indent=1, ensure_ascii=False, allow_nan=False)
    paths.write_text(options.workdir / FILE, text)
    say(table(found))
    say(f"written: {options.workdir / FILE}")
    return found


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        UserError: a flag is unknown or has no value of its kind, or one that is needed is missing.
    """
    parser = Parser("alol_jax.harness", description=__doc__, allow_abbrev=False)
    flag = parser.add_argument
    flag("workdir", type=paths.path_of, metavar="WORKDIR", help="workdir of a finished run")
    flag("--tasks", required=True, help="YAML files of lm-eval and folders of them, by commas")
    flag("--num_fewshot", type=int, help="examples before each question; a task's own 0 stays")
    flag("--limit", type=int, help="only the first documents of each task")
    flag("--apply_chat_template", action="store_true", help="ask in the model's own chat template")
    flag("--base", default="", help="path of the base model, if it was moved")
    flag("--adapter", default="", help="path of the adapter that training began from, if moved")
    flag("--compile_cache", default="", help="where compiled programs are kept; 'off' keeps none")
    flag("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments, Options())
    for name, least in (("num_fewshot", 0), ("limit", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name}={value} must be {least} or more")
    return options


def entry() -> None:
    """Run `compare`; a `UserError` is printed as one line on stderr, with exit code 2."""
    started(parsed(parse, compare))


if __name__ == "__main__":
    entry()
