"""`alol_jax.compare`: what it writes, where the files agree, and which runs it refuses."""

import csv
import dataclasses
import inspect
import io
import json
import math
import re
import shutil
import sys

import pytest

from alol_jax.compare import FILES, compare, entry, parse
from alol_jax.decoding.answers import Setup
from alol_jax.errors import UserError
from alol_jax.reports.compare.files import LATEX, escaped
from alol_jax.reports.results import EVERY
from alol_jax.stages.evaluate import evaluate
from alol_jax.stages.load import load
from alol_jax.stages.score import score
from tests.reports.page_tags import assert_loads_nothing, tags
from tests.reports.runs import PARTS, SOURCES, answers, config_of, evaluated, finish, unscored
from tests.tiny_run import scored_table

SECTIONS = "results against frontiers sets components curves seeds cost settings runs".split()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Finished workdirs of three objectives; nll with two seeds. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        finish(folder / f"nll-{seed}", config_of("nll", policy_seed=seed))
    finish(folder / "a_lol-0", config_of("a_lol"), lift=0.3)
    finish(folder / "ppo-0", config_of("ppo", policy__optimizer__learning_rate=1e-5), lift=0.2)
    return folder


def written(workdirs, out, *, against=None) -> dict[str, str]:
    """The files by name, and what was said as ``terminal``."""
    said: list[str] = []
    compare(workdirs, out, against=against, say=said.append)
    texts = {name: (out / name).read_text(encoding="utf-8") for name in FILES}
    return texts | {"terminal": "\n".join(said)}


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    workdirs = [root / name for name in ("nll-0", "nll-1", "a_lol-0", "ppo-0")]
    return written(workdirs, tmp_path_factory.mktemp("out") / "made" / "here")


def figures(text: str) -> dict[tuple[str, ...], dict[str, str]]:
    lines = csv.DictReader(io.StringIO(text))
    return {(e["row"], e["against"], e["set"], e["metric"]): e for e in lines}


# what is written


def test_csv_and_json_carry_the_same_figures(done):
    lines = list(csv.DictReader(io.StringIO(done["compare.csv"])))
    estimates = json.loads(done["compare.json"])["estimates"]
    assert len(lines) == len(estimates) > 100
    for line, estimate in zip(lines, estimates, strict=True):
        assert line.keys() == estimate.keys()
        for name, value in estimate.items():
            if isinstance(value, str):
                assert line[name] == value
            else:
                assert (None if line[name] == "" else float(line[name])) == value


def test_the_page_shows_the_figures_of_the_files(done):
    shown = {a["value"] for tag, a in tags(done["compare.html"]).found if tag == "data"}
    found = figures(done["compare.csv"])
    for row in ("nll", "a_lol · seed 0", "ppo · seed 0", "reference", "data"):
        for key in ((row, "", EVERY, "total"), (row, "", EVERY, PARTS[0])):
            assert found[key]["mean"] in shown
        assert found[row, "", SOURCES[1], "total"]["mean"] in shown
        if row != "nll":
            assert found[row, "nll", EVERY, "total"]["mean"] in shown
            assert found[row, "nll", SOURCES[0], "total"]["mean"] in shown
    assert found["nll · seed 1", "", EVERY, "total"]["mean"] in shown
    assert found["nll", "", EVERY, "total"]["sd"] in shown
    for metric in ("seconds", "tokens", "flops"):
        assert found["a_lol · seed 0", "", EVERY, metric]["mean"] in shown


def test_terminal_and_latex_show_the_figures_of_the_files_rounded(done):
    found = figures(done["compare.csv"])
    for row in ("nll", "a_lol · seed 0", "ppo · seed 0", "reference", "data"):
        total = found[row, "", EVERY, "total"]
        mean, low, high = (f"{float(total[name]):.3f}" for name in ("mean", "low", "high"))
        line = next(x for x in done["terminal"].splitlines() if x.startswith(row + "  "))
        assert f" {mean} [{low}, {high}] " in line
        cells = next(x for x in done["compare.tex"].splitlines() if x.startswith(escaped(row)))
        assert f"& ${mean}$ {{\\scriptsize $[{low}, {high}]$}} &" in cells
        if row != "nll":
            gain = float(found[row, "nll", EVERY, "total"]["mean"])
            assert f"{gain:+.3f} [" in line and f"${gain:+.3f}$" in cells


def test_the_page_is_whole_and_loads_nothing(done):
    html = done["compare.html"]
    found = tags(html).found
    assert [a["id"] for tag, a in found if tag == "section"] == SECTIONS
    assert_loads_nothing(html)
    assert "NaN" not in html and not re.search(r"\bnan\b|\bNone\b", html)


def test_names_are_escaped_in_the_page_and_in_latex(done):
    assert PARTS == ("help_ful", "harm<less>")
    assert "harm&lt;less&gt;" in done["compare.html"] and "harm<less>" not in done["compare.html"]
    assert r"help\_ful" in done["compare.tex"]
    assert r"harm\textless{}less\textgreater{}" in done["compare.tex"]


def test_latex_reads_every_special_character_as_itself():
    special = "\\{}$&#%_~^<>"
    assert set(special) <= LATEX.keys()
    text = escaped(special)
    assert not re.search(r"(?<!\\)[$&#%_~^<>]", text)
    assert escaped("plain name 1.5") == "plain name 1.5"


def test_every_row_of_a_latex_table_has_as_many_cells_as_columns_are_declared(done):
    text = done["compare.tex"]
    tables = re.findall(r"begin\{tabular\}\{(lr+)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tables) == 3 and text.count("\\midrule") == 5
    for (columns, body), beside in zip(tables, (2, 2, 0), strict=True):
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert len(rows) == 1 + 3 + beside
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}


def test_many_test_sets_are_spread_over_several_tables(tmp_path):
    made = evaluated(answers(3, 0.0), answers(70, 0.0), 0)
    rows = {
        name: scored_table(
            dataclasses.replace(row, source=f"set {int(row.example_id[1:]) // 2}")
            for row in getattr(made, name)
        )
        for name in ("data", "reference", "policy")
    }
    sets = tuple(dataclasses.replace(made.sets[0], name=f"set {n}", prompts=2) for n in range(6))
    finish(
        tmp_path / "x", config_of("nll"), evaluation=dataclasses.replace(made, **rows, sets=sets)
    )
    done = written([tmp_path / "x"], tmp_path / "out")
    assert done["compare.tex"].count("begin{tabular}") == 4
    heads = re.findall(r"<th[^>]*>(set \d) \(2\)</th>", done["compare.html"])
    assert heads == [f"set {n}" for n in (0, 1, 2, 3, 4) * 2 + (5, 5)]


def test_the_table_fits_a_hundred_columns(root, tmp_path, done):
    long = config_of("a_lol", policy_seed=3)
    finish(tmp_path / ("x" * 80), long)
    finish(tmp_path / ("y" * 80), config_of("a_lol", seed=3, objective__clip=0.1))
    workdirs = [root / "nll-0", tmp_path / ("x" * 80), tmp_path / ("y" * 80)]
    said = written(workdirs, tmp_path / "out")["terminal"].splitlines()[:-1]
    assert max(map(len, [*said, *done["terminal"].splitlines()[:-1]])) <= 100


def test_the_runs_are_described_with_their_workdirs_and_what_tells_them_apart(done, root):
    about = json.loads(done["compare.json"])
    assert [run["workdir"] for run in about["runs"]][2] == str(root / "a_lol-0")
    assert [run["seed"] for run in about["runs"]] == [0, 1, 0, 0]
    assert about["against"] == "nll" and about["test_sets"] == list(SOURCES)
    rates = about["different_settings"]["policy.optimizer.learning_rate"]
    assert rates["ppo · seed 0"] == "1e-05" and rates["nll · seed 0"] == rates["a_lol · seed 0"]
    assert "policy.optimizer.learning_rate" in done["compare.html"]
    assert "policy.seed" not in about["different_settings"]


def test_a_single_run_is_compared_with_its_reference(root, tmp_path):
    made = written([root / "a_lol-0"], tmp_path / "out")
    assert "Comparison of 1 run<" in made["compare.html"] and "Seeds" not in made["compare.html"]
    assert ("a_lol · seed 0", "reference", EVERY, "total") in figures(made["compare.csv"])


def test_where_nothing_scores_the_files_are_written_all_the_same(tmp_path):
    for name in ("nll", "dpo"):
        made = evaluated(answers(len(name), 0.1), answers(70, 0.0), 0)
        finish(tmp_path / name, config_of(name), evaluation=unscored(made))
    made = written([tmp_path / "nll", tmp_path / "dpo"], tmp_path / "out")
    assert "Not scored" in made["compare.html"] and "they have no rewards" in made["compare.html"]
    found = {a["id"] for tag, a in tags(made["compare.html"]).found if tag == "section"}
    assert "results" in found and not {"sets", "components", "seeds"} & found
    assert not any(metric == "total" for *_, metric in figures(made["compare.csv"]))


def test_the_parameters_of_the_policies_are_not_read(root, tmp_path):
    shutil.copytree(root / "a_lol-0", tmp_path / "light")
    shutil.rmtree(tmp_path / "light" / "07_fit_policy" / "trained")
    assert written([root / "nll-0", tmp_path / "light"], tmp_path / "out")


def test_a_comparison_can_be_written_again_over_the_old_one(root, tmp_path):
    first = written([root / "nll-0", root / "a_lol-0"], tmp_path / "out")
    again = written([root / "nll-0", root / "a_lol-0"], tmp_path / "out")
    assert first == again


# what may differ


def test_model_template_seed_and_batch_size_may_differ_and_are_said(root, tmp_path):
    config = config_of("nll", seed=5, task__template="Q: {prompt}", decode__batch_size=7)
    config.decode.end = (99,)
    finish(tmp_path / "other", config, model="two")
    made = written([root / "nll-0", tmp_path / "other"], tmp_path / "out", against="reference")
    assert "2 different base models" in made["compare.html"]
    assert "2 different reference policies" in made["compare.html"]
    settings = json.loads(made["compare.json"])["different_settings"]
    assert settings.keys() == {"task.template", "decode.end"}


# refusals


def refused(workdirs, out, **options) -> str:
    """The one line; nothing was written."""
    with pytest.raises(UserError) as error:
        compare(workdirs, out, against=options.get("against"), say=lambda line: None)
    assert not out.exists() and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("task__swapped", 0.5, r"it has other data: config.task.swapped = 0.5, and 0.0 in .*nll-0"),
        ("rewards__help_ful", 2.0, r"another reward: config.rewards.help_ful = 2.0, and 1.0 in"),
        ("score__stored", ("a",), r"another reward: config.score.stored = \S*a\S*, and \[\] in"),
        ("decode__max_new_tokens", 3, r"decoding settings: config.decode.max_new_tokens = 3, and"),
        ("decode__end", (7,), r"other decoding settings: config.decode.end = \[7\], and \[\] in"),
    ],
)
def test_runs_that_are_not_comparable_are_refused_by_the_field(root, tmp_path, field, value, said):
    finish(tmp_path / "other", config_of("a_lol", **{field: value}))
    line = refused([root / "nll-0", tmp_path / "other"], tmp_path / "out")
    assert line.startswith(f"{tmp_path / 'other'} cannot be compared with {root / 'nll-0'}")
    assert re.search(said, line)


def test_answers_that_another_reward_judged_are_refused(root, tmp_path):
    finish(tmp_path / "other", config_of("a_lol"), judges={"help_ful": 3.0})
    line = refused([root / "nll-0", tmp_path / "other"], tmp_path / "out")
    assert "it has another reward of the answers: config.rewards" in line


def test_a_file_of_other_content_is_other_data(tmp_path):
    for name in ("nll", "dpo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(name)
        file = tmp_path / name / "rows.jsonl"
        finish(tmp_path / f"run-{name}", config_of(name), files=(file,))
    line = refused([tmp_path / "run-nll", tmp_path / "run-dpo"], tmp_path / "out")
    assert "it has other data: files.rows.jsonl = " in line


def test_what_an_objective_does_not_read_makes_no_other_kind_of_run(root, tmp_path):
    changed = {"ppo__rollouts": 7, "distill__epochs": 1, "policy__checkpoint_every": 7}
    finish(tmp_path / "more", config_of("nll", policy_seed=2, objective__beta=0.5, **changed))
    made = written([root / "nll-0", tmp_path / "more", root / "a_lol-0"], tmp_path / "out")
    about = json.loads(made["compare.json"])
    assert {run["group"] for run in about["runs"]} == {"nll", "a_lol"}
    assert (about["against"], about["different_settings"]) == ("nll", {})
    finish(tmp_path / "read", config_of("a_lol", policy_seed=2, objective__clip=0.5))
    made = written([root / "nll-0", tmp_path / "read", root / "a_lol-0"], tmp_path / "other")
    groups = {run["group"] for run in json.loads(made["compare.json"])["runs"]}
    assert groups == {"nll", "a_lol (clip=0.5)", "a_lol (clip=0.9)"}


def test_a_look_that_is_no_number_is_null(root, tmp_path):
    finish(tmp_path / "x", config_of("dpo"), last_look=math.nan)
    made = written([root / "nll-0", tmp_path / "x"], tmp_path / "out")
    nll, dpo = (run["validations"][-1]["score"] for run in json.loads(made["compare.json"])["runs"])
    assert nll is not None and dpo is None
    assert "NaN" not in made["compare.html"]


def test_the_same_file_in_another_place_is_the_same_data(tmp_path):
    for name in ("nll", "dpo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("same")
        file = tmp_path / name / "rows.jsonl"
        finish(tmp_path / f"run-{name}", config_of(name), files=(file,))
    assert written([tmp_path / "run-nll", tmp_path / "run-dpo"], tmp_path / "out")


def test_answers_to_other_prompts_are_refused_by_the_first(root, tmp_path):
    made = evaluated(answers(3, 0.0), answers(70, 0.0), 0)
    renamed = {
        name: scored_table(
            dataclasses.replace(row, example_id=row.example_id.replace("t4", "new"))
            for row in getattr(made, name)
        )
        for name in ("data", "reference", "policy")
    }
    finish(tmp_path / "x", config_of("dpo"), evaluation=dataclasses.replace(made, **renamed))
    line = refused([root / "nll-0", tmp_path / "x"], tmp_path / "out")
    assert line.endswith("it has other test prompts: the first is 'new'")


@pytest.mark.parametrize(
    ("until", "missing"),
    [("load", "score"), ("select", "fit_policy"), ("fit_policy", "evaluate")],
)
def test_an_unfinished_run_is_refused_by_its_next_stage(tmp_path, until, missing):
    finish(tmp_path / "x", config_of("nll"), until=until)
    line = refused([tmp_path / "x"], tmp_path / "out")
    assert line.startswith(f"{tmp_path / 'x'} has no finished {missing}: run alol_jax.main")


def test_a_workdir_that_is_not_there_is_refused(tmp_path):
    assert "there is no such workdir" in refused([tmp_path / "x"], tmp_path / "out")


def test_the_same_run_twice_is_refused_however_it_is_written(root, tmp_path):
    workdir = root / "nll-0"
    detour = root / "a_lol-0" / ".." / "nll-0"
    assert refused([workdir, detour], tmp_path / "out").endswith(
        "is given twice: leave one of them out"
    )
    shutil.copytree(workdir, tmp_path / "copy")
    line = refused([workdir, tmp_path / "copy"], tmp_path / "out")
    assert line.startswith(f"{tmp_path / 'copy'} holds the same run as {workdir}")


def test_an_evaluation_of_another_policy_than_the_one_that_lies_there_is_refused(tmp_path):
    finish(tmp_path / "x", config_of("nll"))
    finish(tmp_path / "x", config_of("nll", policy__epochs=9.0), until="fit_policy")
    line = refused([tmp_path / "x"], tmp_path / "out")
    assert "08_evaluate was made from another result than" in line and "07_fit_policy" in line


def test_a_run_of_another_version_is_refused(root, tmp_path):
    shutil.copytree(root / "nll-0", tmp_path / "old")
    file = tmp_path / "old" / "08_evaluate" / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    assert "another version of alol_jax" in refused([tmp_path / "old"], tmp_path / "out")


def test_a_directory_with_other_things_is_not_written_to(root, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds 'notes.txt', which is not from a comparison"):
        compare([root / "nll-0"], tmp_path, against=None, say=print)
    with pytest.raises(UserError, match="is a file"):
        compare([root / "nll-0"], tmp_path / "notes.txt", against=None, say=print)
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


def test_a_base_that_is_not_there_is_refused_before_anything_is_written(root, tmp_path):
    line = refused([root / "nll-0"], tmp_path / "out", against="nul")
    assert "did you mean 'nll'" in line


# the command


def test_the_command_line_is_read():
    options = parse(["a", "b", "--out=c", "--against=dpo"])
    assert ([str(w) for w in options.workdirs], str(options.out)) == (["a", "b"], "c")
    assert (options.against, options.debug) == ("dpo", False)


@pytest.mark.parametrize("words", [["--out=x"], ["a"], ["a", "--out=x", "--agains=nll"]])
def test_a_wrong_command_line_is_one_line_and_exit_code_2(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    with pytest.raises(SystemExit) as stopped:
        entry()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")


def test_a_refusal_is_one_line_and_exit_code_2_and_a_table_is_code_0(
    root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        entry()
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(f"error: {tmp_path} has")
    words = [str(root / "nll-0"), str(root / "a_lol-0"), f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["compare", *words])
    with pytest.raises(SystemExit) as stopped:
        entry()
    assert stopped.value.code == 0 and "compare.html" in capsys.readouterr().out


def test_the_stages_have_the_inputs_by_which_runs_are_told_apart():
    """Their names are the keys of record.json that `finished_runs` reads."""
    names = {stage: {*inspect.signature(stage).parameters} for stage in (load, score, evaluate)}
    assert {"task", "files", "options"} <= names[load]
    assert {"scoring", "options", "splits"} <= names[score]
    assert {"setup", "scored", "reference", "policy"} <= names[evaluate]
    assert {"lm", "scoring", "decoding"} <= {*Setup._fields}
