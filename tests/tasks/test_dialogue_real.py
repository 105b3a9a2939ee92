"""Real conversations, where the environment variable ALOL_DIALOGUE_DIR names the folder that has
them: Wizard of Wikipedia in its raw form, and answers from the audit of FaithDial's authors."""

import json
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from alol_jax.stages.load import check_splits
from alol_jax.tasks import dialogue

FOLDER = Path(os.environ.get("ALOL_DIALOGUE_DIR", ""))
WIZARD = FOLDER / "wow_original.json"

pytestmark = pytest.mark.skipif(
    "ALOL_DIALOGUE_DIR" not in os.environ,
    reason="ALOL_DIALOGUE_DIR is not set: the folder with wow_original.json, audit.jsonl",
)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """The conversations and 800 rows of the audit train, written in FaithDial's form."""
    folder = tmp_path_factory.mktemp("audit")
    with (FOLDER / "audit.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 1096
    paths = {}
    for split, part in (("train", rows[:800]), ("validation", rows[800:950]), ("test", rows[950:])):
        paths[split] = folder / f"{split}.json"
        answers = [
            {"knowledge": r["knowledge"], "history": r["history"], "response": text, "BEGIN": [b]}
            for r in part
            for text, b in zip(r["responses"], r["begin"], strict=True)
        ]
        paths[split].write_text(json.dumps(answers))
    files = {f"{split}_files": (str(path),) for split, path in paths.items()}
    files["train_files"] = (str(WIZARD), *files["train_files"])
    options = {"name": "dialogue", "template": "", "validation": 0, "test": 0, "limit": 0}
    return dialogue.load(ConfigDict(options | files))


def test_every_answer_is_kept_or_counted(splits):
    assert [len(side) for side in (splits.train, splits.validation, splits.test)] == [792, 146, 145]
    assert set(splits.notes) == {
        "Left out train answers that rest on no sentence: 1.",
        "Dropped train answers without a history: 74.",
        "Dropped validation answers without a history: 9.",
    }
    check_splits(dialogue.DIALOGUE, splits, lambda line: None)


def test_every_turn_of_a_conversation_is_in_the_history_of_a_later_answer(splits):
    conversations = json.loads(WIZARD.read_text(encoding="utf-8"))
    of_wizard = [e for e in splits.train if e.source.endswith("wow_original")]
    assert len(of_wizard) == 17
    said = [[turn["text"] for turn in one["dialog"]] for one in conversations]
    for example in of_wizard:
        history = list(dialogue.turns_of(example.prompt))
        (response,) = example.responses
        assert any(texts[: len(history) + 1] == [*history, response] for texts in said)
    wanted = {
        next(iter(turn["checked_sentence"].values()))
        for one in conversations
        for turn in one["dialog"]
        if turn.get("checked_sentence")
    }
    assert {dialogue.pair(e.prompt, "")[0] for e in of_wizard} <= wanted - {dialogue.NOTHING}


def test_all_answers_to_a_prompt_of_the_audit_are_one_example(splits):
    assert max(len(e.responses) for e in splits.train) >= 3
    prompts = [e.prompt for e in (*splits.train, *splits.validation, *splits.test)]
    assert len(set(prompts)) == len(prompts)
