"""Read finished runs from their workdirs, and check that they can be compared.

Runs are comparable if they have the same data, reward, test prompts and decoding. The model, the
reference and the training may differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.errors import UserError
from alol_jax.objectives.registry import get_objective, hyper_parameters
from alol_jax.paths import AnyPath
from alol_jax.reports.compare.rows import Fit, RunResult
from alol_jax.runs.artifacts import load_fields, load_result
from alol_jax.runs.records import first_difference
from alol_jax.runs.workdir import FORMAT, Stage, finished_stage
from alol_jax.training.rollouts import steps_per_rollout
from alol_jax.types import Evaluation, Policy

POLICY_STAGES = ("fit_policy", "fit_policy_online")
"""The stages that train a policy; a run has one of them."""
EARLIER_STAGES = ("load", "score", "fit_reference", "select")
CHECKED_SECTIONS = ("task", "rewards", "reward_models", "score")
"""Config sections that comparable runs share wherever they matter; `_check_comparable` checks."""
IGNORED_KEYS = (
    *("seed", "select", "evaluate", "report", "log", "tensorboard", "mesh", "distill"),
    *("policy.seed", "policy.checkpoint_every", "reference.checkpoint_every", "decode.batch_size"),
    "policy.validation_kl",
)
"""Config keys that do not distinguish one kind of run from another."""


class FinishedRun(NamedTuple):
    """The stages of a run that say what was evaluated, and on what."""

    workdir: AnyPath
    load: Stage
    score: Stage
    policy: Stage
    evaluate: Stage


def read_runs(workdirs: Sequence[AnyPath]) -> tuple[RunResult, ...]:
    """Read the runs of the workdirs, in order.

    Raises:
        UserError: a workdir is given twice, is missing or unfinished, or holds a run that cannot
            be compared with the first one.
    """
    if not workdirs:
        raise UserError("there is nothing to compare: give at least one workdir")
    places: set[AnyPath] = set()
    for workdir in workdirs:
        if paths.resolve(workdir) in places:
            raise UserError(f"{workdir} is given twice: leave one of them out")
        places.add(paths.resolve(workdir))
    found = [finished_run(workdir) for workdir in workdirs]
    for number, other in enumerate(found):
        for one in found[:number]:
            if one.evaluate.fingerprint == other.evaluate.fingerprint:
                raise UserError(
                    f"{other.workdir} holds the same run as {one.workdir}, seeds included: leave "
                    "one of them out"
                )
        if number:
            _check_comparable(found[0], other)
    runs = tuple(_read(run) for run in found)
    for run in runs[1:]:
        _check_prompts(runs[0], run)
    return runs


def why_not_comparable(one: AnyPath, other: AnyPath) -> str:
    """Why the runs in the two workdirs cannot be compared; "" if they can."""
    try:
        _check_comparable(finished_run(one), finished_run(other))
    except UserError as error:
        return str(error)
    return ""


def finished_run(workdir: AnyPath) -> FinishedRun:
    """Find the stages of a finished run.

    Raises:
        UserError: a stage has no result or was made by another version, or its result was made
            from a different result than the one now in the workdir.
    """
    if not paths.is_folder(workdir):
        raise UserError(f"{workdir}: there is no such workdir")
    names = (*EARLIER_STAGES, *POLICY_STAGES, "evaluate")
    found = {name: finished_stage(workdir, name) for name in names}
    fits = [found[name] for name in POLICY_STAGES if found[name] is not None]
    for name in (*EARLIER_STAGES, POLICY_STAGES[0], "evaluate"):
        if found[name] is None and not (name == POLICY_STAGES[0] and fits):
            raise UserError(
                f"{workdir} has no finished {name}: run alol_jax.main with its config and this "
                "--workdir again to continue"
            )
    evaluate = found["evaluate"]
    for stage in (found["load"], found["score"], *fits, evaluate):
        if stage.record["format"] != FORMAT:
            raise UserError(
                f"{stage.folder} was made by another version of alol_jax: run alol_jax.main with "
                "--redo"
            )
    inputs = evaluate.record["inputs"]
    policy = next((fit for fit in fits if fit.fingerprint == inputs["policy"]), fits[0])
    chain = (
        (found["load"], found["score"].record["inputs"]["splits"]),
        (found["score"], inputs["scored"]),
        (policy, inputs["policy"]),
    )
    for stage, fingerprint in chain:
        if stage.fingerprint != fingerprint:
            raise UserError(
                f"{evaluate.folder} was made from another result than {stage.folder}: run "
                "alol_jax.main with this --workdir and --redo"
            )
    return FinishedRun(workdir, found["load"], found["score"], policy, evaluate)


def _check_comparable(one: FinishedRun, other: FinishedRun) -> None:
    models = [run.evaluate.record["inputs"]["lm"] for run in (one, other)]
    aspects: dict[str, Callable[[FinishedRun], dict[str, Any]]] = {
        "other data": _data,
        "another reward": _reward,
        "another reward of the answers": _answers_reward,
        "other decoding settings": _decoding if models[0] == models[1] else _decoding_without_end,
    }
    for what, aspect in aspects.items():
        found = first_difference(aspect(one), aspect(other))
        if found is not None:
            raise UserError(
                f"{other.workdir} cannot be compared with {one.workdir}, it has {what}: "
                f"{found.field} = {found.other}, and {found.one} in {one.workdir}"
            )


def _data(run: FinishedRun) -> dict[str, Any]:
    """What `load` read, without the prompt template."""
    inputs = run.load.record["inputs"]
    files: dict[str, list[str]] = {}
    for file in inputs["files"]:
        files.setdefault(file["file"], []).append(file["content"])
    return {
        "task": _only(inputs["task"], ("name", "load", "files")),
        "config.task": _without(inputs["config.task"], ("template", "date")),
        "files": files,
    }


def _reward(run: FinishedRun) -> dict[str, Any]:
    """How the data's responses were scored, without the options for checking stored rewards."""
    inputs = run.score.record["inputs"]
    read = ("stored", "rows", "transform", "clip", "distil")
    if inputs["config.score"]["rows"] == "labels":
        read += ("compared",)  # the rows that fit the line from scores to labels
    options = _only(inputs["config.score"], read)
    return inputs["scoring"] | {"config.score": options}


def _answers_reward(run: FinishedRun) -> dict[str, Any]:
    """How the answers to the test prompts were scored.

    Rewards of their own are not brought to the scale of the rows, even if they are the same ones.
    """
    inputs, score = run.evaluate.record["inputs"], run.score.record["inputs"]["config.score"]
    scale = (score["rows"], score["transform"], list(score["clip"]))
    if scale == ("scorer", "as_is", []):
        return inputs["scoring"]
    own = {"rewards": inputs["config.evaluate"]["rewards"]}
    return inputs["scoring"] | {"config.evaluate": own}


def _decoding(run: FinishedRun) -> dict[str, Any]:
    """How answers were decoded, without the batch size, which changes no answer."""
    settings = run.evaluate.record["inputs"]["config.decode"]
    return {
        "config.decode": _without(settings, ("batch_size",)),
        "task": _only(run.load.record["inputs"]["task"], ("stop", "clean")),
    }


def _decoding_without_end(run: FinishedRun) -> dict[str, Any]:
    """`_decoding` without the end tokens, whose ids depend on the vocabulary."""
    settings = _decoding(run)
    return settings | {"config.decode": _without(settings["config.decode"], ("end",))}


def _only(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: section[name] for name in names if name in section}


def _without(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


def _read(found: FinishedRun) -> RunResult:
    config = found.evaluate.config()
    inputs = found.evaluate.record["inputs"]
    fields = ("step", "validations", "curves", "cost")
    return RunResult(
        workdir=found.workdir,
        objective=config.objective.name,
        seed=config.seed + config.policy.seed,
        shared_seed=config.seed,
        settings=_settings(config.to_dict()),
        model=json.dumps(inputs["lm"], sort_keys=True),
        reference=inputs["reference"],
        draws=config.evaluate.bootstrap,
        updates=_updates(config),
        evaluation=load_result(found.evaluate.folder, Evaluation),
        fit=Fit(*load_fields(found.policy.folder, Policy, fields)),
    )


def _updates(config: ConfigDict) -> int:
    """Optimizer steps per step of the fit."""
    if get_objective(config.objective.name).online:
        return steps_per_rollout(config.ppo)
    return 1


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config, reduced to the keys that distinguish runs of one objective."""
    kept = _without(config, (*CHECKED_SECTIONS, *IGNORED_KEYS))
    objective = get_objective(config["objective"]["name"])
    if objective.online:
        kept = _without(kept, ("objective",))
    else:
        kept = _without(kept, ("ppo",))
        read = (*hyper_parameters(objective), *["responses"] * objective.any_count)
        kept["objective"] = _only(config["objective"], read)
    flat = {"task.template": config["task"]["template"]} | dict(_flat(kept, ""))
    return _without(flat, IGNORED_KEYS)


def _flat(section: Mapping[str, Any], where: str):
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{name}.")
        else:
            yield where + name, value


def _check_prompts(one: RunResult, other: RunResult) -> None:
    """Check that both runs answered the same prompts in the same order."""
    answers = [run.evaluation.policy for run in (one, other)]
    prompts = [list(zip(rows["example_id"], rows["prompt"], strict=True)) for rows in answers]
    if prompts[0] != prompts[1]:
        pairs = zip(*prompts, strict=False)
        first = next((theirs for ours, theirs in pairs if ours != theirs), None)
        said = "their numbers differ" if first is None else f"the first is {first[0]!r}"
        raise UserError(
            f"{other.workdir} cannot be compared with {one.workdir}, it has other test prompts: "
            f"{said}"
        )
