"""The whole program on a tiny model: every stage, every objective, real kills, a bucket."""

import json
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from alol_jax import paths
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.checkpoint import load_params
from alol_jax.types import Policy
from tests.running import ROOT, SMALL, command, environment, refused, run, run_here

STAGES = {
    "load": 1,
    "score": 2,
    "fit_reference": 3,
    "generate": 4,
    "fit_value": 5,
    "select": 6,
    "fit_policy": 7,
    "evaluate_reference": 8,
    "evaluate": 8,
    "report": 9,
}
FOLDERS = sorted(f"{number:02d}_{stage}" for stage, number in STAGES.items())
FITS = ("03_fit_reference/trained", "05_fit_value/params", "07_fit_policy/trained")
ONLINE = (  # PPO that moves its answers
    "--config.objective.name=ppo",
    "--config.ppo.rollouts=8",
    "--config.policy.optimizer.learning_rate=0.02",
    "--config.decode.max_new_tokens=16",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = run(workdir, *SMALL)
    assert result.returncode == 0, result.stderr
    return workdir, result


def final_arrays(workdir, fits=FITS):
    """Every trained array of the run, as bytes."""
    return {
        f"{folder}/{path}": np.asarray(leaf).tobytes()
        for folder in fits
        for path, leaf in load_params(workdir.joinpath(*folder.split("/"))).items()
    }


def test_every_stage_leaves_a_folder_the_last_one_a_table_and_a_page(undisturbed):
    workdir, result = undisturbed
    assert sorted(path.name for path in workdir.iterdir()) == [".lock", *FOLDERS]
    assert "paired difference, policy - reference" in result.stdout
    assert result.stdout.rstrip().endswith("09_report/report.html")
    numbers = json.loads((workdir / "09_report" / "results.json").read_text())
    assert numbers["objective"] == "a_lol" and numbers["training_rows"] > 0
    report = json.loads((workdir / "06_select" / "data_report.json").read_text())
    assert report["kept"] == sum(group["kept"] for group in report["by_source"].values())


def test_a_second_run_computes_nothing_and_prints_the_same_table(undisturbed):
    workdir, first = undisturbed
    second = run(workdir, *SMALL)
    assert second.stdout.count("already done") == len(STAGES) and "running" not in second.stdout
    table = first.stdout[first.stdout.index("Means over") : first.stdout.index("done in")]
    assert table in second.stdout


def test_it_begins_with_what_it_will_do_in_words(undisturbed):
    lines = undisturbed[1].stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("this run, stage by stage"))
    assert start < next(n for n, line in enumerate(lines) if line.startswith("[fit_reference]"))
    assert lines[start + 6].endswith("how long it takes is said once a training step was timed")
    assert undisturbed[1].stderr == ""  # no progress where no terminal is


def test_the_metric_log_has_one_line_a_step(undisturbed):
    workdir, _ = undisturbed
    lines = (workdir / "07_fit_policy" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1))
    assert {"loss", "ratio_mean", "fraction_clipped", "effective_sample_size"} <= set(
        json.loads(lines[0])
    )


@pytest.mark.parametrize("folder", ["03_fit_reference", "07_fit_policy"])
def test_a_fit_says_how_many_of_the_tokens_that_it_computed_are_real(undisturbed, folder):
    workdir, result = undisturbed
    label, cost = folder[3:], load_result(workdir / folder, Policy).cost
    said = re.search(
        rf"{label}: real tokens (\d+)%, \d+ real tokens/s$", result.stdout, re.MULTILINE
    )
    assert said[1] == f"{100 * cost.real:.0f}" and 0 < cost.real < 1
    lines = (workdir / folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert cost.real == cost.tokens / cost.computed
    assert cost.tokens == sum(step["tokens"] for step in steps)
    assert cost.computed == sum(step["computed_tokens"] for step in steps)


@pytest.mark.slow
def test_eight_devices_train_the_same_reference_as_one(tmp_path):
    """The mesh 2 × 2 × 2 of virtual devices; dropout on: in equal grids the draws agree too."""
    grids = ("--config.model.width=208", "--config.model.rows=4")
    mesh = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
    logged = []
    for devices, more in ((1, ()), (8, mesh)):
        folder = tmp_path / str(devices)
        stages = "--stages=load,score,fit_reference"
        result = run_here(folder, *SMALL, *grids, *more, stages, devices=devices)
        assert result.returncode == 0, result.stderr
        assert "finished before generate, which --stages leaves out" in result.stdout
        lines = (folder / "03_fit_reference" / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        logged.append([(step["loss"], step["grad_norm"]) for step in steps])
    np.testing.assert_allclose(*logged, rtol=1e-5)


def start(workdir, *arguments):
    return subprocess.Popen(
        command(workdir, *SMALL, *arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, text):
    """Reads on until ``text`` is printed; False if the process ends first."""
    return any(text in line for line in process.stdout)


def killed_in(stage, within, workdir, *arguments):
    """Starts the program and kills it some time after the stage has begun; False if it was over."""
    process = start(workdir, *arguments)
    wait_for(process, f"[{stage}] ")  # running, or already done
    time.sleep(np.random.default_rng().uniform(0.0, within))  # other moments each time
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_kill_9_in_every_stage_leaves_the_adapters_of_an_undisturbed_run(undisturbed, tmp_path):
    workdir, _ = undisturbed
    long = ["fit_reference", "fit_policy"]
    killed = [
        killed_in(stage, 2.0 if stage in long else 0.4, tmp_path / "run")
        for stage in sorted([*STAGES, *long], key=[*STAGES].index)
    ]
    assert sum(killed) >= 6
    assert run(tmp_path / "run", *SMALL).returncode == 0
    assert final_arrays(tmp_path / "run") == final_arrays(workdir)
    logs = ["03_fit_reference/metrics.jsonl", "07_fit_policy/metrics.jsonl"]
    for log in logs:
        assert (tmp_path / "run" / log).read_text() == (workdir / log).read_text()


@pytest.mark.slow
def test_kill_9_at_any_moment_of_ppo_leaves_the_policy_of_an_undisturbed_run(undisturbed, tmp_path):
    workdir, _ = undisturbed
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in ("01_load", "02_score", "03_fit_reference"):
        for copy in (whole, broken):
            shutil.copytree(workdir / folder, copy / folder)
    result = run(whole, *SMALL, *ONLINE)
    assert result.returncode == 0, result.stderr
    took = float(re.search(r"\[fit_policy_online\] took (\S+) s", result.stdout)[1])
    killed = [killed_in("fit_policy_online", took / 2, broken, *ONLINE) for _ in range(4)]
    assert sum(killed) >= 2
    assert run(broken, *SMALL, *ONLINE).returncode == 0
    fits = ("07_fit_policy_online/trained",)
    assert final_arrays(broken, fits) == final_arrays(whole, fits)
    log = "07_fit_policy_online/metrics.jsonl"
    assert (broken / log).read_text() == (whole / log).read_text()
    assert len((whole / log).read_text().splitlines()) == 8
    fitted = [load_result(one / "07_fit_policy_online", Policy) for one in (whole, broken)]
    assert fitted[0].validations == fitted[1].validations


def test_sigterm_saves_says_how_to_go_on_and_changes_nothing(tmp_path):
    longer = ("--config.reference.epochs=2", "--stages=load,score,fit_reference")
    whole = run(tmp_path / "whole", *SMALL, *longer).stdout
    middle = re.findall(r"\[fit_reference\] step \d+/", whole)[1]  # by then all is compiled
    process = start(tmp_path / "run", *longer)
    assert wait_for(process, middle)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "saved at step" in said and "run the same command again to resume" in said
    assert "Traceback" not in said
    result = run(tmp_path / "run", *SMALL, *longer)
    assert "resuming at step" in result.stdout
    assert final_arrays(tmp_path / "run", FITS[:1]) == final_arrays(tmp_path / "whole", FITS[:1])


def test_a_run_whose_reader_leaves_stops_without_an_error_and_goes_on_later(undisturbed, tmp_path):
    workdir, _ = undisturbed
    first = "--stages=load,score,fit_reference"
    piped = subprocess.run(
        ["bash", "-c", '"$@" | head -n 1; exit "${PIPESTATUS[0]}"', "piped"]
        + command(tmp_path / "run", *SMALL, first),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert piped.returncode == 143 and piped.stdout.startswith("[load] train: ")
    assert piped.stderr.startswith("stopped: ") and len(piped.stderr.splitlines()) == 1
    assert run(tmp_path / "run", *SMALL, first).returncode == 0
    assert final_arrays(tmp_path / "run", FITS[:1]) == final_arrays(workdir, FITS[:1])


def test_64_bit_types_change_no_digit(undisturbed, tmp_path):
    workdir, first = undisturbed
    result = run(tmp_path / "run", *SMALL, JAX_ENABLE_X64="1")
    assert result.returncode == 0, result.stderr
    assert final_arrays(tmp_path / "run") == final_arrays(workdir)
    logs = ["03_fit_reference/metrics.jsonl", "07_fit_policy/metrics.jsonl"]
    for file in (
        *logs,
        "06_select/rows.arrow",
        "08_evaluate/policy.arrow",
        "09_report/results.csv",
    ):
        assert (tmp_path / "run" / file).read_bytes() == (workdir / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nll", "dpo"])
def test_what_an_objective_does_not_read_is_not_computed(name, undisturbed, tmp_path):
    workdir, _ = undisturbed
    for folder in ("01_load", "02_score", "03_fit_reference"):
        shutil.copytree(workdir / folder, tmp_path / "run" / folder)
    result = run_here(tmp_path / "run", *SMALL, f"--config.objective.name={name}")
    assert result.returncode == 0, result.stderr
    assert "[generate] not needed" in result.stdout and "[fit_value] not needed" in result.stdout
    assert (tmp_path / "run" / "09_report" / "report.html").exists()


def _said(role, text):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            lambda n: {
                "prompt": f"question {n}",
                "response": f"answer {n}",
                "reward": (7 * n % 11) / 10,
            },
            "[load] Read as a prompt and its responses (prompt, response, reward): 60 rows.",
        ),
        (
            lambda n: {
                "prompt": [*_said("system", "Be brief."), *_said("user", f"question {n}")],
                "chosen": _said("assistant", f"answer {n}"),
                "rejected": _said("assistant", f"no {n}"),
            },
            "[load] Read as a pair (prompt, chosen, rejected): 60 rows.",
        ),
    ],
    ids=["rewards", "pairs of messages"],
)
def test_own_data_goes_from_json_lines_to_report(row, said, tmp_path):
    rows = [row(n) for n in range(60)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = [argument for argument in SMALL if "test" not in argument]
    arguments = [f"--config.task.train_file={file}", "--config.task.test=8", *small]
    result = run_here(tmp_path / "run", *arguments, config="configs/own.py:debug")
    assert result.returncode == 0, result.stderr
    assert "prompts in the model's own chat template, whose turns end with" in result.stdout
    assert said in result.stdout
    assert "no scorer: the data's validation responses stand in" in result.stdout
    assert "reward-weighted logp of validation responses" in result.stdout
    assert "no scorer judges the generated answers" in result.stdout
    assert "likeness" in result.stdout and "logp gap" in result.stdout


# in a bucket

FIRST = "--stages=load,score,fit_reference"
TEXTS = (
    "03_fit_reference/metrics.jsonl",
    "06_select/data_report.json",
    "07_fit_policy/metrics.jsonl",
    "09_report/results.json",
    "09_report/results.csv",
)


def test_a_run_in_a_bucket_equals_a_local_one_and_a_second_computes_nothing(
    undisturbed, bucket, faults
):
    workdir, _ = undisturbed
    first = run_here(bucket, *SMALL)
    assert first.returncode == 0, first.stderr
    assert final_arrays(bucket) == final_arrays(workdir)
    for text in TEXTS:
        assert paths.read_text(bucket / text) == paths.read_text(workdir / text)
    assert paths.names(bucket) == FOLDERS  # the lock is gone
    for folder in FOLDERS:
        assert paths.names(bucket / folder) == paths.names(workdir / folder)
    faults.written.clear()
    second = run_here(bucket, *SMALL)
    assert second.stdout.count("already done") == len(STAGES) and "running" not in second.stdout
    assert [name.rpartition("/")[2] for name in faults.written] == [".lock"]


def test_a_killed_run_goes_on_in_its_bucket_bit_by_bit(undisturbed, bucket):
    workdir, _ = undisturbed
    process = start(bucket, FIRST)
    assert wait_for(process, "[fit_reference] step 2/")  # so that of step 0 is complete
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert ".lock" in paths.names(bucket)
    result = run_here(bucket, *SMALL, FIRST)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("already done") == 2 and "resuming at step" in result.stdout
    assert final_arrays(bucket, FITS[:1]) == final_arrays(workdir, FITS[:1])
    assert paths.read_text(bucket / TEXTS[0]) == paths.read_text(workdir / TEXTS[0])


def test_a_bucket_that_refuses_the_run_is_one_line(faults):
    for place, said in (
        ("gs://closed/run", "gs://closed/run/.lock: no permission"),
        ("gs://nobody/run", "gs://nobody/run: there is no such bucket"),
        ("s3://mine/run", "s3://mine/run: a workdir is a local folder or in gs://"),
        ("gss://mine/run", "gss://mine/run: no buckets with gss://"),
    ):
        assert refused(run_here(place, *SMALL)).startswith(f"error: {said}")
