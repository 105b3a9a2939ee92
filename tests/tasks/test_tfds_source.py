"""Data sets of tensorflow-datasets as data: by directory, by name, by split."""

import shutil

import pytest
import tensorflow_datasets
from ml_collections import ConfigDict

from alol_jax.errors import UserError
from alol_jax.runs import tfds
from alol_jax.tables.table import Table
from alol_jax.tasks import own, sources, tfds_source
from tests.tables.rows import Row, row


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of tensorflow-datasets with one prepared data set, ``rows``."""
    tfds.write(tmp_path / "home" / "rows" / "1.0.0", "rows", Table.of(map(row, range(6)), Row))
    make = tensorflow_datasets.builder
    monkeypatch.setattr(
        tensorflow_datasets,
        "builder",
        lambda name, **options: make(name, data_dir=tmp_path / "home", **options),
    )
    return tmp_path / "home"


@pytest.mark.parametrize("name", ["tfds:rows", "tfds:rows:1.0.0", "tfds:rows@train"])
def test_a_prepared_data_set_is_read_by_name(home, name):
    read = list(sources.read_listed(name))
    assert [place for place, _ in read][:2] == [f"{name}, row 1", f"{name}, row 2"]
    assert [one["text"] for _, one in read] == [row(n).text for n in range(6)]
    assert sources.on_disk(name) == home / "rows" / "1.0.0" and sources.stem(name) == "rows"


def test_a_directory_is_read_with_and_without_the_prefix(home):
    folder = home / "rows" / "1.0.0"
    assert list(sources.read_file(folder)) == [
        (place.removeprefix("tfds:").replace("@train", ""), one)
        for place, one in sources.read_listed(f"tfds:{folder}@train")
    ]
    assert sources.on_disk(f"tfds:{folder}@train") == folder


def test_a_split_that_is_not_there_and_a_name_that_nobody_knows_are_one_line(home):
    with pytest.raises(UserError, match="tfds:rows@dev: split 'dev' cannot be read by tensorfl"):
        list(sources.read_listed("tfds:rows@dev"))
    with pytest.raises(UserError, match="tfds:no_such: tensorflow-datasets cannot prepare it"):
        sources.on_disk("tfds:no_such")


def test_what_is_here_is_known_without_preparing_anything(home):
    assert tfds_source.is_prepared("tfds:rows@train")
    assert tfds_source.is_prepared(f"tfds:{home / 'rows' / '1.0.0'}")
    assert not tfds_source.is_prepared("tfds:no_such")


def test_the_task_reads_it_and_an_edit_of_its_files_is_noticed(home):
    options = ConfigDict(
        {"train_file": "tfds:rows", "validation_file": "", "test_file": "", "limit": 0}
        | {"name": "own", "columns": {}, "bad_rows": "stop", "bad_share": 0.0}
    )
    assert own.OWN.files(options) == (home / "rows" / "1.0.0",)
    with pytest.raises(UserError, match="tfds:rows, row 1: no form of a row has"):
        own.load(options)
    shutil.rmtree(home / "rows")
    with pytest.raises(UserError, match="tensorflow-datasets cannot prepare it"):
        own.OWN.files(options)
