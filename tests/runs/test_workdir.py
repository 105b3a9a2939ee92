"""A run's folder: what is loaded, what is computed, what is refused, and what a kill leaves."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.errors import Finished, Interrupted, UserError
from alol_jax.runs import workdir
from alol_jax.runs.workdir import Run, finished_stage
from alol_jax.types import StageContext

NAMES = {"first": 1, "other": 2, "second": 3, "third": 4}


@dataclasses.dataclass(frozen=True)
class Made:
    """What the stages of this file make."""

    value: float
    path: tuple[str, ...]


class Model:
    """Something that says itself what it is."""

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


class Trial:
    """One start of the program on a workdir: its stages, and which of them were computed."""

    def __init__(
        self,
        folder: Path,
        *,
        allowed=NAMES,
        redo=False,
        seed=0,
        numbers=NAMES,
        shared=None,
        shared_stages=(),
        **first,
    ):
        self.config = ConfigDict({"size": 3, "inner": {"rate": 0.5}} | first)
        self.config = ConfigDict(
            {"first": self.config, "other": {"size": 1}, "seed": seed, "log": {}}
        )
        self.computed, self.said = [], []
        self.run = Run(
            folder,
            numbers,
            self.config,
            allowed=allowed,
            redo=redo,
            stopping=lambda: False,
            say=self.said.append,
            shared=shared,
            shared_stages=shared_stages,
        )

    def first(self, during=lambda context: None) -> Made:
        def make(options: ConfigDict, seed: int, *, context: StageContext) -> Made:
            self.computed.append("first")
            during(context)
            return Made(options.size / 3, ("first", str(options.inner.rate)))

        return self.run.stage("first", make, self.config.first, self.config.seed)

    def after(self, name: str, before: Made) -> Made:
        def make(before: Made, *, context: StageContext) -> Made:
            self.computed.append(name)
            return Made(before.value + 1, (*before.path, name))

        return self.run.stage(name, make, before)

    def other(self) -> Made:
        def make(options: ConfigDict, *, context: StageContext) -> Made:
            self.computed.append("other")
            return Made(0.0, ())

        return self.run.stage("other", make, self.config.other)

    def all(self) -> Made:
        self.other()
        return self.after("third", self.after("second", self.first()))

    def with_late(self, late: int) -> Made:
        """The same but for the last stage, which takes a setting of this run alone."""

        def make(before: Made, late: int, *, context: StageContext) -> Made:
            self.computed.append("third")
            return Made(before.value + late, before.path)

        return self.run.stage("third", make, self.after("second", self.first()), late)


def test_a_second_run_loads_every_result_and_computes_none(tmp_path):
    before = Trial(tmp_path)
    made = before.all()
    after = Trial(tmp_path)
    assert after.all() == made == Made(3.0, ("first", "0.5", "second", "third"))
    assert before.computed == ["other", "first", "second", "third"]
    assert after.computed == []
    assert after.said == [f"[{name}] already done" for name in before.computed]
    assert {path.name for path in tmp_path.iterdir()} == {
        "01_first",
        "02_other",
        "03_second",
        "04_third",
    }


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"size": 4}, "config.first.size = 3, this run has 4"),
        ({"inner": {"rate": 0.25}}, "config.first.inner.rate = 0.5, this run has 0.25"),
        ({"more": "x"}, 'config.first.more = null, this run has "x"'),
        ({"size": None}, "config.first.size = 3, this run has null"),
        ({"seed": 1}, "config.seed = 0, this run has 1"),
    ],
)
def test_a_changed_field_is_an_error_that_names_it(tmp_path, change, difference):
    Trial(tmp_path).all()
    trial = Trial(tmp_path, **change)
    trial.other()
    with pytest.raises(UserError) as caught:
        trial.first()
    assert str(caught.value).startswith(f"{tmp_path}/01_first was made with {difference}; ")
    assert "--workdir" in str(caught.value) and "--redo" in str(caught.value)
    assert trial.computed == []
    assert Trial(tmp_path).all().value == 3.0  # nothing was harmed


def test_redo_computes_what_changed_and_all_that_follows_from_it(tmp_path):
    Trial(tmp_path).all()
    trial = Trial(tmp_path, redo=True, size=6)
    assert trial.all().value == 4.0
    assert trial.computed == ["first", "second", "third"]  # "other" does not depend on it
    again = Trial(tmp_path, size=6)
    assert again.all().value == 4.0 and again.computed == []


def test_redo_with_nothing_changed_computes_nothing(tmp_path):
    Trial(tmp_path).all()
    trial = Trial(tmp_path, redo=True)
    trial.all()
    assert trial.computed == []


def test_a_changed_upstream_makes_what_follows_stale(tmp_path):
    Trial(tmp_path).all()
    for file in (tmp_path / "01_first").iterdir():
        file.unlink()
    trial = Trial(tmp_path, size=6)
    first = trial.first()
    with pytest.raises(UserError, match=r"03_second was made with before = \"\w+\", this run has"):
        trial.after("second", first)


def test_a_stage_that_may_not_run_is_named_with_the_way_out(tmp_path):
    trial = Trial(tmp_path, allowed=("second",))
    with pytest.raises(UserError, match="stage first has no result .* add first to --stages"):
        trial.first()
    Trial(tmp_path).first()
    trial = Trial(tmp_path, allowed=("second",))
    assert trial.after("second", trial.first()).value == 2.0
    assert trial.computed == ["second"]


def test_of_two_stages_with_one_number_the_second_may_be_left_out(tmp_path):
    numbers = {"first": 1, "second": 2, "other": 2}
    with pytest.raises(Finished, match="finished before other, which --stages leaves out"):
        Trial(tmp_path, allowed=("first", "second"), numbers=numbers).other()


def test_redo_does_not_drop_the_result_of_a_stage_that_may_not_run(tmp_path):
    Trial(tmp_path).all()
    with pytest.raises(UserError, match="add first to --stages"):
        Trial(tmp_path, allowed=("third",), redo=True, size=6).first()
    trial = Trial(tmp_path)
    trial.all()
    assert trial.computed == []


def test_a_stage_that_is_computed_anew_has_no_result_until_it_is_complete(tmp_path):
    Trial(tmp_path).all()

    def fail(context):
        assert finished_stage(tmp_path, "first") is None
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        Trial(tmp_path, redo=True, size=6).first(fail)
    assert finished_stage(tmp_path, "first") is None
    assert Trial(tmp_path, size=6).first().value == 2.0


# interruptions


def interrupted(context):
    (context.folder / "state").write_text("half way", encoding="utf-8")
    raise Interrupted("saved")


def test_what_an_interrupted_stage_kept_is_there_when_it_goes_on(tmp_path):
    with pytest.raises(Interrupted):
        Trial(tmp_path).first(interrupted)
    assert finished_stage(tmp_path, "first") is None
    seen = []
    trial = Trial(tmp_path)
    trial.first(lambda context: seen.append((context.folder / "state").read_text("utf-8")))
    assert seen == ["half way"]
    left = {path.name for path in (tmp_path / "01_first").iterdir()}
    assert left == {"state", "result.json", "config.json", "record.json"}


def test_the_checkpoints_of_a_finished_stage_are_dropped(tmp_path):
    def train(context):
        (context.folder / "checkpoints" / "4").mkdir(parents=True)
        (context.folder / "metrics.jsonl").write_text("", encoding="utf-8")

    assert Trial(tmp_path).first(train).value == 1.0
    left = {path.name for path in (tmp_path / "01_first").iterdir()}
    assert "checkpoints" not in left and "metrics.jsonl" in left


def test_what_another_config_began_is_refused_or_with_redo_dropped(tmp_path):
    with pytest.raises(Interrupted):
        Trial(tmp_path).first(interrupted)
    with pytest.raises(UserError, match=r"01_first was made with config\.first\.size = 3"):
        Trial(tmp_path, size=6).first()
    assert (tmp_path / "01_first" / "state").exists()
    seen = []
    trial = Trial(tmp_path, size=6, redo=True)
    assert trial.first(lambda context: seen.extend(context.folder.glob("state"))).value == 2.0
    assert seen == []


def test_a_stage_that_had_only_been_announced_binds_nobody(tmp_path):
    def fail(context):
        raise UserError("bad data")

    with pytest.raises(UserError, match="bad data"):
        Trial(tmp_path).first(fail)
    assert Trial(tmp_path, size=6).first().value == 2.0


class Killed(BaseException):
    """Stands in for kill -9: nothing catches it."""


def killed_at(patch, change: int) -> None:
    """Kills the program at this change to a file or folder, counted from 0, before it is made."""
    changes = itertools.count()

    def dying(change_made):
        def made(*arguments, **named):
            if next(changes) == change:
                raise Killed
            return change_made(*arguments, **named)

        return made

    for name in ("write_text", "remove", "make_folder"):
        patch.setattr(paths, name, dying(getattr(paths, name)))


@pytest.mark.parametrize("stale", [False, True])
def test_a_kill_at_any_change_to_the_folder_leaves_a_usable_one(tmp_path, stale):
    died = 0
    for change in itertools.count():
        folder = tmp_path / str(change)
        if stale:
            Trial(folder, size=9).first()
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, change)
            try:
                Trial(folder, redo=stale).first()
            except Killed:
                died += 1
            else:
                break
        known = finished_stage(folder, "first")
        trial = Trial(folder, redo=stale)
        assert trial.all().value == 3.0
        old = known is not None and known.record["inputs"]["config.first"]["size"] == 9
        assert ("first" in trial.computed) == (known is None or old)
        again = Trial(folder)
        assert again.all().value == 3.0 and again.computed == []
    assert died >= 7 + 2 * stale  # folder, both records, config, result, and what is dropped


def test_a_kill_while_saving_leaves_a_usable_folder(tmp_path, monkeypatch):
    def killed(folder, result):
        (folder / "result.json").write_text('{"val', encoding="utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workdir, "save_result", killed)
        with pytest.raises(KeyboardInterrupt):
            Trial(tmp_path).first()
    assert Trial(tmp_path).first().value == 1.0


def test_a_stage_gets_its_folder_its_name_and_the_wish_to_stop(tmp_path):
    seen = []
    trial = Trial(tmp_path)
    trial.first(lambda context: seen.append(context))
    (context,) = seen
    context.say("half")
    running, took, half = trial.said
    assert (running, half) == ("[first] running", "[first] half")
    assert re.fullmatch(r"\[first\] took \d+\.\d s", took)
    assert context.folder.name == "01_first"
    assert context.stopping() is False and context.log.tensorboard is False
    trial.run.skip("other", "nobody reads it")
    assert trial.said[-1] == "[other] not needed: nobody reads it"


# inputs


def _one(value: object, *, context: StageContext) -> Made:
    return Made(1.0, ())


def _input_record(folder: Path, value) -> dict:
    Trial(folder).run.stage("first", _one, value)
    return json.loads((folder / "01_first" / "record.json").read_text("utf-8"))["inputs"]


def test_inputs_are_recorded_as_what_they_say(tmp_path):
    values = [3, 0.1, "x", True, None, (1, ("a",)), Model("f00"), Made(2.0, ("p",)), _one]
    recorded = [_input_record(tmp_path / str(n), value)["value"] for n, value in enumerate(values)]
    assert recorded == [
        3,
        0.1,
        "x",
        True,
        None,
        [1, ["a"]],
        "f00",
        {"value": 2.0, "path": ["p"]},
        "_one",
    ]


def test_a_folder_is_recorded_as_its_files(tmp_path):
    data = tmp_path / "data"
    (data / "inner").mkdir(parents=True)
    (data / "inner" / "rows").write_text("one")
    first = _input_record(tmp_path / "1", data)
    assert list(first["value"]["content"]) == ["inner/rows"]
    (data / "inner" / "rows").write_text("two")
    assert _input_record(tmp_path / "2", data) != first


class Pair(NamedTuple):
    left: Model
    right: int


def test_a_named_tuple_is_recorded_as_its_fields(tmp_path):
    assert _input_record(tmp_path, Pair(Model("f00"), 3)) == {"left": "f00", "right": 3}


def test_another_fingerprint_is_another_input(tmp_path):
    _input_record(tmp_path, Model("f00"))
    with pytest.raises(UserError, match='value = "f00", this run has "ba5"'):
        _input_record(tmp_path, Model("ba5"))


def test_an_input_that_cannot_be_described_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a stage cannot take a set: it has no fingerprint"):
        _input_record(tmp_path, {1})


def test_another_format_is_stale(tmp_path, monkeypatch):
    Trial(tmp_path).first()
    monkeypatch.setattr(workdir, "FORMAT", workdir.FORMAT + 1)
    with pytest.raises(UserError, match=r"format = \d+, this run has \d+"):
        Trial(tmp_path).first()


def test_a_workdir_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(OSError) as caught:
            Trial(folder)
        assert caught.value.filename == str(folder)
