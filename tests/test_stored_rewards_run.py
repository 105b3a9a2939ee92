"""Whole runs on rows with stored rewards below 0: no scorer, a distilled one, and bad input."""

import json

import pytest

from alol_jax.compare import compare
from alol_jax.paths import path_of
from alol_jax.runs.artifacts import load_result
from alol_jax.types import Answers, ScoredSplits
from tests.running import SMALL, refused, run_here

OWN = "configs/own.py:debug"
GOOD, BAD = "aaaa", "zzzz"


def arguments(folder, rewards=(5.0, -3.0), prompts=36):
    rows = (
        {"prompt": f"prompt {n}", "responses": [GOOD, BAD], "rewards": rewards}
        for n in range(prompts)
    )
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return (*SMALL, f"--config.task.train_file={file}")


DISTIL = (
    "--config.score.distil=True",
    "--config.distill.epochs=8",
    "--config.distill.batch_size=8",
    "--config.distill.optimizer.learning_rate=0.01",
)


def test_a_scorer_from_the_rows_rewards_the_answers_and_chooses_the_step(tmp_path):
    result = run_here(tmp_path / "run", *arguments(tmp_path), *DISTIL, config=OWN)
    assert result.returncode == 0, result.stderr
    scored = load_result(tmp_path / "run" / "02_score", ScoredSplits)
    assert (scored.min_reward, scored.max_reward) == (-3.0, 5.0)
    answers = load_result(tmp_path / "run" / "04_generate", Answers).rows
    assert (answers["reward"] >= -3).all() and (answers["reward"] <= 5).all()
    assert answers["components"].matrix.shape == (len(answers), 1)
    chosen = "the step is chosen by: mean validation reward; the distilled scorer orders 100%"
    assert chosen in result.stdout
    assert "by the stored rewards" in result.stdout
    numbers = json.loads((tmp_path / "run" / "09_report" / "results.json").read_text())
    assert numbers["scorer_agreement"]["order"]["mean"] == 1
    assert numbers["chosen_by"] == ["mean validation reward"]
    assert {"likeness gap", "order of ratio"} <= {one["metric"] for one in numbers["measures"]}
    said = []
    compare([path_of(str(tmp_path / "run"))], tmp_path / "out", against=None, say=said.append)
    assert "likeness gap" in said[0] and "the distilled scorer orders 100%" in said[0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--config.objective.name=wbc",), "the objective wbc weighs each row by its reward, and"),
        (("--config.score.clip=(1.0,0.0)",), "config.score.clip=(1.0, 0.0): expected two finite"),
        (("--config.score.transform=ranks",), "no transform 'ranks': did you mean 'rank'?"),
    ],
)
def test_what_rewards_cannot_do_is_one_line_before_anything_is_trained(tmp_path, more, said):
    result = run_here(tmp_path / "run", *arguments(tmp_path), *more, config=OWN)
    assert said in refused(result)
    assert "fit_reference" not in result.stdout


def test_one_reward_for_all_rows_is_one_line_right_after_score(tmp_path):
    result = run_here(tmp_path / "run", *arguments(tmp_path, (1.0, 1.0)), config=OWN)
    assert "training rewards are 1, and the objective a_lol learns from" in refused(result)
    assert "[score] took" in result.stdout and "fit_reference" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["wbc", "dpo", "pro"])
def test_every_kind_of_objective_has_the_measures(tmp_path, objective):
    more = (f"--config.objective.name={objective}", "--config.score.transform=minmax")
    result = run_here(tmp_path / "run", *arguments(tmp_path), *more, config=OWN)
    assert result.returncode == 0, result.stderr
    assert "reward-weighted logp of validation responses" in result.stdout
    assert "likeness gap" in result.stdout and "order of ratio" in result.stdout
