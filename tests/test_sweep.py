"""A sweep: what its runs share, what each has of its own, and what is refused before it starts."""

import dataclasses
import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from alol_jax import sweep as program
from alol_jax.checks import COLUMNS
from alol_jax.errors import UserError
from alol_jax.main import Opened
from alol_jax.objectives.registry import OBJECTIVES
from alol_jax.runs.lock import lock_workdir
from alol_jax.runs.workdir import Run, finished_stage
from alol_jax.sweep import (
    SET_BY_SWEEP,
    check_against,
    columns_of,
    comparable_runs,
    config_from,
    earlier_runs,
    parse_lists,
    sweep,
)
from alol_jax.types import Limits, StageContext
from tests.reports.runs import config_of, finish
from tests.running import DEBUG, ROOT, SMALL, environment, refused
from tests.tiny_run import tiny_lm

HHA = "configs/hha.py"


@dataclasses.dataclass(frozen=True)
class Made:
    """What the stages of this file make."""

    value: int


@pytest.fixture
def computed(monkeypatch):
    """Runs are three stages without a model; the names of those that were computed."""
    names = []

    def select(options: ConfigDict, seed: int, *, context: StageContext) -> Made:
        names.append("select")
        return Made(seed)

    def fit_policy(objective: ConfigDict, seed: int, table: Made, *, context: StageContext) -> Made:
        names.append((objective.name, seed))
        return Made(seed)

    def evaluate_reference(table: Made, *, context: StageContext) -> Made:
        names.append("evaluate_reference")
        return table

    def recipe(config, run, opened, others):
        table = run.stage("select", select, config.select, config.seed)
        seed = config.policy.seed
        policy = run.stage("fit_policy", fit_policy, config.objective, seed, table)
        run.stage("evaluate_reference", evaluate_reference, table)
        return policy

    opened = Opened(tiny_lm(limits=Limits(160, 48)), None, None, ())
    monkeypatch.setattr(program, "prepare", lambda config: opened)
    monkeypatch.setattr(program, "recipe", recipe)
    return names


def swept(workdir, objectives, seeds, *, config_of=None, redo=False, **changed):
    config_of = config_of or config_from(DEBUG, changed)
    configs = {name: config_of(name) for name in objectives}
    return sweep(configs, workdir, seeds, redo=redo, stopping=lambda: False)


# who shares what


def test_every_objective_meets_every_seed_on_what_was_computed_once(tmp_path, computed):
    folders = swept(tmp_path, ["nll", "a_lol"], [0, 3])
    assert [folder.name for folder in folders] == ["nll-0", "a_lol-0", "nll-3", "a_lol-3"]
    first = ["select", ("nll", 0), "evaluate_reference"]
    assert computed == [*first, ("a_lol", 0), ("nll", 3), ("a_lol", 3)]
    for folder in folders:
        config = finished_stage(folder, "fit_policy").config()
        assert folder.name == f"{config.objective.name}-{config.policy.seed}" and config.seed == 0
        for place, stage in (
            (tmp_path / "shared" / "06_select", "select"),
            (folder / "07_fit_policy", "fit_policy"),
            (tmp_path / "shared" / "08_evaluate_reference", "evaluate_reference"),
        ):
            assert finished_stage(folder, stage).folder == place


def test_the_first_run_knows_all_objectives_that_its_rows_must_suit(
    tmp_path, computed, monkeypatch
):
    seen, inner = [], program.recipe

    def recipe(config, run, opened, others):
        seen.append([other.objective.name for other in others])
        return inner(config, run, opened, others)

    monkeypatch.setattr(program, "recipe", recipe)
    swept(tmp_path, ["nll", "a_lol"], [0])
    assert seen[0] == ["nll", "a_lol"]


def test_a_sweep_goes_on_with_what_is_missing(tmp_path, computed):
    swept(tmp_path, ["a_lol"], [0])
    computed.clear()
    swept(tmp_path, ["a_lol", "nll"], [0, 1])
    assert computed == [("nll", 0), ("a_lol", 1), ("nll", 1)]


def test_two_settings_of_one_objective_have_names_of_their_own(tmp_path, computed):
    configs = {
        name: config_from(DEBUG, {"objective.clip": clip})("a_lol")
        for name, clip in (("a_lol", 0.9), ("unclipped", float("inf")))
    }
    folders = sweep(configs, tmp_path, [1], redo=False, stopping=lambda: False)
    assert [folder.name for folder in folders] == ["a_lol-1", "unclipped-1"]
    assert computed == ["select", ("a_lol", 1), "evaluate_reference", ("a_lol", 1)]


def test_a_sweep_holds_its_own_folder_and_that_of_the_run(tmp_path, computed):
    for held in (tmp_path, tmp_path / "nll-0"):
        with lock_workdir(held), pytest.raises(UserError, match=f"^{held}: another run is using"):
            swept(tmp_path, ["nll"], [0])
    assert set(computed) <= {"select"}
    swept(tmp_path, ["nll"], [0])


def _annotate(options: ConfigDict, *, context: StageContext) -> Made:
    return Made(0)


def _selected(shared, columns):
    """The shared folder of a sweep that has annotated these columns."""
    config = config_from(DEBUG, {})("a_lol")
    config.select.columns = columns
    quiet = dict(stopping=lambda: False, say=lambda line: None)
    run = Run(shared, {"select": 6}, config, allowed=["select"], redo=True, **quiet)
    run.stage("select", _annotate, config.select)


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (("nll", "ppo"), ()),
        (("a_lol_ref_free",), ("advantage",)),
        (("a_lol_ref_free", "dpo"), ("ref_logp", "advantage")),
        (("dpo", "a_lol_ref_free"), ("ref_logp", "advantage")),
        (tuple(OBJECTIVES), COLUMNS),
    ],
)
def test_the_columns_are_those_that_any_of_the_objectives_reads(tmp_path, objectives, expected):
    assert columns_of(map(config_from(DEBUG, {}), objectives), tmp_path) == expected


def test_a_baseline_on_the_kept_rows_needs_the_advantage(tmp_path):
    config = config_from(DEBUG, {"policy.filter": "kept"})("nll")
    assert columns_of([config], tmp_path) == ("advantage",)


@pytest.mark.parametrize(
    ("before", "objectives", "expected"),
    [
        (("ref_logp", "advantage"), ("nll",), ("ref_logp", "advantage")),
        (("ref_logp", "advantage"), ("dpo", "wbc"), ("ref_logp", "advantage")),  # all rows have R
        (("ref_logp",), ("a_lol_ref_free",), ("ref_logp", "advantage")),
    ],
)
def test_what_was_annotated_before_stays(tmp_path, before, objectives, expected):
    _selected(tmp_path, before)
    assert columns_of(map(config_from(DEBUG, {}), objectives), tmp_path) == expected


def test_another_objective_that_reads_no_more_leaves_the_table_as_it_is(tmp_path, computed):
    swept(tmp_path, ["a_lol"], [0])
    swept(tmp_path, ["wbc", "nll", "dpo"], [0])
    assert computed.count("select") == 1
    assert finished_stage(tmp_path / "wbc-0", "select").config().select.columns == (
        "ref_logp",
        "advantage",
    )


@pytest.mark.parametrize("against", ["reference", "data", "a_lol", "a_lol-3", None])
def test_what_all_are_compared_with_is_a_row_that_there_will_be(against):
    check_against(against, ["a_lol", "nll"], [0, 3])


def test_a_row_that_there_will_not_be_is_refused_before_any_run():
    with pytest.raises(UserError, match="--against: no row 'a_lol-1': did you mean 'a_lol-"):
        check_against("a_lol-1", ["a_lol", "nll"], [0, 3])


def test_what_all_are_compared_with_may_be_a_run_that_is_there_already(tmp_path):
    check_against("dpo", ["a_lol"], [0], [tmp_path / "dpo-2"])
    check_against("dpo-2", ["a_lol"], [0], [tmp_path / "dpo-2"])


def test_runs_of_earlier_sweeps_are_compared_too_where_they_can_be(tmp_path, capsys):
    finish(tmp_path / "a_lol-0", config_of("a_lol"))
    finish(tmp_path / "nll-0", config_of("nll"))
    finish(tmp_path / "wbc-0", config_of("wbc", decode__max_new_tokens=3))
    (tmp_path / "dpo-0" / "08_evaluate").mkdir(parents=True)  # begun, not finished
    (tmp_path / "compare").mkdir()
    before = earlier_runs(tmp_path)
    assert [folder.name for folder in before] == ["a_lol-0", "nll-0", "wbc-0"]
    runs = comparable_runs([tmp_path / "a_lol-0"], before)
    assert runs == (tmp_path / "a_lol-0", tmp_path / "nll-0")
    said = capsys.readouterr().out
    assert said.count("not in the comparison: ") == 1
    assert "wbc-0 cannot be compared with" in said and "config.decode.max_new_tokens" in said


# the config of a run


def test_a_config_keeps_its_argument_gets_the_objective_and_what_flags_changed():
    config = config_from(f"{HHA}:size=pythia-160m", {"task.limit": 7, "model.max_prompt": 8})
    dpo, seq = config("dpo"), config("a_lol_seq")
    assert dpo.model.path == seq.model.path == "EleutherAI/pythia-160m"
    assert (dpo.task.limit, dpo.model.max_prompt) == (7, 8)
    # The config knew the objective when it was made: what depends on it is there.
    assert (dpo.policy.sampling, seq.policy.sampling) == ("uniform", "good_priority")
    assert (dpo.objective.name, seq.objective.name) == ("dpo", "a_lol_seq")


def test_the_objectives_of_a_sweep_win_over_the_one_in_the_argument():
    assert config_from(f"{HHA}:objective=pro,debug", {})("dpo").objective.name == "dpo"


def test_configs_of_one_file_share_nothing_that_changes():
    config_of = config_from(DEBUG, {})
    config_of("nll").policy.seed = 5
    assert config_of("nll").policy.seed == 0


@pytest.mark.parametrize("field", SET_BY_SWEEP)
def test_what_a_sweep_sets_itself_cannot_be_set(field):
    with pytest.raises(UserError, match=f"^--config.{field}: a sweep sets it in each run: "):
        config_from(DEBUG, {field: None})


def test_a_config_that_does_not_take_the_objective_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from configs import common\nget_config = lambda arg: common.get_config()\n")
    with pytest.raises(UserError, match=r"get_config\('objective=dpo'\) is for a_lol: a config of"):
        config_from(str(file), {})("dpo")


# refused before it starts


@pytest.mark.parametrize(
    ("objectives", "seeds", "message"),
    [
        (["nll", "dpoo"], ["0"], "'dpoo' is not an objective: did you mean 'dpo'"),
        (["nll"], ["0", "-1"], "^--seeds=0,-1: expected whole numbers, 0 or more"),
        (["nll"], ["1.5"], "^--seeds=1.5: expected whole numbers"),
        (["nll"], [], "^--seeds is empty: name at least one"),
        ([], ["0"], "^--objectives is empty"),
        (["nll"], ["0", "00"], "^--seeds=0,0: one is given twice"),
        (["nll", "nll"], ["0"], "^--objectives=nll,nll: one is given twice"),
    ],
)
def test_a_wrong_list_is_one_clear_line(objectives, seeds, message):
    with pytest.raises(UserError, match=message):
        parse_lists(objectives, seeds)


def test_lists_are_read():
    assert parse_lists(["nll", "a_lol"], ["0", "12"]) == (("nll", "a_lol"), [0, 12])


def test_a_config_that_cannot_run_to_its_end_is_refused_before_any_run(tmp_path, computed):
    with pytest.raises(UserError, match="'good_uniform': dpo needs 2 responses of a prompt"):
        swept(tmp_path, ["nll", "dpo"], [0], **{"policy.sampling": "good_uniform"})
    assert computed == []


def test_objectives_whose_configs_share_no_reference_are_refused_by_the_field(tmp_path, computed):
    plain = config_from(DEBUG, {})

    def config_of(objective):
        config = plain(objective)
        if objective == "dpo":
            config.reference.optimizer.learning_rate = 0.5
        return config

    with pytest.raises(UserError) as caught:
        swept(tmp_path, ["nll", "dpo"], [0], config_of=config_of)
    assert str(caught.value) == (
        "nll and dpo cannot share a reference: config.reference.optimizer.learning_rate = 0.001 "
        "for nll and 0.5 for dpo: run separate sweeps"
    )
    assert computed == []


def started(workdir, *arguments, config=DEBUG) -> subprocess.CompletedProcess:
    """What the program printed."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "alol_jax.sweep"),
            *(f"--config={config}", f"--workdir={workdir}", *arguments),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1200,
    )


def test_a_wrong_command_line_is_one_line_and_exit_code_2(tmp_path):
    line = refused(started(tmp_path / "sweep", "--objectives=nll,dpoo"))
    assert "'dpoo' is not an objective: did you mean 'dpo'?" in line
    assert not (tmp_path / "sweep").exists()


# the whole program


@pytest.mark.slow
def test_all_objectives_share_a_reference_go_to_a_report_and_are_compared(tmp_path):
    root, words = tmp_path / "sweep", (f"--objectives={','.join(OBJECTIVES)}", "--seeds=0", *SMALL)
    first = started(root, *words)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("[load] train: ") == 1
    for stage in "score fit_reference generate fit_value select".split():
        assert first.stdout.count(f"[{stage}] running") == 1
    for stage in ("evaluate", "report"):
        assert first.stdout.count(f"[{stage}] running") == len(OBJECTIVES)
    for name, objective in OBJECTIVES.items():
        stage = "07_fit_policy_online" if objective.online else "07_fit_policy"
        assert logged(root / f"{name}-0" / stage)
        assert (root / f"{name}-0" / "09_report" / "report.html").exists()
    for name in ("compare.html", "compare.csv", "compare.json", "compare.tex"):
        assert (root / "compare" / name).stat().st_size > 0
    told = json.loads((root / "compare" / "compare.json").read_text())
    assert len(told["runs"]) == len(OBJECTIVES)

    words = ("--objectives=a_lol,nll", "--seeds=0,1", *SMALL)
    second = started(root, *words)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("[fit_policy] running") == 2  # those of the new seed
    assert "[select] running" not in second.stdout
    told = json.loads((root / "compare" / "compare.json").read_text())
    assert len(told["runs"]) == len(OBJECTIVES) + 2  # those of the first sweep too
    runs = [root / f"{name}-{seed}" for name in ("a_lol", "nll") for seed in (0, 1)]
    fits = [
        {logged(finished_stage(run, name).folder) for run in runs}
        for name in ("fit_reference", "fit_policy")
    ]
    assert [len(different) for different in fits] == [1, 4]


def logged(stage):
    """What was logged of every step of a fit."""
    return (stage / "metrics.jsonl").read_text(encoding="utf-8")
