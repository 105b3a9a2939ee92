"""The table of published places, and the places of the user."""

import json
import re
from pathlib import PurePosixPath

import pytest

from alol_jax.errors import UserError
from alol_jax.prepare.places import PLACES, Place, find, read_places
from alol_jax.prepare.unpack import is_archive
from alol_jax.tasks.registry import get_task
from configs import comet, dialogue, hha, reddit


def test_every_place_says_what_is_known_of_it():
    for name, place in PLACES.items():
        assert place.files and bool(place.addresses) != bool(place.manual), name
        assert all(re.fullmatch(r"https?://\S+", address) for address in place.addresses), name
        assert re.fullmatch(r"([0-9a-f]{64})?", place.sha256) and place.size >= 0, name
        assert place.looked_up == "2026-11-28" and place.note == "not fetched from here", name
        assert "\n" not in place.manual and place.licence, name
        if place.addresses:
            assert is_archive(name) or list(place.files) == [""], name


def test_every_local_path_is_below_data_or_models_and_in_one_place():
    paths = [path for place in PLACES.values() for path in {*place.files.values()}]
    assert len(set(paths)) == len(paths)
    for path in map(PurePosixPath, paths):
        assert path.parts[0] in ("data", "models") and ".." not in path.parts


@pytest.mark.parametrize(
    "config",
    [
        hha.get_config(),
        comet.get_config(),
        reddit.get_config("sign=neg"),
        dialogue.get_config("data=wow"),
    ],
    ids=lambda config: config.task.name,
)
def test_every_file_that_a_published_config_names_has_a_place(config):
    files = get_task(config.task).files(config.task)
    assert files and all(find(path, PLACES) for path in files)
    named = [config.model.path, *(model.path for model in config.reward_models.values())]
    assert all(find(path, PLACES) for path in named if path.startswith("models/"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/comet/test.tsv", "atomic2020_data-feb2021.zip"),
        ("data/comet/ATOMIC10X.jsonl", "symbolic-knowledge-distillation.tar.gz"),
        ("models/comet-distill/", "symbolic-knowledge-distillation.tar.gz"),
        ("data/reddit/comments_negative.csv", "reddit-comments"),
        ("models/DGPT_medium_OC_S_and_SBF_offensive_e2", "toxichat-offensive"),
        ("data/wow/test_topic_split.json", "wizard_of_wikipedia.tgz"),
        ("./data/wow/train.json", "wizard_of_wikipedia.tgz"),
    ],
)
def test_a_place_is_found_by_its_local_path(path, name):
    found, place = find(path, PLACES)
    assert found == name and place is PLACES[name]


def test_a_path_of_the_user_has_no_place():
    assert find("mine.jsonl", PLACES) is None and find("data/wow/other.json", PLACES) is None


def test_places_of_the_user_go_before_the_published_ones(tmp_path):
    mine = tmp_path / "places.json"
    place = {"files": {"": "data/hh_dev/sampled_dev.json"}, "addresses": ["http://here/dev.json"]}
    mine.write_text(json.dumps({"dev": place}))
    places = read_places(str(mine))
    assert find("data/hh_dev/sampled_dev.json", places) == (
        "dev",
        Place(place["files"], ("http://here/dev.json",), looked_up="", note=""),
    )
    assert find("data/comet/test.tsv", places) == find("data/comet/test.tsv", PLACES)
    assert read_places("") is PLACES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "expected an object, name -> place"),
        ('{"a": {"addresses": []}}', "a: expected an object with files"),
        ('{"a": {"files": {}, "hash": "0"}}', "a: a place has no field 'hash'"),
        ('{"a": {"files": {}, "addresses": "http://x"}}', "addresses is a text"),
    ],
)
def test_a_bad_file_of_places_is_one_line(text, said, tmp_path):
    file = tmp_path / "places.json"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^ALOL_PLACES: {file}: .*{said}"):
        read_places(str(file))
    with pytest.raises(UserError, match="No such file"):
        read_places(str(tmp_path / "none.json"))
