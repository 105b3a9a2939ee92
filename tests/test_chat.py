"""A small run as a person meets it: the words that it begins with, and the chat with its models."""

import builtins
import dataclasses
import json
import re

import pytest

from alol_jax.chat import Answer, chat, open_chat, parse, shown
from alol_jax.errors import UserError
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.workdir import finished_stage
from alol_jax.types import Evaluation
from tests.running import SMALL, run_here
from tests.tiny_run import fitted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run: its workdir, and the lines that it printed."""
    workdir = tmp_path_factory.mktemp("seen") / "run"
    result = run_here(workdir, *SMALL, "--config.reference.epochs=2")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress where no terminal is
    return workdir, result.stdout.splitlines()


@pytest.fixture(scope="module")
def opened(finished):
    return open_chat(finished[0])


def test_a_run_begins_with_what_it_will_do_and_says_its_time_after_three_steps(finished):
    workdir, lines = finished
    first = next(n for n, line in enumerate(lines) if line.startswith("this run, stage by stage"))
    assert first == 1 and lines[first + 6].endswith("is said once a training step was timed")
    timed = [line for line in lines if "a step takes" in line]
    assert timed[0].startswith("[fit_reference] ") and "to the end of the run" in timed[0]
    logged = (workdir / "03_fit_reference" / "metrics.jsonl").read_text().splitlines()
    assert f"the {len(logged) - 3} steps from here" in timed[0]
    assert json.loads(logged[-1])["step"] == len(logged)


def test_the_answers_and_their_rewards_are_those_of_the_evaluation(finished, opened):
    stored = load_result(finished_stage(finished[0], "evaluate").folder, Evaluation)
    for n in range(3):
        answers = opened.ask(stored.policy["prompt"][n])
        for name, rows in (("reference", stored.reference), ("policy", stored.policy)):
            assert answers[name].text == rows["response"][n]
            assert answers[name].reward == pytest.approx(rows["reward"][n], abs=1e-9)
            assert answers[name].components == pytest.approx(rows["components"][n], abs=1e-9)


def test_a_model_finds_its_own_answer_as_likely_as_itself(opened):
    one, other = (fitted(opened.sampler.lm, seed).trained for seed in (1, 2))
    same = dataclasses.replace(opened, models={"reference": one, "policy": one})
    answers = same.ask("how are you?")
    assert answers["reference"] == answers["policy"] and answers["policy"].ratio == 0.0
    two = dataclasses.replace(opened, models={"reference": one, "policy": other})
    answers = two.ask("how are you?")
    assert answers["reference"].text != answers["policy"].text
    assert answers["reference"].ratio < 0.0 < answers["policy"].ratio


def test_one_prompt_is_answered_and_the_program_ends(finished, capsys):
    chat(parse([str(finished[0]), "--prompt=how are you?"]))
    out = capsys.readouterr().out
    assert re.search(r"^reference +policy$", out, re.MULTILINE)
    assert len(re.findall(r"reward \d\.\d{3} \(positivity", out)) == 2
    assert len(re.findall(r"log π/π_ref [+-]\d", out)) == 2


def test_lines_are_answered_one_by_one_until_the_end(finished, monkeypatch, capsys):
    typed = iter(["hello", "", "\ud800", "bye", "/quit", "never read"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed))
    chat(parse([str(finished[0])]))
    out = capsys.readouterr().out
    assert out.count("log π/π_ref") == 4 and out.count("error: ") == 1
    assert next(typed) == "never read"


def test_a_prompt_that_is_cut_is_said(opened):
    limit = opened.sampler.lm.limits.prompt
    assert opened.cut("short") == ""
    assert f"the first ones are left out, to {limit}" in opened.cut("long " * limit)


def test_without_a_scorer_there_is_no_reward():
    answers = {"reference": Answer("a", -1.0, None, ()), "policy": Answer("b", 2.5, None, ())}
    text = shown(answers, (), width=60)
    assert "reward" not in text and "log π/π_ref +2.50" in text


@pytest.mark.parametrize("words", [["{}"], ["{}", "--wat"], []])
def test_bad_input_is_one_line(words, tmp_path):
    said = "has no finished fit_policy|unrecognized arguments: --wat|are required: WORKDIR"
    with pytest.raises(UserError, match=said) as refused:
        chat(parse([word.format(tmp_path) for word in words]))
    assert "\n" not in str(refused.value)
