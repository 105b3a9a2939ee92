"""The six text tasks: prompts and responses to the byte, splits, what is dropped, bad input."""

import json
from pathlib import Path

import datasets
import pytest
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.tasks import seq2text
from alol_jax.tasks.registry import TASKS
from alol_jax.tasks.seq2text import END, SOURCES
from tests.tiny_run import tiny_lm

TURNS = [" Hi . ", "Hello , Ann .", "Beer ?", " No .", "Tea ?", "Yes .", "Good .", " Bye . "]
RAW = {
    "xsum": {"document": " The dog\nslept. ", "target": "It slept. ", "references": ["It slept."]},
    "cnn_dailymail": {"article": "Rain fell.", "highlights": "Rain .\nIt fell .", "id": "7"},
    "imdb": {"text": "I  loved this film, all of it", "label": 1},
    "iwslt_en_de": {"translation": {"de": "Hallo Welt.", "en": "Hello world."}},
    "daily_dialog": {"dialog": TURNS, "act": [1] * 8},
    "common_gen": {"concepts": ["dog", "run", "field"], "target": "A dog runs in a field."},
}
READ = {  # what the model reads, what judges read, and the response
    "xsum": ("The dog\nslept.TL;DR:", "The dog\nslept.", "It slept."),
    "cnn_dailymail": ("Summarize: Rain fell.", "Rain fell.", "Rain .\nIt fell ."),
    "imdb": ("I  loved this", "I  loved this", "film, all of it"),
    "iwslt_en_de": ("translate English to German: Hello world.", "Hello world.", "Hallo Welt."),
    "daily_dialog": (
        f"Hi .{END}Hello , Ann .{END}Beer ?{END}No .{END}Tea ?{END}",
        "Tea ?",
        "Yes .",
    ),
    "common_gen": (
        "generate a sentence with: dog run field.",
        "dog run field",
        "A dog runs in a field.",
    ),
}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (str(path),)


def options(tmp_path, train, validation, test, /, **changes):
    named = {"train": train, "validation": validation, "test": test}
    files = {
        f"{split}_files": written(tmp_path / f"{split}.jsonl", rows) if rows else ()
        for split, rows in named.items()
    }
    return ConfigDict({**files, "validation": 0, "test": 0, "limit": 0, **changes})


def numbered(name, n):
    """A raw row whose prompt and response are its own."""
    return {
        "xsum": {"document": f"Text {n}", "summary": f"Short {n}"},
        "cnn_dailymail": {"article": f"Text {n}", "highlights": f"Short {n}"},
        "imdb": {"text": f"film {n} was {n}", "label": 1},
        "iwslt_en_de": {"translation": {"en": f"one {n}", "de": f"eins {n}"}},
        "daily_dialog": {"dialog": [f"{turn} {n}" for turn in "abcdef"]},
        "common_gen": {"concepts": ["dog", f"word{n}"], "target": f"A dog says {n}."},
    }[name]


def loaded(name, tmp_path, train, validation=None, test=None, /, **changes):
    validation = [numbered(name, 8)] if validation is None else validation
    test = [numbered(name, 9)] if test is None else test
    return SOURCES[name].load(options(tmp_path, train, validation, test, **changes))


def pairs(examples):
    return [(example.prompt, example.responses) for example in examples]


def test_each_data_set_is_a_task():
    assert RAW.keys() == READ.keys() == SOURCES.keys() <= TASKS.keys()
    assert all(TASKS[name].load == source.load for name, source in SOURCES.items())


@pytest.mark.parametrize("name", SOURCES)
def test_prompt_and_response_are_the_published_ones(name, tmp_path):
    example = loaded(name, tmp_path, [RAW[name]]).train[0]
    task, (reads, source, response) = TASKS[name], READ[name]
    assert task.template.replace("{prompt}", example.prompt) == reads
    assert example.responses == (response,)
    assert task.exchange(example.prompt, "answer").pair == (source, "answer")
    assert (example.id, example.source) == ("train:0", "positive" if name == "imdb" else name)


def test_every_turn_after_five_is_a_response_to_the_last_five(tmp_path):
    train = loaded("daily_dialog", tmp_path, [RAW["daily_dialog"]]).train
    said = [turn.strip() for turn in TURNS]
    assert pairs(train) == [(END.join(said[n - 5 : n]), (said[n],)) for n in (5, 6, 7)]
    task = TASKS["daily_dialog"]
    assert task.exchange(train[0].prompt, "Hm").turns == tuple(said[:5])
    assert task.shorten(train[0].prompt) == END.join(said[1:5]) and task.shorten("Hi .") is None


def test_the_mark_between_turns_is_one_token_where_the_tokenizer_has_it():
    task, tokenizer = TASKS["daily_dialog"], tiny_lm().tokenizer
    ids = tokenizer.encode_prompts(task.template, [f"a{END}b"], limit=99, marks=task.marks)[0][0]
    assert list(ids) == list(tokenizer.encode(f"a{END}b{END}"))
    assert list(ids).count(tokenizer.encode(END)[0]) == 2


def test_all_sentences_of_the_same_words_answer_one_prompt(tmp_path):
    rows = [
        RAW["common_gen"],
        {"concepts": ["dog", "run", "field"], "target": "Dogs run."},
        {"concepts": ["cat", "sit"], "target": "x", "references": ["A cat sits.", "Cats sit."]},
    ]
    assert pairs(loaded("common_gen", tmp_path, rows).train) == [
        ("dog run field", ("A dog runs in a field.", "Dogs run.")),
        ("cat sit", ("A cat sits.", "Cats sit.")),
    ]


def test_only_positive_reviews_are_trained_on_and_both_are_tested(tmp_path):
    rows = [numbered("imdb", n) | {"label": n % 2} for n in range(6)]
    test = [numbered("imdb", n) | {"label": n % 2} for n in (7, 8)]
    splits = loaded("imdb", tmp_path, rows, [], test, validation=2)
    assert set(splits.train["source"]) == {"positive"}
    assert list(splits.test["source"]) == ["positive", "negative"]
    assert len(splits.validation) == 2
    left = 6 - len(splits.validation) - len(splits.train)
    assert splits.notes == (f"Left out train prompts that are not positive: {left}.",) and left


@pytest.mark.parametrize("name", SOURCES)
def test_a_split_without_files_is_split_off_by_prompt(name, tmp_path):
    rows = [numbered(name, n) for n in range(8)] + [numbered(name, 3)]
    splits = loaded(name, tmp_path, rows, [], [], validation=2, test=3)
    assert [len(splits.validation), len(splits.test), len(splits.train)] == [2, 3, 3]
    prompts = [prompt for part in (splits.train, splits.validation, splits.test) for prompt in part]
    assert len({example.prompt for example in prompts}) == 8
    assert splits.notes == ("Dropped train rows that repeat an earlier one: 1.",)


@pytest.mark.parametrize("name", SOURCES)
def test_no_prompt_is_in_two_splits(name, tmp_path):
    rows = [numbered(name, n) for n in range(6)]
    splits = loaded(name, tmp_path, rows, rows[:1], rows[:3])
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [3, 1, 2]
    assert splits.notes == (
        "Dropped test prompts that are validation prompts: 1.",
        "Dropped train prompts that are validation or test prompts: 3.",
    )


def test_counts_keep_the_first_prompts_in_hash_order(tmp_path):
    rows = [numbered("xsum", n) for n in range(9)]
    more = [numbered("xsum", n) for n in range(20, 25)]
    splits = loaded("xsum", tmp_path, rows, more, validation=2, limit=4)
    assert (len(splits.train), len(splits.validation)) == (4, 2)
    assert "task.limit kept 4 of 9 training examples." in splits.notes


@pytest.mark.parametrize(
    ("name", "row", "fault"),
    [
        ("xsum", {"document": " ", "target": "t"}, "with an empty prompt"),
        ("xsum", {"document": "d", "target": "\n"}, "with an empty response"),
        ("imdb", {"text": "word", "label": 1}, "with an empty prompt"),
        ("daily_dialog", {"dialog": ["a", "b"]}, "of at most 5 turns"),
        ("daily_dialog", {"dialog": [*"ab", " ", *"def"]}, "with an empty turn"),
        ("daily_dialog", {"dialog": [*"abcde", f"f{END}"]}, f"with {END} in a turn"),
        ("common_gen", {"concepts": [], "target": "t"}, "with an empty prompt"),
        ("common_gen", {"concepts": ["a b"], "target": "t"}, "with a concept that is not one word"),
        ("common_gen", {"concepts": ["a"], "target": ""}, "with an empty response"),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped_and_counted(name, row, fault, tmp_path):
    splits = loaded(name, tmp_path, [numbered(name, 1), row, row])
    assert len(splits.train) == 1
    assert splits.notes == (f"Dropped train rows {fault}: 2.",)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("xsum", {"document": "d"}, "line 1: no field 'target'; expected text"),
        ("xsum", {"document": 3, "target": "t"}, "field 'document': expected text, got int 3"),
        ("cnn_dailymail", {"article": "a"}, "no field 'highlights'"),
        ("imdb", {"text": "a b"}, "no field 'label'; expected a whole number"),
        ("imdb", {"text": "a b", "label": -1}, "line 1: label -1: expected 0 .negative. or 1"),
        ("iwslt_en_de", {"translation": "x"}, "field 'translation': expected a map"),
        ("iwslt_en_de", {"translation": {"en": "x"}}, "'translation': no field 'de'"),
        ("daily_dialog", {"dialog": "a"}, "field 'dialog': expected a list"),
        ("daily_dialog", {"dialog": ["a", 2]}, "field 'dialog', element 2: expected text"),
        ("common_gen", {"concepts": ["a"]}, "no field 'target'"),
    ],
)
def test_a_row_of_another_form_is_one_line(name, row, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        loaded(name, tmp_path, [row])
    assert "\n" not in str(caught.value) and "train.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_files": ()}, "task.train_files is empty: name files or hub splits"),
        ({"test_files": ()}, "task.test_files is empty and task.test is 0: name files, or say how"),
        ({"validation_files": (), "validation": 5}, "leaves none for training"),
        ({"test_files": "my.jsonl"}, r"task.test_files is a text: expected a tuple"),
        ({"test_files": ("none.jsonl",)}, "none.jsonl: no such file"),
        ({"test_files": ("none",)}, "'none' is neither a file"),
    ],
)
def test_options_that_cannot_be_followed_are_one_line(changes, message, tmp_path):
    rows = [[numbered("xsum", n)] for n in range(3)]
    with pytest.raises(UserError, match=message):
        SOURCES["xsum"].load(options(tmp_path, *rows, **changes))


def test_files_may_be_json_lists_csv_and_parquet(tmp_path):
    rows = [numbered("xsum", n) for n in range(5)]
    names = [str(tmp_path / name) for name in ("a.json", "b.csv", "c.parquet")]
    Path(names[0]).write_text(json.dumps(rows[:1], indent=1))
    Path(names[1]).write_text("document,summary\nText 1,Short 1\n")
    datasets.Dataset.from_list(rows[2:3]).to_parquet(names[2])
    chosen = options(tmp_path, rows[:1], rows[3:4], rows[4:], train_files=tuple(names))
    train = SOURCES["xsum"].load(chosen).train
    assert pairs(train) == [(f"Text {n}", (f"Short {n}",)) for n in range(3)]
    assert [row.id for row in train] == ["train:0", "train:1", "train:2"]


def test_the_files_of_a_task_are_the_local_ones(tmp_path):
    chosen = options(tmp_path, [numbered("xsum", 1)], [numbered("xsum", 2)], [])
    chosen.test_files = ("abisee/cnn_dailymail:3.0.0:test",)
    assert [path.name for path in seq2text.files(chosen)] == ["train.jsonl", "validation.jsonl"]
