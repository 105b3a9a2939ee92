"""Runs of a sweep: what they share lies in one place, and each workdir is whole all the same."""

import json
from pathlib import Path

import pytest

from alol_jax.errors import Interrupted, UserError
from alol_jax.runs.workdir import finished_stage
from tests.runs.test_workdir import NAMES, Made, Trial, interrupted

SWEPT = NAMES | {"second": 6, "third": 7}
SHARED = ("first", "other", "second")  # the others each run has for itself


def _swept(root: Path, name: str, **changes) -> Trial:
    """A run of a sweep: its own folder, and what it shares beside it."""
    shared = {"shared": root / "shared", "shared_stages": SHARED}
    return Trial(root / name, numbers=SWEPT, **shared, **changes)


def _link_of(folder: Path) -> str:
    """The only thing in the folder of a stage that others share: where its result is."""
    (file,) = folder.iterdir()
    return json.loads(file.read_text("utf-8"))["folder"]


def _alone(folder: Path, **changes) -> Trial:
    """A run that knows of no other."""
    return Trial(folder, numbers=SWEPT, **changes)


def test_what_runs_share_is_computed_once_and_linked_into_each_workdir(tmp_path):
    one, two = _swept(tmp_path, "one"), _swept(tmp_path, "two")
    assert one.with_late(1) == Made(3.0, ("first", "0.5", "second"))
    assert two.with_late(5) == Made(7.0, ("first", "0.5", "second"))
    assert one.computed == ["first", "second", "third"] and two.computed == ["third"]
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"01_first", "06_second"}
    for name in ("one", "two"):
        for stage in ("01_first", "06_second"):
            assert _link_of(tmp_path / name / stage) == f"../../shared/{stage}"
        assert not (tmp_path / name / "07_third" / "link.json").exists()


def test_a_run_of_a_sweep_that_starts_again_computes_nothing(tmp_path):
    _swept(tmp_path, "one").with_late(1)
    again = _swept(tmp_path, "one")
    assert again.with_late(1).value == 3.0 and again.computed == []


def test_a_workdir_with_links_is_a_workdir_like_any_other_wherever_both_are_moved(tmp_path):
    _swept(tmp_path / "here", "one").with_late(1)
    (tmp_path / "here").rename(tmp_path / "there")
    trial = _alone(tmp_path / "there" / "one")
    assert trial.with_late(1).value == 3.0 and trial.computed == []
    assert finished_stage(tmp_path / "there" / "one", "second") is not None


def test_what_a_run_computes_anew_on_its_own_stays_its_own(tmp_path):
    _swept(tmp_path, "one").with_late(1)
    _swept(tmp_path, "two").with_late(5)
    with pytest.raises(UserError, match="one/01_first was made with config.first.size = 3"):
        _alone(tmp_path / "one", size=6).with_late(1)
    assert _alone(tmp_path / "one", size=6, redo=True).with_late(1).value == 4.0
    assert not (tmp_path / "one" / "01_first" / "link.json").exists()
    for two in (_swept(tmp_path, "two"), _alone(tmp_path / "two")):
        assert two.with_late(5).value == 7.0 and two.computed == []


def test_what_is_shared_and_computed_anew_changes_for_all_and_the_others_find_out(tmp_path):
    _swept(tmp_path, "one").with_late(1)
    _swept(tmp_path, "two").with_late(5)
    assert _swept(tmp_path, "one", size=6, redo=True).with_late(1).value == 4.0
    assert _link_of(tmp_path / "one" / "01_first") == "../../shared/01_first"
    with pytest.raises(UserError, match="two/07_third was made with before ="):
        _swept(tmp_path, "two", size=6).with_late(5)
    two = _swept(tmp_path, "two", size=6, redo=True)
    assert two.with_late(5).value == 8.0 and two.computed == ["third"]


def test_a_shared_stage_that_was_interrupted_goes_on_in_any_run(tmp_path):
    with pytest.raises(Interrupted):
        _swept(tmp_path, "one").first(interrupted)
    assert list((tmp_path / "one").iterdir()) == []
    seen = []
    two = _swept(tmp_path, "two")
    two.first(lambda context: seen.append((context.folder / "state").read_text("utf-8")))
    assert seen == ["half way"]


def test_what_lies_where_a_link_belongs_is_refused_or_with_redo_replaced(tmp_path):
    _swept(tmp_path, "one").with_late(1)
    _alone(tmp_path / "one", size=6, redo=True).with_late(1)
    with pytest.raises(UserError, match="one/01_first was made with config.first.size = 6"):
        _swept(tmp_path, "one").with_late(1)
    assert _swept(tmp_path, "one", redo=True).with_late(1).value == 3.0
    trial = _alone(tmp_path / "one")
    assert trial.with_late(1).value == 3.0 and trial.computed == []


def test_a_link_that_leads_nowhere_is_made_anew(tmp_path):
    _swept(tmp_path, "one").with_late(1)
    (tmp_path / "shared").rename(tmp_path / "other")
    moved = {"shared": tmp_path / "other", "shared_stages": SHARED}
    trial = Trial(tmp_path / "one", numbers=SWEPT, **moved)
    assert trial.with_late(1).value == 3.0 and trial.computed == []
    assert _link_of(tmp_path / "one" / "01_first") == "../../other/01_first"


def test_what_a_sweep_shares_may_itself_be_shared_with_another_sweep(tmp_path):
    _swept(tmp_path / "first", "one").with_late(1)
    links = {"shared": tmp_path / "first" / "shared", "shared_stages": ("first", "other")}
    Trial(tmp_path / "second" / "shared", numbers=SWEPT, **links).with_late(1)
    two = _swept(tmp_path / "second", "two")
    assert two.with_late(5).value == 7.0 and two.computed == ["third"]
    found = finished_stage(tmp_path / "second" / "two", "first")
    assert found.folder.resolve() == tmp_path / "first" / "shared" / "01_first"
