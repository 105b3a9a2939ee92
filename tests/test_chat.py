"""The chat with the models of a run: their answers, rewards and log-ratios, and how it ends."""

import builtins
import dataclasses
import re

import jax
import pytest

from alol_jax.chat import Answer, chat, open_chat, parse, shown
from alol_jax.decoding.answers import one_per_prompt
from alol_jax.errors import UserError
from alol_jax.models.language_model import open_language_model
from alol_jax.rewards.transform import line_to
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.workdir import Run
from alol_jax.types import Policy, ScoredSplits, Watch
from configs import quickstart
from tests.tiny_run import fitted, mesh_of, scored_splits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir with what a chat reads: scored rows, and both fits with random adapters."""
    config = quickstart.get_config("debug")
    config.decode.max_new_tokens = 4
    config.rewards.safety = 0.0
    folder, lm = tmp_path_factory.mktemp("chat"), open_language_model(config.model, mesh_of(1))
    numbers = {"score": 2, "fit_reference": 3, "fit_policy": 7}
    options = {"allowed": numbers, "redo": False, "stopping": lambda: False}
    run = Run(folder, numbers, config, say=lambda line: None, **options)

    def score(*, context) -> ScoredSplits:
        return scored_splits()

    def fit_reference(lm, *, context) -> Policy:
        return fitted(lm, 1)

    def fit_policy(lm, *, context) -> Policy:
        return fitted(lm, 2)

    run.stage("score", score)
    run.stage("fit_reference", fit_reference, lm)
    run.stage("fit_policy", fit_policy, lm)
    return folder


@pytest.fixture(scope="module")
def opened(finished):
    return open_chat(finished)


def replaced(kind, result):
    """`load_result`, but with another result of one kind."""
    return lambda folder, wanted: result if wanted is kind else load_result(folder, wanted)


def test_the_answers_are_those_of_a_batch_and_so_are_their_rewards(opened):
    """As `evaluate` answers: all prompts side by side."""
    rows = one_per_prompt(scored_splits().test)
    batch = dataclasses.replace(opened.sampler, batch_size=4)
    key, watch = jax.random.key(0), Watch("answers")
    told = [opened.ask(prompt) for prompt in rows["prompt"]]
    for name, trained in opened.models.items():
        answered = batch.answer(trained, rows, opened.reward, key=key, watch=watch)
        for one, row in zip(told, answered, strict=True):
            assert one[name].text == row.response
            assert one[name].reward == pytest.approx(row.reward, abs=1e-9)
            assert one[name].components == pytest.approx(row.components, abs=1e-9)


def test_a_reward_is_on_the_scale_of_the_runs_answers(finished, opened, monkeypatch):
    on_scale = dataclasses.replace(
        scored_splits(), of_answers=line_to(-9.0, 9.0, slope=2.0, start=-5.0)
    )
    monkeypatch.setattr("alol_jax.chat.load_result", replaced(ScoredSplits, on_scale))
    for name, answer in open_chat(finished).ask("how are you?").items():
        plain = opened.ask("how are you?")[name].reward
        assert answer.reward == pytest.approx(2.0 * plain - 5.0)


def test_a_model_finds_its_own_answer_as_likely_as_itself(opened):
    same = dataclasses.replace(
        opened, models=dict.fromkeys(("reference", "policy"), opened.models["reference"])
    )
    answers = same.ask("how are you?")
    assert answers["reference"] == answers["policy"] and answers["policy"].ratio == 0.0
    answers = opened.ask("how are you?")
    assert answers["reference"].text != answers["policy"].text
    assert answers["reference"].ratio < 0.0 < answers["policy"].ratio


def test_one_prompt_is_answered_and_the_program_ends(finished, capsys):
    chat(parse([str(finished), "--prompt=how are you?"]))
    out = capsys.readouterr().out
    assert re.search(r"^reference +policy$", out, re.MULTILINE)
    assert len(re.findall(r"reward \d\.\d{3} \(positivity", out)) == 2
    assert len(re.findall(r"log π/π_ref [+-]\d", out)) == 2


def test_lines_are_answered_one_by_one_until_the_end(finished, monkeypatch, capsys):
    typed = iter(["hello", "", "\ud800", "bye", "/quit", "never read"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed))
    chat(parse([str(finished)]))
    out = capsys.readouterr().out
    assert out.count("log π/π_ref") == 4 and out.count("error: ") == 1
    assert next(typed) == "never read"


def test_a_prompt_that_is_cut_is_said(opened):
    limit = opened.sampler.lm.limits.prompt
    assert opened.cut("short") == ""
    assert f"read the last {limit} tokens" in opened.cut("long " * limit)


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
