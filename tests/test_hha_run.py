"""hha through the whole program, on invented rows in the published form."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from alol_jax.compare import compare
from alol_jax.errors import UserError
from alol_jax.rewards.reward import Scoring, nothing_to_note
from alol_jax.runs.artifacts import load_result
from alol_jax.stages.score import score
from alol_jax.tasks import hha
from alol_jax.types import Evaluation, Policy, Splits, TrainingTable
from configs import common
from tests.running import SMALL, run_here
from tests.tasks.hha_cases import row, task_options, transcripts, write
from tests.tiny_run import context

GOOD = ("That is a great idea, friend.", "I love it.", "Happy to help!", "Yes.")
BAD = ("That is an awful idea.", "I hate it.", "No.", "I love it, a great and happy day!")
EQUAL = ("Blue.", "Green.")
SETS = ("harmless_base", "helpful_base")


def rows(word, count):
    """Pairs in which the preferred response is the friendlier one."""
    kinds = len(GOOD)
    return [
        row(f"{word} {n}?", (GOOD[n % kinds], BAD[n // 2 % kinds]), (1.5 - n % 3, -1.0))
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The published files, much smaller, as the config is told of them; with the published faults:
    a dev row that is a test row, responses that end in a colon or say the same, lone responses,
    equal rewards."""
    folder = tmp_path_factory.mktemp("data")
    train = [
        *rows("train", 40),
        row("colon?", ("Here is a list:", "No.")),
        row("alone?", ("I love this great day.",), (1.0,)),
        row("same?", ("Yes.", "Yes.")),
        row("equal?", EQUAL, (0.5, 0.5)),
    ]
    files = {"train": train, "dev": [*rows("dev", 7), *rows("helpful_base", 1)]}
    files |= {name: rows(name, 8) for name in SETS}
    paths = {name: write(folder / f"{name}.json", those) for name, those in files.items()}
    bad = folder / "bad_test_indices.json"
    bad.write_text('{"harmless_base.json": [2], "helpful_online.json": [0]}')
    return (
        f"--config.task.train_files=({paths['train']!r},)",
        f"--config.task.validation_files=({paths['dev']!r},)",
        f"--config.task.test_files=({paths[SETS[0]]!r},{paths[SETS[1]]!r})",
        f"--config.task.bad_test_indices={bad}",
        *(argument for argument in SMALL if "task" not in argument),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, flags):
    """A run of a_lol_seq, the objective of the config, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run_here(workdir, *flags, config="configs/hha.py:debug")
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_a_run_goes_from_published_rows_to_figures_of_each_test_set(finished):
    workdir, _ = finished
    told = json.loads((workdir / "09_report" / "results.json").read_text())
    assert (told["task"], told["objective"]) == ("hha", "a_lol_seq")
    evaluation = load_result(workdir / "08_evaluate", Evaluation)
    assert [(s.name, s.prompts) for s in evaluation.sets] == [(SETS[0], 7), (SETS[1], 7)]
    for found in evaluation.sets:
        for name in ("data", "reference", "policy"):
            of_set = [r for r in getattr(evaluation, name) if r.source == found.name]
            (system,) = (system for system in found.systems if system.name == name)
            assert system.reward.mean == pytest.approx(np.mean([r.reward for r in of_set]))
        assert len([r for r in evaluation.data if r.source == found.name]) == 2 * found.prompts
    assert {r.prompt.split()[0] for r in evaluation.policy} == {"###"}
    assert evaluation.kl is not None


def test_the_preferred_response_of_a_prompt_comes_first_and_is_what_is_drawn(finished):
    workdir, said = finished
    table = load_result(workdir / "06_select", TrainingTable)
    prompts = {}
    for one in table.rows:
        prompts.setdefault(one.example_id, []).append(one)
    pairs = [those for those in prompts.values() if len(those) == 2]
    assert len(pairs) == 41
    for chosen, rejected in pairs:
        texts = (chosen.response_text, rejected.response_text)
        assert texts == EQUAL or (texts[0] in GOOD and texts[1] in BAD)
    drawn = sum(those[0].kept for those in prompts.values())
    assert drawn < sum(one.kept for one in table.rows)
    assert f"[fit_policy] {drawn} items, good_priority sampling" in said


def test_what_is_wrong_with_the_rows_is_counted_not_hidden(finished):
    workdir, said = finished
    for note in (
        "Left out test rows that task.bad_test_indices lists: 1.",
        "Left out test rows whose prompt is a validation prompt: 1.",
        "Dropped train rows with a response that ends with ':': 1.",
        "Repeated responses left out of train rows: 1.",
        "Train rows with one response only: 2.",
        "Train rows whose stored rewards are equal: 1.",
        "Rows in task.bad_test_indices of helpful_online.json, which is no test file: 1.",
    ):
        assert f"[load] {note}" in said
    assert "[score] train: stored rewards are ignored, the weights ask for positivity" in said
    assert "warning: no answer has the stop sequence '###'" in said


def test_a_comparison_has_a_column_for_each_test_set(finished, tmp_path):
    workdir, _ = finished
    compare([workdir], tmp_path / "out", against=None, say=lambda line: None)
    lines = (tmp_path / "out" / "compare.csv").read_text().splitlines()
    for name in SETS:
        assert any(f",{name}," in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "pro", "ppo"])
def test_the_baselines_start_from_the_same_reference(objective, finished, flags, tmp_path):
    workdir, _ = finished
    for folder in ("01_load", "02_score", "03_fit_reference"):
        shutil.copytree(workdir / folder, tmp_path / "run" / folder)
    config = f"configs/hha.py:debug,objective={objective}"
    result = run_here(tmp_path / "run", *flags, config=config)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("already done") == 3
    evaluation = load_result(tmp_path / "run" / "08_evaluate", Evaluation)
    undone = load_result(workdir / "08_evaluate", Evaluation)
    assert [r.response for r in evaluation.reference] == [r.response for r in undone.reference]
    assert [found.name for found in evaluation.sets] == list(SETS)
    if objective == "ppo":
        policy = load_result(tmp_path / "run" / "07_fit_policy_online", Policy)
        assert "[fit_policy_online] 4 rollouts of 8 of 43 prompts" in result.stdout
    else:
        policy = load_result(tmp_path / "run" / "07_fit_policy", Policy)
        assert (
            "41 prompts with 2 responses ranked by data; left out: 2 with fewer responses; equal "
            "rewards: 1 (kept)"
        ) in result.stdout
    assert policy.cost.tokens > 0 and policy.cost.flops > 0


# rewards of published rows


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """Stands in for the published one: says of a response what is told here."""

    scores: dict
    path: str = "OpenAssistant/some-reward-model"
    fingerprint: str = "f00"
    bounds: tuple = (0.0, 1.0)
    notes = staticmethod(nothing_to_note)

    def __call__(self, prompts, responses):
        return np.array([self.scores[text] for text in responses], np.float64)


def loaded(tmp_path, *train, test=None) -> Splits:
    """Splits of these rows, with a row of another prompt in each of the held-out ones."""
    return hha.load(
        task_options(
            [write(tmp_path / "t.jsonl", train)],
            validation_files=[write(tmp_path / "v.jsonl", [row("Is it late?")])],
            test_files=[write(tmp_path / "x.jsonl", [test or row("Is it early?")])],
        )
    )


def scored(tmp_path, splits, model=None, *, said=None, stored=("train", "validation")):
    """The stage, with the model's reward alone, or with none."""
    weights = {spec.name: 0.0 for spec in hha.HHA.rewards} | ({"train": 1.0} if model else {})
    options = common.get_config().score
    options.stored = stored
    scoring = Scoring(hha.HHA.rewards, {"train": model} if model else {}, weights)
    return score(scoring, options, splits, context=context(tmp_path, said=said))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_stored_scores_are_on_the_scale_of_the_model_that_gave_them(tmp_path):
    said = []
    splits = loaded(tmp_path, row(reward=(2.0, -3.0)), row("b?", ("Aha.", "Oh."), (0.0, 1.0)))
    raw = {"Yes.": 2.0, "No.": -3.0, "Aha.": 0.0, "Oh.": 1.0}
    model = RewardModel({text: sigmoid(logit) for text, logit in raw.items()})
    found = scored(tmp_path, splits, model, said=said, stored=("train",))
    assert said[0].startswith("train: stored rewards are used; 4 were scored again")
    assert {r.response: r.reward for r in found.train} == pytest.approx(model.scores)
    assert found.max_reward == 1.0


def test_a_stored_score_that_the_model_contradicts_is_shown_with_its_row(tmp_path):
    splits = loaded(tmp_path, row(reward=(2.0, -3.0)))
    with pytest.raises(UserError) as caught:
        scored(tmp_path, splits, RewardModel({"Yes.": sigmoid(2.0), "No.": 0.9}), stored=("train",))
    said = str(caught.value)
    assert said.startswith("1 of 2 stored train rewards differ by more than 0.01 from what train")
    assert "train/t:1 'No.': stored 0.047, scored 0.900" in said and "\n" not in said


def test_a_reward_model_that_gives_nan_is_one_line_with_the_response(tmp_path):
    splits = loaded(tmp_path, transcripts())
    with pytest.raises(UserError) as caught:
        scored(tmp_path, splits, RewardModel({"No.": 0.5, "Yes.": np.nan}), stored=())
    said = str(caught.value)
    assert said.startswith("scorer 'OpenAssistant/some-reward-model' gave nan for 'Yes.'")
    assert "\n" not in said


def test_transcripts_without_a_scorer_are_one_line(tmp_path):
    with pytest.raises(
        UserError, match="train example 'train/t:1' has no stored reward .* and every"
    ):
        scored(tmp_path, loaded(tmp_path, transcripts()))
