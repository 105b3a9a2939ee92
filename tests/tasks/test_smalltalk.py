"""smalltalk: the installed corpus, counted, and what its conversations mean."""

import importlib.resources
import sys

import pytest
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.tasks import smalltalk
from alol_jax.tasks.registry import TASKS, get_task
from alol_jax.tasks.splits import normalise

pytest.importorskip("chatterbot_corpus")


def _options(name="smalltalk", template="", test=128, max_words=64, limit=0) -> ConfigDict:
    return ConfigDict(
        dict(
            name=name,
            template=template,
            validation=64,
            test=test,
            max_words=max_words,
            limit=limit,
        )
    )


@pytest.fixture(scope="module")
def splits():
    return smalltalk.load(_options())


def _all(splits):
    return (*splits.train, *splits.validation, *splits.test)


@pytest.fixture(scope="module")
def examples(splits):
    return {normalise(e.prompt): e for e in _all(splits)}


def test_the_corpus_has_the_counted_prompts_and_responses(splits, examples):
    assert len(examples) == 740
    assert sum(len(example.responses) for example in examples.values()) == 1078
    assert (len(splits.validation), len(splits.test)) == (64, 128)
    assert splits.notes == (
        "Dropped malformed conversations (no list of texts): 1.",
        "Dropped responses with a code block: 184.",
        "Merged repetitions of an exchange: 1043.",
    )


def test_no_response_of_a_prompt_occurs_twice(examples):
    assert all(len(set(e.responses)) == len(e.responses) for e in examples.values())


def test_ids_and_prompts_are_unique_and_texts_are_single_lines(examples):
    assert len({example.id for example in examples.values()}) == len(examples)
    for example in examples.values():
        for text in (example.prompt, *example.responses):
            assert text == " ".join(text.split()) != ""


def test_emotion_gives_alternative_responses_to_its_first_line(examples):
    example = examples["you are arrogant"]
    assert example.source == "emotion"
    assert len(example.responses) == 4
    assert normalise("Arrogance is not one of my emotions.") not in examples


def test_computers_gives_alternative_responses_to_its_first_line(examples):
    assert len(examples["what is a microprocessor"].responses) >= 5


def test_conversations_answer_line_by_line(examples):
    assert "No it is not. The cake is delicious." in examples["the cake is a lie"].responses
    follow_up = examples[normalise("No it is not. The cake is delicious.")]
    assert "What else is delicious?" in follow_up.responses


def test_literature_asks_twice_and_answers_twice(examples):
    assert examples["who is geoffrey chaucer"].responses == (
        "Chaucer is best known for The Canterbury Tales.",
        "The author of The Canturbury Tales.",
    )


def test_the_forms_read_four_lines_differently():
    lines = ["a", "b", "c", "d"]
    assert smalltalk.dialogue(lines) == (("a", "b"), ("b", "c"), ("c", "d"))
    assert smalltalk.alternatives(lines) == (("a", "b"), ("a", "c"), ("a", "d"))
    assert smalltalk.exchanges(lines) == (("a", "b"), ("c", "d"))


def test_long_responses_are_dropped_and_counted():
    splits = smalltalk.load(_options(max_words=5))
    responses = [r for e in _all(splits) for r in e.responses]
    assert max(len(response.split()) for response in responses) == 5
    assert any(note.startswith("Dropped responses of more than 5 words: ") for note in splits.notes)


def test_a_limit_keeps_the_test_split(splits):
    limited = smalltalk.load(_options(limit=10))
    assert limited.train == splits.train[:10]
    assert limited.test == splits.test


def test_loading_twice_gives_the_same(splits):
    assert smalltalk.load(_options()) == splits


def test_a_missing_package_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "chatterbot_corpus", None)
    with pytest.raises(UserError, match="pip install chatterbot-corpus==1.3.3"):
        smalltalk.load(_options())


def test_another_version_of_the_corpus_names_the_files_that_differ(tmp_path, monkeypatch):
    (tmp_path / "data" / "english").mkdir(parents=True)
    for stem in [*smalltalk.FORMS, "weather"]:
        (tmp_path / "data" / "english" / f"{stem}.yml").touch()
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(UserError, match="differs in weather: pip install"):
        smalltalk.load(_options())


def test_more_prompts_than_there_are_is_a_clear_error():
    with pytest.raises(UserError, match="740 different prompts"):
        smalltalk.load(_options(test=700))


def test_the_prompt_template_is_chatml():
    task = get_task(_options())
    assert task.template.replace("{prompt}", "Hi") == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_config_may_bring_its_own_template():
    task = get_task(_options(template="Q: {prompt}\nA:"))
    assert task.template == "Q: {prompt}\nA:"
    assert task.rewards == TASKS["smalltalk"].rewards


def test_a_template_without_a_place_for_the_prompt_is_a_clear_error():
    with pytest.raises(UserError, match="task.template='Q:' has no {prompt}"):
        get_task(_options(template="Q:"))


def test_an_unknown_task_names_the_near_miss_or_all_tasks():
    with pytest.raises(
        UserError, match="task.name='smaltalk' is no task: did you mean 'smalltalk'"
    ):
        get_task(_options(name="smaltalk"))
    with pytest.raises(UserError, match="expected one of smalltalk, own"):
        get_task(_options(name="zzz"))
