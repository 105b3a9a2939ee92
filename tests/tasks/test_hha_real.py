"""The real rows, where the environment variable ALOL_HHA_DIR names the folder that has them."""

import json
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from alol_jax.tasks import conversation, hha, hha_rows
from alol_jax.tasks.splits import normalise

FOLDER = Path(os.environ.get("ALOL_HHA_DIR", ""))
ROWS = {"dev": 280, "harmless_base": 2312, "helpful_base": 2354}

pytestmark = pytest.mark.skipif(
    "ALOL_HHA_DIR" not in os.environ,
    reason="ALOL_HHA_DIR is not set: the folder with dev.jsonl, harmless_base.jsonl, ...",
)


def _file(name):
    return str(FOLDER / f"{name}.jsonl")


def _rows(name):
    with open(_file(name), encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _load(**changes):
    options = dict(
        train_files=(_file("helpful_base"),),
        validation_files=(_file("dev"),),
        test_files=(_file("harmless_base"),),
        bad_test_indices="",
        validation=0,
        test=0,
        limit=0,
    )
    return hha.load(ConfigDict(options | changes))


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_read_and_gives_its_published_words_back(name):
    rows = _rows(name)
    assert len(rows) == ROWS[name]
    for number, row in enumerate(rows):
        found = hha_rows.read_row(str(number), row)
        prompt = conversation.prompt_of(found.turns)
        roles = ("<|prompter|>", "<|assistant|>") * len(found.turns)
        tagged = [role + said for role, said in zip(roles, (*found.turns, ""), strict=False)]
        assert row["prefix"] == [tagged, tagged]
        assert conversation.turns_of(prompt) == found.turns
        assert found.responses == tuple(row["suffix"])
        text = "".join(row["prefix"][0]).replace("<|prompter|>", " ### Human: ")
        assert prompt == text.replace("<|assistant|>", " ### Assistant: ").strip()


@pytest.mark.parametrize("name", ROWS)
def test_transcripts_of_the_real_rows_give_the_same_rows(name):
    for number, row in enumerate(_rows(name)):
        text = "".join(f"\n\n{said}" for said in row["prefix"][0])
        text = text.replace("<|prompter|>", "Human: ").replace("<|assistant|>", "Assistant: ")
        chosen, rejected = (text + said for said in row["suffix"])
        published = hha_rows.read_row(str(number), row)
        transcripts = hha_rows.read_row(str(number), {"chosen": chosen, "rejected": rejected})
        assert transcripts[:2] == published[:2]
        assert not transcripts.shortened


def test_the_dev_rows_are_validation_rows_of_four_sets_and_no_other_split_has_their_prompts():
    splits = _load()
    assert len(splits.validation) == 280
    counts = {e.source: 0 for e in splits.validation}
    for example in splits.validation:
        counts[example.source] += 1
    assert counts == {
        "helpful_rejection": 99,
        "helpful_base": 72,
        "harmless_base": 64,
        "helpful_online": 45,
    }
    assert {e.source for e in splits.test} == {"harmless_base"} and len(splits.test) == 2312 - 64
    held_out = {normalise(e.prompt) for e in (*splits.validation, *splits.test)}
    assert held_out.isdisjoint(normalise(e.prompt) for e in splits.train)
    assert all(len(e.responses) in (1, 2) for e in splits.train)
    assert "Dropped train rows with a response that ends with ':': 223." in splits.notes


def test_the_list_of_bad_test_rows_has_all_dev_rows_among_its_343():
    path = FOLDER / "bad_test_indices.json"
    listed = json.loads(path.read_text(encoding="utf-8"))
    assert sum(map(len, listed.values())) == 343
    without = _load(bad_test_indices=str(path))
    assert len(without.test) == 2312 - len(listed["harmless_base.json"])
    assert not any("test rows whose prompt is a validation prompt" in n for n in without.notes)
