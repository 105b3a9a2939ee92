"""Archives, good and bad ones."""

import errno
import io
import shutil
import tarfile
import zipfile

import pytest

from alol_jax.errors import UserError
from alol_jax.prepare.unpack import unpack

FILES = {"train/train.json": "out/train.json", "model/": "out/model"}
GOOD = {"data/train/train.json": b"rows" * 9999, "data/model/config.json": b"{}", "data/x": b"x"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def zipped(here, members):
    with zipfile.ZipFile(here / "a.zip", "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return here / "a.zip"


def tarred(here, members, links=()):
    with tarfile.open(here / "a.tgz", "w:gz") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return here / "a.tgz"


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("make", [zipped, tarred])
def test_only_the_wanted_members_are_unpacked(make, here):
    new = unpack(make(here, GOOD), FILES)
    assert sorted(map(str, new)) == ["out/model", "out/train.json"]
    assert contents(here / "out") == {"train.json": b"rows" * 9999, "model/config.json": b"{}"}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_what_exists_is_left_alone(make, here):
    (here / "out").mkdir()
    (here / "out" / "train.json").write_bytes(b"mine")
    unpack(make(here, GOOD), FILES)
    assert contents(here / "out")["train.json"] == b"mine"


def test_several_folders_may_become_one_directory(here):
    members = {"down/model/config.json": b"{}", "down/tokenizer/vocab.json": b"[]"}
    wanted = {"down/model/": "out/model", "down/tokenizer/": "out/model"}
    assert unpack(zipped(here, members), wanted) == [here.relative_to(here) / "out/model"]
    assert contents(here / "out/model") == {"config.json": b"{}", "vocab.json": b"[]"}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_members_that_lead_elsewhere_are_not_unpacked(make, here):
    evil = {"data/model/../../../evil": b"!", "/data/model/absolute": b"!", "model/../evil": b"!"}
    unpack(make(here, GOOD | evil), FILES)
    assert contents(here / "out").keys() == {"train.json", "model/config.json"}
    assert not list(here.parent.rglob("evil"))


def test_links_are_not_unpacked(here):
    unpack(tarred(here, GOOD, links=["data/model/link"]), FILES)
    assert contents(here / "out").keys() == {"train.json", "model/config.json"}
    link = zipfile.ZipInfo("data/model/link")
    link.external_attr = 0o120777 << 16
    shutil.rmtree(here / "out")
    with zipfile.ZipFile(zipped(here, GOOD), "a") as archive:
        archive.writestr(link, "/etc/passwd")
    unpack(here / "a.zip", FILES)
    assert contents(here / "out").keys() == {"train.json", "model/config.json"}


@pytest.mark.parametrize("make", [zipped, tarred])
def test_half_an_archive_is_one_line_and_leaves_nothing(make, here):
    archive = make(here, GOOD)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="the archive is damaged .*it was deleted") as caught:
        unpack(archive, FILES)
    assert "\n" not in str(caught.value)
    assert (
        not archive.exists() and contents(here / "out" if (here / "out").exists() else here) == {}
    )


def test_a_flipped_bit_is_noticed(here):
    archive = zipped(here, GOOD)
    body = bytearray(archive.read_bytes())
    body[200] ^= 1
    archive.write_bytes(body)
    with pytest.raises(UserError, match="damaged"):
        unpack(archive, FILES)
    assert not (here / "out" / "train.json").exists()


def test_a_web_page_in_place_of_an_archive_is_said(here):
    (here / "a.zip").write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(UserError, match="a web page, not an archive"):
        unpack(here / "a.zip", FILES)


def test_a_member_that_is_not_there_or_there_twice_is_one_line(here):
    with pytest.raises(UserError, match="holds no train/train.json: what is published has changed"):
        unpack(zipped(here, {"model/config.json": b"{}"}), FILES)
    assert not (here / "out" / "model").exists()
    with pytest.raises(UserError, match="holds two members train/train.json"):
        unpack(zipped(here, GOOD | {"train/train.json": b"other"}), FILES)
    assert not (here / "out" / "train.json").exists()


def test_a_full_disk_is_one_line_and_the_archive_stays(here, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = zipped(here, GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(UserError, match="the disk is full: more is needed, .* are free"):
            unpack(archive, FILES)
    assert archive.exists() and contents(here / "out") == {}
    unpack(archive, FILES)
