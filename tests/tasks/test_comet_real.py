"""Real heads, relations and tails, where the environment variable ALOL_COMET_DIR names the folder
that has them: triples of ATOMIC-2020, and rows in the form of ATOMIC10X (with rewards of ours)."""

import collections
import json
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from alol_jax.tasks import comet
from alol_jax.tasks.splits import normalise

FOLDER = Path(os.environ.get("ALOL_COMET_DIR", ""))
GENERATED, GOLD = FOLDER / "atomic10x_standin.jsonl", FOLDER / "atomic2020_test.tsv"

pytestmark = pytest.mark.skipif(
    "ALOL_COMET_DIR" not in os.environ,
    reason="ALOL_COMET_DIR is not set: the folder with atomic10x_standin.jsonl, ...",
)


def _load(**changes):
    files = {"train_file": str(GENERATED), "test_file": str(GOLD)}
    options = {"name": "comet", "template": "", "validation": 0, "test": 0, "limit": 0}
    return comet.load(ConfigDict(options | files | changes))


def _sizes(splits):
    sides = (splits.train, splits.validation, splits.test)
    return [(len(side), len(side["responses"].flat)) for side in sides]


def test_every_row_of_the_seven_relations_is_kept_and_all_others_are_counted():
    splits = _load()
    assert _sizes(splits) == [(943, 11_982), (75, 926), (713, 3444)]
    assert splits.notes == ("Dropped test rows of a relation other than the seven: 2589.",)
    triples = [line.split("\t") for line in GOLD.read_text(encoding="utf-8").splitlines()]
    kept = collections.Counter(relation for _, relation, _ in triples if relation in comet.PHRASES)
    of_test = collections.Counter()
    for example in splits.test:
        of_test[example.source] += len(example.responses)
    assert of_test == kept and kept.total() + 2589 == len(triples)


def test_the_generated_test_rows_stand_in_for_those_of_people():
    splits = _load(test_file="")
    assert _sizes(splits) == [(943, 11_982), (75, 926), (86, 1092)] and splits.notes == ()
    assert sum(count for _, count in _sizes(splits)) == 14_000


def test_rewards_are_those_of_the_rows_and_no_prompt_is_on_two_sides():
    splits = _load()
    with GENERATED.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    stored = {(r["head"].strip(), r["relation"], r["tail"]): r["p_valid_model"] for r in rows}
    for example in splits.train:
        head = example.prompt.split("<head> ")[1].split(" </head>")[0]
        for tail, reward in zip(example.responses, example.rewards, strict=True):
            assert stored[head, example.source, tail] == reward
    sides = [{normalise(e.prompt) for e in side} for side in (splits.train, splits.validation)]
    sides.append({normalise(e.prompt) for e in splits.test})
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_the_critics_pairs_name_every_person_x_and_y():
    for example in _load().test:
        for text in comet.pair(example.prompt, example.responses[0]):
            assert "PersonX" not in text and "PersonY" not in text
