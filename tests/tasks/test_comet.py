"""comet: prompts to the byte, tails of a prompt together, what is left out, the critic's pairs."""

import json
import random

import pytest
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.tasks import comet
from alol_jax.tasks.registry import get_task


def inference(head="PersonX eats", relation="xWant", tail="to sleep", split="train", p=0.5):
    """A row of ATOMIC10X."""
    fields = {"head": head, "relation": relation, "tail": tail, "split": split}
    return fields | {"rec_0.5": True, "rec_0.9": False, "p_valid_model": p}


HELD_OUT = (
    inference("PersonX sings", split="val", p=0.25),
    inference("PersonX runs", split="test", p=0.75),
)


def options(folder, rows, *, tsv=None, **changes):
    """Options of the task for these rows, and for these lines of ATOMIC-2020."""
    train = folder / "ATOMIC10X.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    test = folder / "test.tsv"
    if tsv is not None:
        test.write_text("".join(line + "\n" for line in tsv), encoding="utf-8")
    files = {"train_file": str(train), "test_file": "" if tsv is None else str(test)}
    fields = {"name": "comet", "template": "", "validation": 0, "test": 0, "limit": 0}
    return ConfigDict(fields | files | changes)


def load(folder, *rows, tsv=None, **changes):
    return comet.load(options(folder, (*rows, *HELD_OUT), tsv=tsv, **changes))


def refused(folder, *rows, message, **changes):
    with pytest.raises(UserError, match=message) as caught:
        load(folder, *rows, **changes)
    assert "\n" not in str(caught.value)


# prompts and responses


def test_a_prompt_has_head_and_relation_between_marks_and_a_space_at_its_end(tmp_path):
    splits = load(tmp_path, inference(" PersonX eats an egg ", "HinderedBy", " There is none. "))
    (example,) = splits.train
    assert example.prompt == (
        "<head> PersonX eats an egg </head> <relation> HinderedBy </relation> [GEN] "
    )
    assert example.responses == (" There is none. ",)  # as it stands
    assert example.source == "HinderedBy" and comet.COMET.template == "{prompt}"


def test_all_tails_of_a_head_and_relation_are_one_example_with_their_stored_rewards(tmp_path):
    splits = load(
        tmp_path,
        inference(tail="to sleep", p=0.5),
        inference(tail="a bed", relation="xNeed", p=0.125),
        inference(tail="to pay", p=1),
        inference("PersonX reads", tail="a lamp", p=0.0),
        inference(tail="to wash up", p=0.75),
    )
    assert [e.responses for e in splits.train] == [
        ("to sleep", "to pay", "to wash up"),
        ("a bed",),
        ("a lamp",),
    ]
    assert [e.rewards for e in splits.train] == [(0.5, 1.0, 0.75), (0.125,), (0.0,)]
    assert [e.rewards for e in splits.validation] == [(0.25,)]
    ids = [e.id for side in (splits.train, splits.validation, splits.test) for e in side]
    assert len(set(ids)) == len(ids) == 5
    assert splits.notes == ()


def test_test_rows_are_those_of_people_where_a_file_of_them_is_named(tmp_path):
    gold = ("PersonX cooks\txNeed\tto shop", "", "PersonX cooks\txNeed\tto buy an egg")
    splits = load(tmp_path, inference(), tsv=gold)
    (example,) = splits.test
    assert example.prompt == "<head> PersonX cooks </head> <relation> xNeed </relation> [GEN] "
    assert example.responses == ("to shop", "to buy an egg") and example.rewards == ()


def test_without_such_a_file_they_are_those_of_the_generated_data(tmp_path):
    (example,) = load(tmp_path, inference()).test
    assert "PersonX runs" in example.prompt and example.rewards == (0.75,)


def test_a_byte_order_mark_is_not_part_of_the_first_head(tmp_path):
    splits = load(tmp_path, inference(), tsv=("\ufeffPersonX cooks\txNeed\tto shop",))
    assert splits.test[0].prompt.startswith("<head> PersonX cooks </head>")


# what is left out, and counted


def test_prompts_of_validation_and_test_are_no_training_prompts(tmp_path):
    splits = load(
        tmp_path,
        inference("PersonX sings", tail="to dance"),
        inference("personx  runs", tail="to rest"),  # as prompts are compared, the same
        inference("PersonX sings", split="test", tail="to hum"),
        inference(),
    )
    assert [e.prompt for e in splits.train] == [
        "<head> PersonX eats </head> <relation> xWant </relation> [GEN] "
    ]
    assert len(splits.validation) == len(splits.test) == 1
    assert set(splits.notes) == {
        "Dropped test prompts that are validation prompts: 1.",
        "Dropped train prompts that are validation or test prompts: 2.",
    }


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (inference(relation="AtLocation"), "of a relation other than the seven"),
        (inference(relation="xwant"), "of a relation other than the seven"),
        (inference(head="  "), "with an empty head or tail"),
        (inference(tail=" \t"), "with an empty head or tail"),
        (inference(head="PersonX writes </head>"), "whose head contains a mark of the prompt"),
        (inference(head="a [GEN] b"), "whose head contains a mark of the prompt"),
        (inference(tail="to stay", p=0.875), "that repeat an earlier one"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted(tmp_path, row, fault):
    splits = load(tmp_path, inference(tail="to stay"), row)
    assert [(e.responses, e.rewards) for e in splits.train] == [(("to stay",), (0.5,))]
    assert splits.notes == (f"Dropped train rows {fault}: 1.",)


def test_the_relations_that_atomic_2020_has_besides_are_left_out(tmp_path):
    gold = ("bread\tObjectUse\teat", "PersonX cooks\txNeed\tto shop", "PersonX cooks\toReact\tglad")
    splits = load(tmp_path, inference(), tsv=gold)
    assert len(splits.test) == 1
    assert splits.notes == ("Dropped test rows of a relation other than the seven: 2.",)


def test_generated_test_rows_that_are_not_used_are_not_counted(tmp_path):
    unused = inference(relation="AtLocation", split="test")
    splits = load(tmp_path, inference(), unused, tsv=("PersonX cooks\txNeed\tto shop",))
    assert splits.notes == ()


def test_a_row_of_one_split_is_no_repetition_of_one_in_another(tmp_path):
    splits = load(tmp_path, inference(), inference("PersonX eats", split="val"), inference("Who"))
    assert len(splits.validation) == 2
    assert splits.notes == ("Dropped train prompts that are validation or test prompts: 1.",)


def test_as_many_prompts_are_kept_as_are_asked_for(tmp_path):
    rows = [
        inference(f"PersonX meets {n} {split}", split=split, tail=f"tail {k}")
        for n in range(20)
        for split in ("train", "val", "test")
        for k in range(2)
    ]
    every, some = load(tmp_path, *rows), load(tmp_path, *rows, validation=7, test=5, limit=4)
    assert [len(side) for side in (every.train, every.validation, every.test)] == [20, 21, 21]
    assert [len(side) for side in (some.train, some.validation, some.test)] == [4, 7, 5]
    kept = {e.prompt for e in some.validation}
    assert [e for e in every.validation if e.prompt in kept] == list(some.validation)
    turned = load(tmp_path, *reversed(rows), validation=7)  # which are kept, no order decides
    assert {e.prompt for e in turned.validation} == kept
    assert "task.limit kept 4 of 20 training examples." in some.notes


# what is refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (inference(p=float("nan")), r"line 1, field 'p_valid_model': expected a finite number"),
        (inference(p=None), r"line 1: no field 'p_valid_model'; expected a number"),
        (inference(p="0.5"), "line 1, field 'p_valid_model': expected a number, got str '0.5'"),
        (inference(split="dev"), "line 1: the split is 'dev': expected one of train, val, test"),
        (inference(head=None), "line 1: no field 'head'; expected text"),
        (inference(tail=3), "line 1, field 'tail': expected text, got int 3"),
        ({"head": "a"}, "line 1: no field 'split'"),
    ],
)
def test_a_malformed_row_is_one_line_with_its_place(tmp_path, row, message):
    refused(tmp_path, row, message=r"ATOMIC10X\.jsonl, " + message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("PersonX cooks\txNeed", "2 columns, expected 3 .head, relation, tail., separated by tabs"),
        ("PersonX cooks\txNeed\tto shop\t0.5", "4 columns, expected 3"),
        ("PersonX cooks, xNeed, to shop", "1 columns, expected 3"),
    ],
)
def test_another_number_of_columns_is_one_line_with_its_place(tmp_path, line, message):
    refused(
        tmp_path, inference(), tsv=("a\txNeed\tb", line), message=f"test.tsv, line 2: {message}"
    )


def test_a_file_that_is_missing_or_not_text_is_one_line(tmp_path):
    refused(tmp_path, train_file="/nowhere.jsonl", message="/nowhere.jsonl: no such file")
    refused(tmp_path, test_file="/nowhere.tsv", message="/nowhere.tsv: no such file")
    refused(tmp_path, train_file="", message="task.train_file is empty: name ATOMIC10X.jsonl")
    (tmp_path / "bytes.tsv").write_bytes(b"a\txNeed\t\xff\n")
    bad = str(tmp_path / "bytes.tsv")
    refused(tmp_path, test_file=bad, message=r"bytes\.tsv: cannot be read \('utf-8' codec")


@pytest.mark.parametrize("name", ["validation", "test", "limit"])
def test_a_negative_count_is_one_line(tmp_path, name):
    refused(tmp_path, inference(), **{name: -1}, message=f"task.{name} is -1")


def test_the_files_that_are_read_are_named_for_the_record(tmp_path):
    both = options(tmp_path, (), tsv=())
    assert [path.name for path in comet.files(both)] == ["ATOMIC10X.jsonl", "test.tsv"]
    assert [path.name for path in comet.files(options(tmp_path, ()))] == ["ATOMIC10X.jsonl"]


# what the critic reads


def prompt_of(head, relation="xWant"):
    return f"<head> {head} </head> <relation> {relation} </relation> [GEN] "


@pytest.mark.parametrize(
    ("relation", "phrase"),
    [
        ("HinderedBy", "can be hindered by"),
        ("xNeed", "but before, {X} needed"),
        ("xWant", "as a result, {X} wants"),
        ("xIntent", "because {X} wanted"),
        ("xReact", "as a result, {X} feels"),
        ("xAttr", "so, {X} is seen as"),
        ("xEffect", "as a result, {X}"),
    ],
)
def test_the_critic_reads_a_relation_as_its_phrase_about_the_same_person(relation, phrase):
    head, text = comet.pair(prompt_of("PersonX", relation), "a tail")
    assert head in comet.NAMES
    assert text == f"{phrase.format(X=head)} a tail"


def test_two_persons_have_two_names_that_are_the_same_in_head_and_tail():
    drawn = set()
    for n in range(100):
        prompt = prompt_of(f"PersonX/PersonY/{n}")
        head, text = comet.pair(prompt, "PersonY/PersonX/PersonY's")
        first, second, _ = head.split("/")
        assert first != second and {first, second} <= set(comet.NAMES)
        assert text == f"as a result, {first} wants {second}/{first}/{second}'s"
        drawn |= {first, second}
    assert drawn == set(comet.NAMES)


def test_every_tail_of_a_prompt_is_read_with_the_same_names_on_every_call():
    prompt = prompt_of("PersonX calls PersonY")
    head, text = comet.pair(prompt, "to talk")
    for tail in ("to talk", "to hang up", "PersonY"):
        assert comet.pair(prompt, tail)[0] == head
        assert comet.pair(prompt, tail)[1].startswith(text.removesuffix("to talk"))


def test_the_names_neither_read_nor_move_the_global_generator():
    prompts = [prompt_of(f"PersonX sees PersonY {n}") for n in range(5)]
    found = []
    for seed in (1, 2):
        random.seed(seed)
        before = random.getstate()
        found.append([comet.pair(prompt, "to wave") for prompt in prompts])
        assert random.getstate() == before
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "prompt", ["PersonX eats", prompt_of("PersonX eats", "AtLocation"), prompt_of("a") + "b"]
)
def test_a_text_that_is_no_prompt_of_the_task_is_one_line(prompt):
    with pytest.raises(UserError, match="is no prompt of the task comet") as caught:
        comet.pair(prompt, "a tail")
    assert "\n" not in str(caught.value)


def test_the_task_hands_reward_models_that_pair_and_its_marks_to_the_tokenizer(tmp_path):
    task = get_task(options(tmp_path, ()))
    exchange = task.exchange(prompt_of("PersonX"), "a tail")
    assert exchange.pair == comet.pair(prompt_of("PersonX"), "a tail") != exchange.turns
    assert exchange.response == "a tail"
    assert set(task.marks) == {"<head>", "</head>", "<relation>", "</relation>", "[GEN]"}
    assert task.stop == (".",)
