"""Workdirs -> the runs in them; runs that cannot be compared are refused with the reason.

Comparable are runs on the same data, scored by the same reward on the same test prompts, whose
answers were decoded alike. The model, the reference and the fit may be others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alol_jax.objectives.registry import get_objective, hyper_parameters
from alol_jax.reports.compare.rows import Fit, RunResult
from alol_jax.runs.artifacts import load_fields, load_result
from alol_jax.runs.workdir import FORMAT, Stage, finished_stage, first_difference
from alol_jax.training.rollouts import steps_per_rollout
from alol_jax.types import Evaluation, Policy, UserError

POLICY = ("fit_policy", "fit_policy_online")
"""The stages that fit a policy; a run has one of them."""
BEFORE = ("load", "score", "fit_reference", "select")
COMPARED = ("task", "rewards", "reward_models", "score")
"""Sections of the config that comparable runs have in common, as far as they matter."""
WITHOUT_EFFECT = (
    *("seed", "select", "evaluate", "report", "tensorboard", "mesh", "distill"),
    *("policy.seed", "policy.checkpoint_every", "reference.checkpoint_every", "decode.batch_size"),
)
"""Keys of the config that make no other kind of policy."""


class Finished(NamedTuple):
    """The stages of one workdir that tell what its evaluation is an evaluation of."""

    workdir: Path
    load: Stage
    score: Stage
    policy: Stage
    evaluate: Stage


def read_runs(workdirs: Sequence[Path]) -> tuple[RunResult, ...]:
    """The runs of the workdirs, in order.

    Raises:
        UserError: a workdir is given twice, is not there or not finished, or holds a run that
            cannot be compared with the first one.
    """
    if not workdirs:
        raise UserError("there is nothing to compare: give at least one workdir")
    places: dict[Path, Path] = {}
    for workdir in workdirs:
        if workdir.resolve() in places:
            raise UserError(f"{workdir} is given twice: leave one of them out")
        places[workdir.resolve()] = workdir
    stages = [finished(workdir) for workdir in workdirs]
    for number, other in enumerate(stages):
        for one in stages[:number]:
            if one.evaluate.fingerprint == other.evaluate.fingerprint:
                raise UserError(
                    f"{other.workdir} holds the same run as {one.workdir}, seeds included: leave "
                    "one of them out"
                )
        if number:
            _check_alike(stages[0], other)
    runs = tuple(_read(found) for found in stages)
    for run in runs[1:]:
        _check_prompts(runs[0], run)
    return runs


def why_not(one: Path, other: Path) -> str:
    """Why the run in ``other`` cannot be compared with the one in ``one``; "" where it can."""
    try:
        _check_alike(finished(one), finished(other))
    except UserError as error:
        return str(error)
    return ""


def finished(workdir: Path) -> Finished:
    """The stages of a workdir.

    Raises:
        UserError: one has no result, is of another version, or its result was made from another
            result than the one that lies there.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: there is no such workdir")
    found = {name: finished_stage(workdir, name) for name in (*BEFORE, *POLICY, "evaluate")}
    fits = [found[name] for name in POLICY if found[name] is not None]
    for name in (*BEFORE, POLICY[0], "evaluate"):
        if found[name] is None and not (name == POLICY[0] and fits):
            raise UserError(
                f"{workdir} has no finished {name}: run alol_jax.main with its config and this "
                "--workdir again to go on"
            )
    evaluate = found["evaluate"]
    for stage in (found["load"], found["score"], *fits, evaluate):
        if stage.record["format"] != FORMAT:
            raise UserError(
                f"{stage.folder} was made by another version of alol_jax: run alol_jax.main with "
                "--redo"
            )
    made_from = evaluate.record["inputs"]
    policy = next((fit for fit in fits if fit.fingerprint == made_from["policy"]), fits[0])
    chain = (
        (found["load"], found["score"].record["inputs"]["splits"]),
        (found["score"], made_from["scored"]),
        (policy, made_from["policy"]),
    )
    for stage, fingerprint in chain:
        if stage.fingerprint != fingerprint:
            raise UserError(
                f"{evaluate.folder} was made from another result than {stage.folder}: run "
                "alol_jax.main with this --workdir and --redo"
            )
    return Finished(workdir, found["load"], found["score"], policy, evaluate)


def _check_alike(one: Finished, other: Finished) -> None:
    models = [run.evaluate.record["inputs"]["lm"] for run in (one, other)]
    described: dict[str, Callable[[Finished], dict[str, Any]]] = {
        "other data": _data,
        "another reward": _reward,
        "another reward of the answers": _answers_reward,
        "other decoding settings": _decoding if models[0] == models[1] else _decoding_but_end,
    }
    for what, of in described.items():
        found = first_difference(of(one), of(other))
        if found is not None:
            raise UserError(
                f"{other.workdir} cannot be compared with {one.workdir}, it has {what}: "
                f"{found.field} = {found.other}, and {found.one} in {one.workdir}"
            )


def _data(run: Finished) -> dict[str, Any]:
    """What `load` read, whatever form the model is told it in."""
    inputs = run.load.record["inputs"]
    files: dict[str, list[str]] = {}
    for file in inputs["files"]:
        files.setdefault(file["file"], []).append(file["content"])
    return {
        "task": _only(inputs["task"], ("name", "load", "files")),
        "config.task": _without(inputs["config.task"], ("template",)),
        "files": files,
    }


def _reward(run: Finished) -> dict[str, Any]:
    """What made rewards of the data's responses; how they were checked does not matter."""
    inputs = run.score.record["inputs"]
    options = _only(inputs["config.score"], ("stored",))
    return inputs["scoring"] | {"config.score": options}


def _answers_reward(run: Finished) -> dict[str, Any]:
    """What made rewards of the answers to the test prompts."""
    return run.evaluate.record["inputs"]["scoring"]


def _decoding(run: Finished) -> dict[str, Any]:
    """How prompts were answered; how many at once changes no answer."""
    settings = run.evaluate.record["inputs"]["config.decode"]
    return {
        "config.decode": _without(settings, ("batch_size",)),
        "task": _only(run.load.record["inputs"]["task"], ("stop", "clean")),
    }


def _decoding_but_end(run: Finished) -> dict[str, Any]:
    """Without the end tokens: those of another vocabulary are others."""
    settings = _decoding(run)
    return settings | {"config.decode": _without(settings["config.decode"], ("end",))}


def _only(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: section[name] for name in names if name in section}


def _without(section: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


def _read(found: Finished) -> RunResult:
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
    """Optimizer steps in what the fit counts as a step."""
    if get_objective(config.objective.name).online:
        return steps_per_rollout(config.ppo)
    return 1


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, flat, as far as it tells kinds of runs of one objective apart."""
    kept = _without(config, (*COMPARED, *WITHOUT_EFFECT))
    objective = get_objective(config["objective"]["name"])
    if objective.online:
        kept = _without(kept, ("objective",))
    else:
        kept = _without(kept, ("ppo",))
        read = (*hyper_parameters(objective), *["responses"] * objective.any_count)
        kept["objective"] = _only(config["objective"], read)
    flat = {"task.template": config["task"]["template"]} | dict(_flat(kept, ""))
    return _without(flat, WITHOUT_EFFECT)


def _flat(section: Mapping[str, Any], where: str):
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{name}.")
        else:
            yield where + name, value


def _check_prompts(one: RunResult, other: RunResult) -> None:
    """Both were asked the same in the same order; the records say so already, the rows must too."""
    asked = [[(r.example_id, r.prompt) for r in run.evaluation.policy] for run in (one, other)]
    if asked[0] != asked[1]:
        pairs = zip(*asked, strict=False)
        first = next((theirs for ours, theirs in pairs if ours != theirs), None)
        said = "their numbers differ" if first is None else f"the first is {first[0]!r}"
        raise UserError(
            f"{other.workdir} cannot be compared with {one.workdir}, it has other test prompts: "
            f"{said}"
        )
