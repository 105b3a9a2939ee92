"""Downloads over bad connections."""

import collections
import errno
import hashlib
import shutil

import pytest

from alol_jax.errors import Interrupted, UserError
from alol_jax.prepare import web
from alol_jax.prepare.web import Wanted, download
from tests.prepare.server import closed_port, site

BODY = bytes(range(256)) * 5000
HASH = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def place(monkeypatch):
    monkeypatch.setattr(web, "CHUNK", 100_000)
    with site() as it:
        it.files["/a.bin"] = BODY
        yield it


def fetch(place, tmp_path, *, size=0, sha256="", slept=None, **more):
    wanted = Wanted(f"{place.address}/a.bin", tmp_path / "in" / "a.bin", size, sha256)
    download(wanted, sleep=(slept if slept is not None else []).append, **more)
    return wanted.target


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_nothing_else_stays(place, tmp_path):
    target = fetch(place, tmp_path, size=len(BODY), sha256=HASH)
    assert target.read_bytes() == BODY and names(target.parent) == ["a.bin"]
    assert place.asked == [("/a.bin", "")]


def test_a_cut_connection_is_resumed_where_it_was_cut(place, tmp_path):
    place.cut_after += [300_000, 200_000]
    target = fetch(place, tmp_path, sha256=HASH)
    assert target.read_bytes() == BODY
    starts = [asked for _, asked in place.asked]
    assert len(starts) == 3 and starts[0] == "" and all(s.startswith("bytes=") for s in starts[1:])


def test_a_connection_that_is_cut_again_and_again_without_a_byte_is_one_line(place, tmp_path):
    place.cut_after += [300_000, 0, 0]
    slept = []
    with pytest.raises(UserError, match=r"cut after 300000 of 1280000 bytes, 3 times in a row"):
        fetch(place, tmp_path, slept=slept)
    assert slept == [1.0, 2.0]
    assert fetch(place, tmp_path, sha256=HASH).read_bytes() == BODY  # continues
    assert place.asked[-1] == ("/a.bin", "bytes=300000-")


def test_a_server_without_ranges_sends_everything_again(place, tmp_path):
    place.cut_after += [300_000]
    place.ranges = False
    assert fetch(place, tmp_path, sha256=HASH).read_bytes() == BODY


@pytest.mark.parametrize("etag", ["", 'W/"v1"'])
def test_without_a_strong_validator_a_download_starts_anew(etag, place, tmp_path):
    place.etag = etag
    place.cut_after += [300_000]
    assert fetch(place, tmp_path).read_bytes() == BODY
    assert [asked for _, asked in place.asked] == ["", ""]


def test_a_file_that_changed_on_the_server_is_not_mixed_with_its_old_part(place, tmp_path):
    place.cut_after += [300_000, 0, 0]
    with pytest.raises(UserError):
        fetch(place, tmp_path)
    place.files["/a.bin"], place.etag = BODY[::-1], '"v2"'
    assert fetch(place, tmp_path).read_bytes() == BODY[::-1]


def test_the_part_of_another_address_is_not_continued(place, tmp_path):
    place.files["/b.bin"] = BODY[::-1]
    place.cut_after += [300_000, 0, 0]
    with pytest.raises(UserError):
        fetch(place, tmp_path)
    target = tmp_path / "in" / "a.bin"
    download(Wanted(f"{place.address}/b.bin", target))
    assert target.read_bytes() == BODY[::-1]


def test_a_part_that_is_complete_is_taken(place, tmp_path):
    place.cut_after += [300_000, 0, 0]
    with pytest.raises(UserError):
        fetch(place, tmp_path)
    (tmp_path / "in" / "a.bin.part").write_bytes(BODY)  # killed before the file got its name
    assert fetch(place, tmp_path, sha256=HASH).read_bytes() == BODY


def test_a_file_that_the_server_calls_encoded_is_kept_as_it_is_sent(place, tmp_path):
    place.encoding = "gzip"
    assert fetch(place, tmp_path, size=len(BODY), sha256=HASH).read_bytes() == BODY


def test_an_overloaded_server_is_asked_again(place, tmp_path):
    place.statuses += [500, 503]
    slept = []
    assert fetch(place, tmp_path, slept=slept).read_bytes() == BODY
    assert slept == [1.0, 2.0]


@pytest.mark.parametrize(("statuses", "said"), [([404], "404"), ([403], "403"), ([500] * 3, "500")])
def test_what_the_server_refuses_is_one_line(statuses, said, place, tmp_path):
    place.statuses += statuses
    with pytest.raises(UserError, match=rf"/a.bin: the server answers {said}|a.bin: the server"):
        fetch(place, tmp_path)
    assert names(tmp_path / "in") == []


def test_no_network_is_one_line_with_the_address(tmp_path):
    wanted = Wanted(f"{closed_port()}/a.bin", tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"^http://127.0.0.1:\d+/a.bin: no connection"):
        download(wanted, sleep=[].append)


def test_a_wrong_hash_deletes_the_file_and_says_both(place, tmp_path):
    wrong = "0" * 64
    with pytest.raises(UserError, match=rf"sha256 {HASH}, expected {wrong}; it was deleted"):
        fetch(place, tmp_path, sha256=wrong)
    assert names(tmp_path / "in") == []


def test_a_file_of_another_size_than_the_tables_is_not_even_received(place, tmp_path):
    with pytest.raises(UserError, match="the file there has 1280000 bytes, expected 7"):
        fetch(place, tmp_path, size=7)
    assert names(tmp_path / "in") == []


def free(count):
    usage = collections.namedtuple("usage", "total used free")
    return lambda path: usage(10 * count, 9 * count, count)


def test_too_little_space_is_said_before_anything_is_written(place, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", free(1000))
    with pytest.raises(UserError, match=r"1.3 MB more are needed, 1.0 kB are free"):
        fetch(place, tmp_path)
    assert names(tmp_path / "in") == []


def test_a_disk_that_fills_up_is_one_line_and_the_part_is_continued(place, tmp_path, monkeypatch):
    written = []

    def put(stream, chunk):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(stream.write(chunk))

    with monkeypatch.context() as patch:
        patch.setattr(web, "put", put)
        with pytest.raises(UserError, match=r"the disk is full: 980.0 kB more are needed, .* free"):
            fetch(place, tmp_path)
    assert fetch(place, tmp_path, sha256=HASH).read_bytes() == BODY
    assert place.asked[-1] == ("/a.bin", "bytes=300000-")


def test_a_download_that_is_asked_to_stop_is_continued_later(place, tmp_path):
    with pytest.raises(Interrupted):
        fetch(place, tmp_path, stopping=lambda: True)
    assert fetch(place, tmp_path, sha256=HASH).read_bytes() == BODY
    assert place.asked[-1] == ("/a.bin", "bytes=100000-")
