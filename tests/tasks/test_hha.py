"""hha: both kinds of rows, what is cleaned and what is counted."""

import gzip
import json
import math
from pathlib import Path

import pytest

from alol_jax.stages import load as load_stage
from alol_jax.tasks import hha, hha_rows
from alol_jax.tasks.registry import TASKS, get_task
from alol_jax.types import Example, StageContext
from tests.tasks.hha_cases import numbered, row, task_options, three_splits, transcripts, write


@pytest.fixture
def files(tmp_path):
    return three_splits(tmp_path)


def _train(tmp_path, *rows):
    """The splits of these training rows."""
    return hha.load(task_options([write(tmp_path / "t.jsonl", rows)]))


def test_a_published_row_becomes_an_example_with_the_published_words(tmp_path):
    published = {
        "prefix": [["<|prompter|>hi", "<|assistant|>hello", "<|prompter|>tea?", "<|assistant|>"]]
        * 2,
        "suffix": ["Yes,\nplease ", "coffee"],
        "reward": [0.0, -math.log(3)],
        "sft_index": 0,
        "meta": {"path": "../../data/raw_data/hhrlhf/helpful-base/train.jsonl", "line_num": 9},
    }
    (example,) = _train(tmp_path, published).train
    assert example == Example(
        id="train/t:1",
        prompt="### Human: hi ### Assistant: hello ### Human: tea? ### Assistant:",
        responses=("Yes,\nplease ", "coffee"),
        source="helpful_base",
        rewards=(0.5, pytest.approx(0.25, abs=1e-15)),
    )
    assert hha.HHA.turns(example.prompt) == ("hi", "hello", "tea?")


def test_transcripts_become_an_example_in_the_published_form(tmp_path):
    (example,) = _train(tmp_path, transcripts("Is fire cold? ")).train
    assert example == Example(
        "train/t:1", "### Human: Is fire cold? ### Assistant:", ("No.", "Yes."), "t", ()
    )


def test_the_words_before_a_prompt_are_the_published_system_sentence():
    assert get_task(task_options()) is hha.HHA is TASKS["hha"]
    assert hha.HHA.template.startswith("A chat between a curious human and an artificial ")
    assert hha.HHA.template.endswith("user's questions.\n{prompt}")
    assert hha.HHA.stop == ("###", " ###")
    assert hha.HHA.clean("Tea. ###") == "Tea."


def test_the_stored_score_goes_through_a_sigmoid_and_none_is_too_large():
    assert hha_rows.sigmoid(0.0) == 0.5
    assert hha_rows.sigmoid(-1e4) == 0.0 and hha_rows.sigmoid(1e4) == 1.0
    assert hha_rows.sigmoid(2.0) == pytest.approx(0.8807970779778823, abs=1e-15)
    assert hha_rows.sigmoid(-2.0) == pytest.approx(0.1192029220221175, abs=1e-15)


def test_three_lists_of_files_are_three_splits_with_sources_and_ids(files):
    splits = hha.load(task_options(**files))
    assert {(e.id, e.source) for e in splits.train} == {
        (f"train/{Path(files['train'][0]).parent.name}:{n}", "helpful_online") for n in range(1, 7)
    }
    assert [(e.id.split(":")[1], e.source) for e in splits.validation] == [
        ("1", "harmless_base"),
        ("2", "helpful_rejection"),
    ]
    assert [(e.id, e.source) for e in splits.test] == [
        (f"test/{name}:{n}", name) for name in ("harmless_base", "helpful_base") for n in (1, 2, 3)
    ]
    assert splits.notes == ()


def test_the_stage_accepts_the_splits(files, tmp_path):
    said = []
    options = task_options(**files, swapped=0.0)
    context = StageContext(tmp_path, lambda: False, said.append)
    splits = load_stage.load(hha.HHA, options, hha.HHA.files(options), None, context=context)
    assert len(splits.test) == 6
    assert "train: 6 prompts, 12 responses (median 1 words)" in said


def test_files_of_one_name_get_ids_of_their_own(tmp_path):
    names = [
        write(tmp_path / f"{n}/helpful-base/train.jsonl", numbered(f"file {n},", 2)) for n in "ab"
    ]
    splits = hha.load(task_options(names))
    assert {e.source for e in splits.train} == {"helpful_base"}
    assert sorted(e.id for e in splits.train) == [
        f"train/helpful_base.{file}:{row}" for file in (1, 2) for row in (1, 2)
    ]


def test_what_the_stage_reads_are_the_local_files(files, tmp_path):
    files["train"].append("Anthropic/hh-rlhf:helpful-base:train")
    options = task_options(**files, bad_test_indices="bad.json")
    paths = hha.files(options)
    assert [path.name for path in paths] == [
        "train.json",
        "sampled_dev.json",
        "harmless_base.json",
        "helpful_base.json",
        "bad.json",
    ]


def test_gzipped_files_are_read(tmp_path):
    path = tmp_path / "harmless-base" / "test.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps(transcripts()).encode()))
    train = write(tmp_path / "t.jsonl", [row()])
    (example,) = hha.load(task_options([train], test_files=[str(path)])).test
    assert (example.id, example.source) == ("test/harmless_base:1", "harmless_base")


def test_hub_splits_are_read_by_folder_and_split(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, *, data_dir, split):
        asked.append((name, data_dir, split))
        rows = [transcripts(f"{data_dir} {split} {n}?") for n in range(2)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, revision: ["default"])
    splits = hha.load(
        task_options(
            ["Anthropic/hh-rlhf:helpful-rejection-sampled:train"],
            test_files=["Anthropic/hh-rlhf:harmless-base:test"],
        )
    )
    assert asked == [
        ("Anthropic/hh-rlhf", "helpful-rejection-sampled", "train"),
        ("Anthropic/hh-rlhf", "harmless-base", "test"),
    ]
    assert sorted((e.id, e.source) for e in splits.train) == [
        ("train/helpful_rejection:1", "helpful_rejection"),
        ("train/helpful_rejection:2", "helpful_rejection"),
    ]
    assert {e.source for e in splits.test} == {"harmless_base"}


def test_without_files_prompts_are_split_off_from_the_training_files(files):
    only_train = hha.load(task_options(files["train"], validation=1, test=2))
    assert [len(s) for s in (only_train.train, only_train.validation, only_train.test)] == [3, 1, 2]
    files.pop("validation_files")
    with_test = hha.load(task_options(**files, validation=1))
    assert [len(s) for s in (with_test.train, with_test.validation, with_test.test)] == [5, 1, 6]
    assert {e.id.split("/")[0] for e in with_test.validation} == {"train"}


def test_with_files_the_counts_keep_so_many_rows_of_each_source(files):
    splits = hha.load(task_options(**files, validation=1, test=4, limit=3))
    assert len(splits.train) == 3 and len(splits.validation) == 1
    assert sorted(e.source for e in splits.test) == ["harmless_base"] * 2 + ["helpful_base"] * 2
    assert splits.notes == (
        "task.validation kept 1 of 2 validation rows.",
        "task.test kept 4 of 6 test rows.",
        "task.limit kept 3 of 6 training examples.",
    )
    fewer = hha.load(task_options(**files, test=2))
    assert {e.id for e in fewer.test} < {e.id for e in splits.test}


def test_a_small_source_is_kept_whole_where_the_counts_allow_it(tmp_path):
    sizes = {"large": 9, "small": 2}
    names = [write(tmp_path / f"{n}.json", numbered(n, size)) for n, size in sizes.items()]
    train = [write(tmp_path / "t.jsonl", [row()])]
    for count, small in ((2, 1), (5, 2), (11, 2)):
        test = hha.load(task_options(train, test_files=names, test=count)).test
        assert [sum(e.source == n for e in test) for n in sizes] == [count - small, small]


def test_a_validation_prompt_leaves_the_test_set_and_both_leave_the_training_set(tmp_path):
    options = task_options(
        [write(tmp_path / "t.jsonl", [row("a?"), row("B ? "), row("c?"), row("d?")])],
        validation_files=[write(tmp_path / "v.jsonl", [row("a?"), row("b ?")])],
        test_files=[write(tmp_path / "x.jsonl", [row("b ?"), row("c?")])],
    )
    splits = hha.load(options)
    questions = [[hha.HHA.turns(e.prompt)[0] for e in s] for s in (splits.train, splits.test)]
    assert questions == [["d?"], ["c?"]]
    assert len(splits.validation) == 2
    assert set(splits.notes) == {
        "Left out test rows whose prompt is a validation prompt: 1.",
        "Dropped train rows whose prompt is a validation or test prompt: 3.",
    }
    assert {e.id for e in hha.load(task_options(**_lists(options), validation=1)).test} == {
        "test/x:2"
    }


def _lists(options):
    return dict(
        train=options.train_files,
        validation_files=options.validation_files,
        test_files=options.test_files,
    )


def test_a_prompt_that_occurs_twice_stays_two_examples(tmp_path):
    splits = _train(tmp_path, row(), row(suffix=("Maybe.", "Well.")))
    assert sorted(e.responses for e in splits.train) == [("Maybe.", "Well."), ("Yes.", "No.")]


FAULTS = {
    "with a response that ends with ':'": row(suffix=("Yes:", "No.")),
    "with an empty response": row(suffix=("Yes.", " ")),
    "whose responses have different prefixes": row()
    | {"prefix": [["<|prompter|>a", "<|assistant|>"], ["<|prompter|>b", "<|assistant|>"]]},
    "whose turns do not alternate from the person to the assistant": row()
    | {"prefix": [["<|assistant|>a", "<|assistant|>"]] * 2},
    "with a turn that contains the mark of another turn": row("a ### Human: b"),
    "whose two transcripts do not share the prompt": transcripts()
    | {"rejected": "\n\nHuman: other\n\nAssistant: x"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_training_row_with_a_fault_is_dropped_and_counted(tmp_path, fault):
    splits = _train(tmp_path, row("kept?"), FAULTS[fault])
    assert [hha.HHA.turns(e.prompt) for e in splits.train] == [("kept?",)]
    assert splits.notes == (f"Dropped train rows {fault}: 1.",)


def test_a_transcript_with_a_colon_at_its_end_is_dropped_too(tmp_path):
    rejected = " Here is a list:\n\n1. yes"
    splits = _train(tmp_path, row(), transcripts(rejected=rejected))
    assert splits.notes == ("Dropped train rows with a response that ends with ':': 1.",)


def test_held_out_rows_keep_colons_and_lose_only_empty_responses(tmp_path):
    rows = [row("a?", ("Yes:", "No.")), row("b?", ("", "No.")), row("c?", ("", "\n"))]
    options = task_options(
        [write(tmp_path / "t.jsonl", [row()])], test_files=[write(tmp_path / "x.jsonl", rows)]
    )
    splits = hha.load(options)
    assert [(e.responses, len(e.rewards)) for e in splits.test] == [
        (("Yes:", "No."), 2),
        (("No.",), 1),
    ]
    assert splits.test[1].rewards == (hha_rows.sigmoid(-1.5),)
    assert splits.notes == (
        "Empty responses left out of test rows: 1.",
        "Dropped test rows without a response: 1.",
    )


def test_what_is_kept_in_spite_of_a_fault_is_counted(tmp_path):
    splits = _train(
        tmp_path,
        row("one?", ("Yes.",), (0.5,)),
        row("same?", ("Yes.", "Yes."), (0.5, 0.25)),
        row("equal?", reward=(0.5, 0.5)),
        row("three?", ("a", "b", "c"), (1.0, 2.0, 3.0)),
        transcripts(chosen=" No.\n\nReally not.") | {"extra": 1},
    )
    by_turn = {hha.HHA.turns(e.prompt)[0]: e for e in splits.train}
    assert len(by_turn) == 5
    assert by_turn["same?"].responses == ("Yes.",)
    assert by_turn["same?"].rewards == (hha_rows.sigmoid(0.5),)
    assert by_turn["three?"].responses == ("a", "b", "c")
    assert set(splits.notes) == {
        "Repeated responses left out of train rows: 1.",
        "Shortened train rows, to the first paragraph of a turn: 1.",
        "Train rows with one response only: 2.",
        "Train rows whose stored rewards are equal: 1.",
        "Rows without stored rewards, of 5: 1.",
    }


def test_bad_test_rows_are_left_out_by_the_stem_of_their_file(files, tmp_path):
    listed = {"harmless_base.jsonl": [0, 2, 2], "helpful_online.json": [5, 6]}
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(listed))
    splits = hha.load(task_options(**files, bad_test_indices=str(bad)))
    assert [e.id for e in splits.test if e.source == "harmless_base"] == ["test/harmless_base:2"]
    assert sum(e.source == "helpful_base" for e in splits.test) == 3
    assert set(splits.notes) == {
        "Left out test rows that task.bad_test_indices lists: 2.",
        "Rows in task.bad_test_indices of helpful_online.json, which is no test file: 2.",
    }


def test_bad_test_rows_may_be_training_rows(files, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{"harmless_base.json": [1]}')
    files["train"] = [name for name in files["test_files"] if "harmless" in name]
    splits = hha.load(task_options(**files, bad_test_indices=str(bad)))
    assert [hha.HHA.turns(e.prompt) for e in splits.train] == [("harmless_base 1?",)]
