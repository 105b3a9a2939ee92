"""Paths, local and in a bucket: the same operations, and what a bucket refuses in one line."""

import os
import sys

import pytest

from alol_jax import paths
from alol_jax.errors import UserError


@pytest.fixture(params=["local", "bucket"])
def folder(request):
    """A folder of either kind, not there yet."""
    if request.param == "local":
        return request.getfixturevalue("tmp_path") / "folder"
    return request.getfixturevalue("bucket")


def test_what_is_written_is_read_listed_and_removed(folder):
    paths.make_folder(folder / "inner")
    paths.write_text(folder / "inner" / "a.txt", "ä")
    paths.write_text(folder / "b.txt", "one")
    paths.write_text(folder / "b.txt", "two")
    assert paths.read_text(folder / "inner" / "a.txt") == "ä"
    assert paths.read_text(folder / "b.txt") == "two"
    assert paths.names(folder) == ["b.txt", "inner"]
    paths.remove(folder / "b.txt")
    assert paths.names(folder) == ["inner"] and not paths.exists(folder / "b.txt")
    paths.remove(folder)
    assert paths.names(folder) == [] and not paths.exists(folder)
    paths.remove(folder)  # nothing is left to remove


def test_a_file_that_is_not_there_is_an_os_error(folder):
    with pytest.raises(FileNotFoundError):
        paths.read_text(folder / "no.txt")


def test_a_file_that_is_written_in_place_has_a_local_copy(folder):
    paths.make_folder(folder)
    with paths.written(folder / "table") as local:
        local.write_bytes(bytes(range(256)) * 100)
    assert paths.local_copy(folder / "table").read_bytes() == bytes(range(256)) * 100


def test_what_fails_while_it_is_written_replaces_nothing_in_a_bucket(bucket):
    paths.write_text(bucket / "table", "old")
    with pytest.raises(OSError, match="full"), paths.written(bucket / "table") as local:
        local.write_text("ne")
        raise OSError("the disk is full")
    assert paths.read_text(bucket / "table") == "old"
    assert paths.local_copy(bucket / "table").read_text() == "old"
    assert list(local.parent.glob("*.tmp")) == []


def test_a_local_copy_is_kept_until_the_object_changes(bucket, faults):
    paths.write_text(bucket / "in" / "rows", "one")
    copy = paths.local_copy(bucket / "in" / "rows")
    made = os.stat(copy).st_ino
    assert copy.name == "rows" and copy.read_text() == "one"
    assert os.stat(paths.local_copy(bucket / "in" / "rows")).st_ino == made
    paths.write_text(bucket / "in" / "rows", "two")
    assert paths.local_copy(bucket / "in" / "rows").read_text() == "two"


def test_a_folder_is_copied_with_what_is_wanted_of_it_and_no_more(bucket):
    for name in ("config.json", "model.safetensors", "optimizer.pt", "1_Pooling/config.json"):
        paths.write_text(bucket / "model" / name, name)
    copy = paths.local_copy(bucket / "model", ("*.json", "*.safetensors"))
    shown = {str(file.relative_to(copy)) for file in copy.rglob("[!.]*") if file.is_file()}
    assert shown == {"config.json", "model.safetensors", "1_Pooling/config.json"}
    paths.remove(bucket / "model" / "config.json")
    assert not (paths.local_copy(bucket / "model") / "config.json").exists()


def test_a_local_path_is_its_own_copy(tmp_path):
    assert paths.local_copy(tmp_path / "x") == tmp_path / "x"


def test_a_file_grows_and_what_is_kept_is_there_after_a_kill(folder):
    paths.make_folder(folder)
    log = paths.Appended(folder / "log", "1\n")
    log.write("2\n")
    log.keep()
    assert paths.read_text(folder / "log") == "1\n2\n"
    log.write("3\n")
    log.close()
    assert paths.read_text(folder / "log") == "1\n2\n3\n"


def test_only_the_first_creates_an_object(bucket):
    assert paths.create(bucket / "lock", "mine")
    assert not paths.create(bucket / "lock", "yours")
    assert paths.read_text(bucket / "lock") == "mine"


def test_a_write_that_breaks_off_or_is_refused_is_tried_again(bucket, faults):
    faults.broken_writes, faults.refused_writes = {"a$": 1}, {"b$": 2}
    for name in "ab":
        paths.write_text(bucket / name, name)
        assert paths.read_text(bucket / name) == name
    assert set(faults.broken_writes.values()) | set(faults.refused_writes.values()) == {0}


def test_a_bucket_without_permission_says_so_and_the_way_out(faults):
    closed = paths.path_of("gs://closed/runs")
    for ask in (
        lambda: paths.write_text(closed / "a", "a"),
        lambda: paths.read_text(closed / "a"),
        lambda: paths.create(closed / "a", "a"),
        lambda: paths.local_copy(closed / "a"),
    ):
        with pytest.raises(UserError, match=r"^gs://closed/runs/a: no permission .*gcloud auth"):
            ask()


def test_what_a_bucket_does_not_have_is_named(bucket):
    with pytest.raises(UserError, match=f"^{bucket}/no: there is no such file or folder"):
        paths.local_copy(bucket / "no")
    with pytest.raises(UserError, match="^gs://nobody/x: there is no such file or folder"):
        paths.local_copy("gs://nobody/x")


def test_a_kind_of_bucket_that_nobody_knows_is_named():
    with pytest.raises(UserError, match="gss://b/x: no buckets with gss://: did you mean 'gs'?"):
        paths.path_of("gss://b/x")


def test_a_missing_package_is_named(monkeypatch):
    import fsspec  # noqa: F401

    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="^gs://b/x: gs:// needs the package gcsfs: pip install"):
        paths.path_of("gs://b/x")
