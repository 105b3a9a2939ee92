"""load: the promises that every task keeps are checked for every task."""

import dataclasses

import pytest

from alol_jax.stages.load import load
from alol_jax.types import Example, Splits, StageContext, Task, UserError


def _example(name: str) -> Example:
    return Example(name, f"prompt {name}", ("yes", "no way"), "s")


def _load(tmp_path, train, validation, test, said=None):
    splits = Splits(tuple(train), tuple(validation), tuple(test), notes=("Dropped rows: 3.",))
    task = Task("toy", lambda options: splits, lambda options: (), "{prompt}", (), ())
    said = [] if said is None else said
    context = StageContext(tmp_path, lambda: False, said.append, False)
    assert load(task, None, (), context=context) is splits


def test_good_splits_pass_with_a_line_per_split_and_the_notes(tmp_path):
    said = []
    _load(tmp_path, [_example("a"), _example("b")], [_example("c")], [_example("d")], said)
    assert said == [
        "train: 2 prompts, 4 responses (median 1.5 words)",
        "validation: 1 prompts, 2 responses (median 1.5 words)",
        "test: 1 prompts, 2 responses (median 1.5 words)",
        "Dropped rows: 3.",
    ]


@pytest.mark.parametrize("empty", ["train", "validation", "test"])
def test_an_empty_split_is_a_clear_error(tmp_path, empty):
    named = {"train": [_example("a")], "validation": [_example("b")], "test": [_example("c")]}
    with pytest.raises(UserError, match=f"task 'toy' has no {empty} examples"):
        _load(tmp_path, **{**named, empty: []})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": " \n"}, "validation example 'b': the prompt is empty"),
        ({"responses": ()}, "validation example 'b': a response is empty or missing"),
        ({"responses": ("a", " ")}, "validation example 'b': a response is empty or missing"),
        ({"rewards": (1.0,)}, "validation example 'b': 1 rewards for 2 responses"),
        ({"id": "a"}, "the id 'a' occurs twice \\(train and validation\\)"),
        ({"prompt": "prompt a"}, "the prompt 'prompt a' is in train and in validation \\(id 'b'"),
    ],
)
def test_a_broken_promise_names_the_example(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        _load(
            tmp_path,
            [_example("a")],
            [dataclasses.replace(_example("b"), **changed)],
            [_example("c")],
        )
