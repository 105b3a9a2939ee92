"""load: the promises that every task keeps are checked for every task."""

import dataclasses
import types

import pytest
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.stages.load import counter_of, load, read_splits, swap_responses
from alol_jax.tables.table import Table
from alol_jax.tasks.registry import get_task
from alol_jax.types import Example, Limits, Splits, StageContext, Task
from tests.tasks.own_data import options, write
from tests.text.chat_templates import GEMMA, TEMPLATES, tokenizer_with


def _example(name: str) -> Example:
    return Example(name, f"prompt {name}", ("yes", "no way"), "s")


def _load(tmp_path, train, validation, test, said=None):
    tables = (Table.of(rows, Example) for rows in (train, validation, test))
    splits = Splits(*tables, notes=("Dropped rows: 3.",))
    task = Task("toy", lambda *given: splits, lambda options: (), "{prompt}", (), ())
    said = [] if said is None else said
    context = StageContext(tmp_path, lambda: False, said.append)
    options = ConfigDict({"swapped": 0.0})
    assert load(task, options, (), None, context=context) is splits


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


def _many(count: int) -> Splits:
    """Prompts with one to three responses, each of which names its prompt."""
    rows = (
        Example(f"{n}", f"prompt {n}", tuple(f"{n}.{k}" for k in range(1 + n % 3)), "s", (1.0,))
        for n in range(count)
    )
    train = Table.of(rows, Example)
    return Splits(train, train[:1], train[1:2], notes=("a note",))


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_swapped_responses_go_to_other_prompts_and_none_is_lost(share):
    splits = _many(30)
    noisy = swap_responses(splits, share)
    before = [text for one in splits.train for text in one.responses]
    after = [text for one in noisy.train for text in one.responses]
    assert sorted(before) == sorted(after)
    assert [len(one.responses) for one in noisy.train] == [
        len(one.responses) for one in splits.train
    ]
    moved = sum(not text.startswith(f"{one.id}.") for one in noisy.train for text in one.responses)
    assert moved == round(share * len(before))
    assert all(one.rewards == () for one in noisy.train)
    assert (noisy.validation, noisy.test) == (splits.validation, splits.test)
    said = f"{moved} of {len(before)} training responses were given to other prompts."
    assert noisy.notes[-1] == said


def test_gold_responses_stay_with_their_prompts():
    splits = _many(30)
    gold = swap_responses(splits, 1.0).gold
    assert [(row.prompt, row.responses) for row in gold] == [
        (one.prompt, one.responses) for one in splits.train
    ]
    assert len(splits.gold) == 0


def test_nothing_swapped_is_nothing_changed():
    splits = _many(30)
    assert swap_responses(splits, 0.0) is splits


def test_more_noise_keeps_what_less_noise_moved():
    less, more = (
        {
            one.id
            for one, was in zip(
                swap_responses(_many(30), share).train, _many(30).train, strict=True
            )
            if one.responses != was.responses
        }
        for share in (0.25, 0.5)
    )
    assert less < more


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_one_clear_line(share):
    with pytest.raises(UserError, match="config.task.swapped=.* must be a share from 0 to 1"):
        swap_responses(_many(3), share)


# the model's own chat template


def _rows(tmp_path, *conversations):
    rows = [
        {"messages": [*({"role": r, "content": t} for r, t in said), ANSWER]}
        for said in conversations
    ]
    return write(tmp_path / "mine.jsonl", rows)


ANSWER = {"role": "assistant", "content": "yes"}
QUESTIONS = [[("user", f"tea {n}?")] for n in range(4)]


def _read(tmp_path, template, *conversations):
    given = options(_rows(tmp_path, *conversations), template="chat", max_tokens=0)
    tokenizer = tokenizer_with(template, tmp_path / "t")
    task = get_task(given)
    lm = types.SimpleNamespace(tokenizer=tokenizer, limits=Limits(99, 9))
    return read_splits(task, given, counter_of(lm, task, given))


def test_turns_that_the_chat_template_refuses_are_one_line_at_load(tmp_path):
    system = [("system", "Be brief."), ("user", "And milk?")]
    with pytest.raises(UserError) as caught:
        _read(tmp_path, GEMMA, *QUESTIONS, system)
    said = str(caught.value)
    assert (
        "\n" not in said and "example 'train_file:5': the model's chat template does not " in said
    )
    assert "take the turns system, user: System role not supported: leave such rows out" in said
    splits = _read(tmp_path / "other", TEMPLATES["smollm2"][0], *QUESTIONS, system)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 5


@pytest.mark.parametrize(
    ("template", "named"),
    [("{% if %}", "chat template is damaged"), (None, "the model has no chat template")],
)
def test_a_template_that_cannot_be_used_is_one_line_at_load(template, named, tmp_path):
    with pytest.raises(UserError, match=named):
        _read(tmp_path, template, *QUESTIONS)
