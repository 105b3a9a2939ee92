"""Two of the text tasks through the whole program, on invented rows in their raw form."""

import json

import pytest

from alol_jax.runs.artifacts import load_result
from alol_jax.types import Evaluation, Policy, ScoredSplits
from tests import wordnet
from tests.running import SMALL, run_here

SMALL = tuple(flag for flag in SMALL if "task" not in flag)
THINGS = ("dog", "cat", "bird", "horse")
ACTS = ("run", "sleep", "jump", "sing")
PLACES = ("field", "house", "tree", "road")


def dialogue(n):
    turns = [f"{THINGS[(n + i) % 4]} {i} or {ACTS[n % 4]} {n} ?" for i in range(7)]
    return {"dialog": turns}


def sentences(n):
    thing, act, place = THINGS[n % 4], ACTS[n // 4 % 4], PLACES[n // 16]
    return {"concepts": [thing, act, place], "target": f"A {thing} will {act} near the {place}."}


def flags(folder, make):
    parts = {"train": range(24), "validation": range(24, 32), "test": range(32, 40)}
    for split, numbers in parts.items():
        text = "".join(json.dumps(make(n)) + "\n" for n in numbers)
        (folder / f"{split}.jsonl").write_text(text)
    return [
        *SMALL,
        *(f"--config.task.{part}_files=('{folder / part}.jsonl',)" for part in parts),
        "--config.model.max_prompt=320",
    ]


def result(workdir, stage, kind):
    (folder,) = workdir.glob(f"*_{stage}")
    return load_result(folder, kind)


@pytest.mark.slow
def test_a_dialogue_run_is_chosen_by_the_likelihood_of_the_next_turn(tmp_path):
    said = flags(tmp_path, dialogue)
    done = run_here(tmp_path / "run", *said, config="configs/seq2text.py:data=daily_dialog,debug")
    assert done.returncode == 0, done.stderr
    policy = result(tmp_path / "run", "fit_policy", Policy)
    assert policy.validations[0].metric == "logp per token of validation responses"
    assert len(result(tmp_path / "run", "score", ScoredSplits).train) == 48
    best = max(policy.validations, key=lambda one: one.score)
    assert policy.step == best.step and best.score < 0


@pytest.mark.slow
def test_sentences_from_words_are_paid_by_coverage_and_measured_by_meteor(tmp_path, monkeypatch):
    wordnet.stand_in(monkeypatch)
    done = run_here(
        tmp_path / "run",
        *flags(tmp_path, sentences),
        "--config.rewards.coverage=1",
        "--config.evaluate.measures=('meteor',)",
        "--config.policy.choose_by=meteor",
        config="configs/seq2text.py:data=common_gen,debug",
    )
    assert done.returncode == 0, done.stderr
    assert "meteor" in done.stdout
    scored = result(tmp_path / "run", "score", ScoredSplits)
    assert "coverage" in scored.component_names
    assert set(scored.train["components"].matrix[:, -1]) == {1.0}
    evaluation = result(tmp_path / "run", "evaluate", Evaluation)
    assert evaluation.systems[0].measures == (None,)
    assert all(system.measures[0].mean >= 0 for system in evaluation.systems[1:])
    policy = result(tmp_path / "run", "fit_policy", Policy)
    assert policy.validations[0].metric == "mean validation METEOR"


@pytest.mark.slow
def test_a_run_that_needs_wordnet_stops_before_anything_is_trained(tmp_path, monkeypatch):
    wordnet.missing(monkeypatch)
    done = run_here(
        tmp_path / "run",
        *flags(tmp_path, sentences),
        "--config.evaluate.measures=('meteor',)",
        config="configs/seq2text.py:data=common_gen,debug",
    )
    assert done.returncode == 2 and "python -m nltk.downloader wordnet" in done.stderr
    assert not list((tmp_path / "run").glob("0*"))
