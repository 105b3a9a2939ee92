"""The TPU compiler's flags: for which machine, and in which order."""

import os

import pytest

from tests.launch.scripts import run_line, stand_in
from tests.running import ROOT

V6E = (ROOT / "launch/xla_flags/v6e.txt").read_text(encoding="utf-8").strip()
SHOW = ["bash", "-euc", 'source launch/xla_flags.sh; echo "${LIBTPU_INIT_ARGS-unset}"']


@pytest.fixture
def flags(tmp_path):
    """LIBTPU_INIT_ARGS after sourcing, where the metadata server says ``metadata``."""

    def after(metadata="", **environment):
        stand_in(tmp_path, "curl", f"echo {metadata}" if metadata else "exit 6")
        result = run_line(SHOW, ROOT, stand_ins=tmp_path, **environment)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.strip()

    return after


def test_the_environment_says_which_tpu_it_is(flags):
    assert flags(TPU_ACCELERATOR_TYPE="v6e-8") == V6E
    assert flags("v6e-8", TPU_ACCELERATOR_TYPE="v5litepod-8") == "unset"


def test_without_it_the_metadata_of_the_vm_say_so(flags):
    assert flags("v6e-256") == V6E


def test_they_come_before_those_of_the_user(flags):
    assert flags("v6e-8", LIBTPU_INIT_ARGS="--mine=1") == f"{V6E} --mine=1"


@pytest.mark.parametrize("metadata", ["", "v4-8", "v99-8", "<html>a page of the network</html>"])
def test_where_there_is_no_file_nothing_changes(flags, metadata):
    assert flags(f"'{metadata}'" if metadata else "") == "unset"
    assert flags(f"'{metadata}'" if metadata else "", LIBTPU_INIT_ARGS="--mine=1") == "--mine=1"


def test_without_curl_nothing_is_asked(tmp_path):
    for name in ("bash", "dirname", "cat"):
        os.symlink(f"/usr/bin/{name}", tmp_path / name)
    result = run_line(SHOW, ROOT, PATH=str(tmp_path))
    assert (result.stdout, result.stderr) == ("unset\n", "")


@pytest.mark.parametrize(
    ("type_", "generation"),
    [
        *[("v4-8", "v4"), ("v5litepod-16", "v5e"), ("v5e-1", "v5e"), ("v5p-128", "v5p")],
        *[("v6e-8", "v6e"), ("v3-8", "v3"), ("", ""), ("../x", "")],
    ],
)
def test_the_generation_is_read_off_the_accelerator_type(type_, generation):
    ask = f'source launch/xla_flags.sh; tpu_generation "{type_}"'
    result = run_line(["bash", "-euc", ask], ROOT, TPU_ACCELERATOR_TYPE="v4-8")
    assert result.stdout.strip() == generation


def test_every_file_is_one_line_of_flags():
    for path in (ROOT / "launch/xla_flags").iterdir():
        words = path.read_text(encoding="utf-8").split()
        assert words and all(word.startswith("--xla_") and "=" in word for word in words), path
