"""comet, reddit and dialogue through the whole program, on small invented files."""

import json

import numpy as np
import pytest

from alol_jax.runs.artifacts import load_result
from alol_jax.tasks import dialogue
from alol_jax.types import Evaluation, Policy, ScoredSplits, Splits
from tests.running import SMALL, run_here
from tests.tasks import test_comet, test_dialogue, test_reddit

QUICK = tuple(argument for argument in SMALL if "task." not in argument)
TAILS = ("to sleep well", "a good long rest", "to eat some more", "an empty plate now")


def comet_files(folder):
    rows = [
        test_comet.inference(f"PersonX does {split} thing {n}", "xWant", tail, split, p)
        for split, count in (("train", 20), ("val", 6), ("test", 6))
        for n in range(count)
        for p, tail in zip((0.25, 0.75), TAILS[n % 3 :], strict=False)
    ]
    chosen = test_comet.options(folder, rows, tsv=["PersonX eats\txNeed\tfood", "a\tAtLocation\tb"])
    return {"train_file": chosen.train_file, "test_file": ""}


def reddit_files(folder):
    rows = {
        sign: [test_reddit.comment(f"{sign}{n}", f"{TAILS[n % 4]} {n} or so") for n in range(30)]
        for sign in ("positive", "negative")
    }
    chosen = test_reddit.options(folder, *rows.values())
    return {"positive_file": chosen.positive_file, "negative_file": chosen.negative_file}


def dialogue_files(folder):
    def answers(start, count):
        return [
            test_dialogue.answer(
                n,
                history=[f"turn {k} of {n}" for k in range(n % 40)],
                response=f"{TAILS[n % 4]} {n}",
            )
            for n in range(start, start + count)
        ]

    parts = {"train": (100, 20), "validation": (200, 6), "test": (300, 6)}
    return {
        f"{split}_files": (test_dialogue.write(folder / f"{split}.jsonl", answers(*part)),)
        for split, part in parts.items()
    }


FILES = {"comet": comet_files, "reddit": reddit_files, "dialogue": dialogue_files}
SMALLER = ("--config.task.validation=4", "--config.task.test=4", "--config.task.limit=20")


def finished(name, folder, argument="debug", *more):
    """The folder of a finished run, and what it printed."""
    files = [f"--config.task.{key}={value!r}" for key, value in FILES[name](folder).items()]
    files = [flag.replace("='", "=").removesuffix("'") for flag in files]
    config = f"configs/{name}.py:{argument}"
    result = run_here(folder / "run", *files, *QUICK, *SMALLER, *more, config=config)
    assert result.returncode == 0, result.stderr
    results = json.loads((folder / "run" / "09_report" / "results.json").read_text())
    assert results["task"] == name
    return folder / "run", result.stdout


@pytest.mark.slow
def test_dialogue_runs_with_prompts_of_whole_turns_and_measures_of_copying(tmp_path):
    workdir, said = finished(
        *("dialogue", tmp_path, "data=both,debug", "--config.policy.choose_by=diversity")
    )
    splits = load_result(workdir / "01_load", Splits)
    prompts = [e.prompt for e in (*splits.train, *splits.validation, *splits.test)]
    assert all(dialogue.pair(prompt, "")[0].startswith("Fact ") for prompt in prompts)
    assert "[load] The oldest turns of" in said
    evaluation = load_result(workdir / "08_evaluate", Evaluation)
    assert evaluation.measure_names == ("coverage", "density")
    assert all(len(system.measures) == 2 for system in evaluation.systems)
    assert evaluation.component_names == ("diversity",)
    policy = load_result(workdir / "07_fit_policy", Policy)
    assert {v.metric for v in policy.validations} == {"mean validation diversity"}
    assert "\ncoverage" in said and "\ndensity" in said


@pytest.mark.slow
@pytest.mark.parametrize("data", ["wow", "faithdial"])
def test_dialogue_runs_whatever_it_trains_on(data, tmp_path):
    finished("dialogue", tmp_path, f"data={data},debug")
    _, said = finished("dialogue", tmp_path, f"data={data},debug")
    assert "already done" in said and "running" not in said


@pytest.mark.slow
def test_comet_runs_and_is_tested_on_the_best_tail_of_each_prompt(tmp_path):
    workdir, said = finished("comet", tmp_path, "debug", "--config.score.best=('test',)")
    scored = load_result(workdir / "02_score", ScoredSplits)
    assert len(scored.test) == 4 and len(scored.train) == 40
    assert "[score] test: the best response to each prompt stays, 4 of 8" in said
    evaluation = load_result(workdir / "08_evaluate", Evaluation)
    assert [one.name for one in evaluation.sets] == ["xWant"]


@pytest.mark.parametrize("sign", ["pos", pytest.param("neg", marks=pytest.mark.slow)])
def test_reddit_trains_on_one_sign_and_is_tested_on_both(sign, tmp_path):
    workdir, _ = finished("reddit", tmp_path, f"sign={sign},debug")
    splits = load_result(workdir / "01_load", Splits)
    signs = {"positive", "negative"}
    assert {e.source for e in splits.train} <= signs and len({e.source for e in splits.train}) == 1
    assert splits.train[0].source.startswith(sign) and len(splits.test) == 8
    evaluation = load_result(workdir / "08_evaluate", Evaluation)
    assert {one.name for one in evaluation.sets} == signs
    assert np.isfinite(evaluation.systems[2].reward.mean)
