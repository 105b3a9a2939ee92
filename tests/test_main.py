"""Bad input at the command line: one clear line, exit code 2, nothing lost."""

import functools
import json
import re
import subprocess

import pytest

from alol_jax.devices.hardware import accelerators
from alol_jax.errors import UserError
from alol_jax.runs.command_line import FORMER
from alol_jax.runs.lock import lock_workdir
from configs import quickstart
from tests.running import DEBUG, ROOT, command, environment, limited, refused, run, run_here

JSONL = "configs/own.py:debug"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config.polcy.epochs=1", "no key 'polcy': did you mean 'policy'?"),
        ("--config.model.lora.alpah=1", "no key 'alpah': did you mean 'alpha'?"),
        ("--config.policy.epochs=many", "could not convert string to float: 'many'"),
        ("--config.objective.name=alol", "'alol' is not an objective: did you mean 'a_lol'?"),
        ("--config.task.name=smaltalk", "'smaltalk' is no task: did you mean 'smalltalk'?"),
        ("--stages=load,evalute", "'evalute' is not a stage: did you mean 'evaluate'?"),
        ("--stages=evaluate,report", "stage load has no result"),
        ("--confg=x", "Unknown command line flag 'confg'. Did you mean: config ?"),
        ("x=3", "unexpected argument 'x=3'"),
        ("--config.mesh.data=3", "does not fit 1 devices"),
        ("--config.model.path=random:llama-tinny", "no preset 'llama-tinny'"),
        ("--config.model.path=/nowhere/llama", "'/nowhere/llama' is not a checkpoint"),
        ("--config.model.dtype=float31", "no dtype 'float31': did you mean 'float32'?"),
        ("--config.model.max_prompt=0", "config.model.max_prompt=0 must be 1 or more"),
        ("--config.model.width=206", "=206: a row holds whole examples of up to max_prompt + max_"),
        ("--config.model.width=333", "config.model.width=333 must be even"),
        ("--config.model.rows=-1", "config.model.rows=-1 must be a multiple of data · fsdp = 1"),
        ("--config.value.heads=0", "config.value.heads=0 must be above 0"),
        ("--config.seed=-1", "config.seed=-1 must be 0 or more"),
        ("--config.task.template=<|go|>{prompt}", "'<|go|>' is not a special token"),
        ("--config.task.template=Chat", "add it where the prompt belongs, or give 'chat'"),
        ("--config.policy.sampling=al_priority", "'al_priority': did you mean 'all_priority'?"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(argument, said, tmp_path):
    assert said in refused(run_here(tmp_path / "run", argument))


def test_rows_that_the_devices_cannot_share_are_one_line(tmp_path):
    arguments = ("--config.mesh.data=2", "--config.model.rows=3")
    line = refused(run_here(tmp_path / "run", *arguments, devices=2))
    assert "config.model.rows=3 must be a multiple of data · fsdp = 2, or 0 (chosen)" in line


@pytest.mark.parametrize("field", FORMER)
def test_a_key_of_former_versions_is_one_line_that_says_what_replaces_it(field, tmp_path):
    name = field.split(".")[-1]
    line = refused(run_here(tmp_path / "run", f"--config.{field}=2"))
    said = f"--config.{field}=2: the config has no key '{name}' any more; {FORMER[field]}"
    assert line == f"error: {said}"
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import quickstart\n\n\n"
        "def get_config(arg=None):\n"
        "    config = quickstart.get_config('debug')\n"
        "    with config.unlocked():\n"
        f"        config.{field} = 2\n"
        "    return config\n"
    )
    line = refused(run_here(tmp_path / "run", config=str(file)))
    assert line == f"error: config.{field}: there is no such key any more; {FORMER[field]}"
    assert not (tmp_path / "run" / "01_load").exists()


def test_a_key_that_reward_models_had_is_one_line_too(tmp_path):
    key = "reward_models.model.batch_size"
    line = refused(run_here(tmp_path / "run", f"--config.{key}=4", config=JSONL))
    assert "no key 'batch_size' any more; examples are packed" in line


def test_the_keys_of_former_versions_are_no_keys_any_more():
    config = quickstart.get_config("debug")
    for field, instead in FORMER.items():
        *sections, name = field.split(".")
        assert name not in functools.reduce(lambda inner, part: inner[part], sections, config)
        for told in re.findall(r"config\.(\w+)\.(\w+)", instead):
            assert told[1] in config[told[0]]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("configs/nothing.py", "there is no file 'configs/nothing.py'"),
        ("configs/quickstart.py:dbug", "takes debug, objective=…, size=…, reward=…, not 'dbug'"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_it(config, said, tmp_path):
    assert said in refused(run_here(tmp_path / "run", config=config))


def test_a_process_prints_the_line_alone_and_exits_with_2(tmp_path):
    assert "no key 'polcy'" in refused(run(tmp_path / "run", "--config.polcy.epochs=1"))


GOOD = [{"prompt": f"question {n}", "response": "a fine answer", "reward": 0.5} for n in range(80)]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"prompt": "a", "response"', "line 81"),
        ('{"prompt": "a", "reward": 1}', "line 81"),
        ('{"prompt": "a", "response": 3, "reward": 1}', "'response'"),
        ('{"prompt": " ", "response": "b", "reward": 1}', "prompt"),
        ('{"prompt": "a", "response": "", "reward": 1}', "response"),
        ('{"prompt": "a", "response": "b", "reward": NaN}', "reward"),
    ],
)
def test_a_bad_row_is_one_line_with_file_and_line(bad, said, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*map(json.dumps, GOOD), bad]) + "\n")
    line = refused(run_here(tmp_path / "r", f"--config.task.train_file={file}", config=JSONL))
    assert str(file) in line and "line 81" in line and said in line


def test_an_error_in_the_data_is_the_only_thing_on_the_screen(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("no JSON\n")
    words = (f"--config.task.train_file={file}",)
    alone = run_here(tmp_path / "run", *words, config=JSONL)
    assert refused(alone).endswith("not valid JSON: Expecting value: line 1 column 1 (char 0)")
    assert alone.stdout == ""
    file.write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    read = run_here(tmp_path / "run", *words, "--stages=load", config=JSONL).stdout.splitlines()
    trains = next(n for n, line in enumerate(read) if line.startswith("training "))
    assert max(n for n, line in enumerate(read) if line.startswith("[load] ")) < trains


def test_with_debug_the_modules_that_train_are_listed_before_the_data_is_read(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("no JSON\n")
    words = command(tmp_path / "run", f"--config.task.train_file={file}", "--debug", config=JSONL)
    result = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert "  layers/q_proj " in result.stdout and "Traceback" in result.stderr


@pytest.mark.parametrize("platform", ["tpu", "cuda"], ids="asked for {}".format)
def test_a_platform_that_is_not_here_is_refused(platform, tmp_path):
    if platform in accelerators():
        pytest.skip("it is here")
    line = refused(run(tmp_path / "run", JAX_PLATFORMS=platform))
    assert line.startswith(f"error: JAX_PLATFORMS={platform}: this machine has")


def test_a_terminal_without_unicode_sees_the_run(tmp_path):
    result = run(tmp_path / "run", "--stages=load", PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and result.stderr == ""
    assert "\n1 x cpu (cpu), " in result.stdout


def test_a_missing_data_file_is_named(tmp_path):
    arguments = ["--config.task.train_file=/nowhere/rows.jsonl"]
    assert "/nowhere/rows.jsonl" in refused(run_here(tmp_path / "r", *arguments, config=JSONL))


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert str(tmp_path / "file") in refused(run_here(tmp_path / "file" / "run"))


@pytest.mark.parametrize("kilobytes", [1, 8])  # the first file fails, or a later one
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(kilobytes, tmp_path):
    stopped = subprocess.run(
        limited(command(tmp_path / "run", "--stages=load"), kilobytes=kilobytes),
        cwd=ROOT,
        env=environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"},  # no halves of programs
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "File too large" in refused(stopped)
    later = run_here(tmp_path / "run", "--stages=load")
    assert (
        later.returncode == 0 and "finished before score, which --stages leaves out" in later.stdout
    )
    assert (tmp_path / "run" / "01_load" / "result.json").exists()


def test_another_config_is_refused_by_name_and_debug_shows_the_traceback(tmp_path):
    run_here(tmp_path / "run", "--stages=load")
    line = refused(run_here(tmp_path / "run", "--stages=load", "--config.task.limit=9"))
    assert "config.task.limit = 64, this run has 9" in line and "--redo" in line
    with pytest.raises(UserError, match="this run has 9"):
        run_here(tmp_path / "run", "--stages=load", "--config.task.limit=9", "--debug")
    redone = run_here(tmp_path / "run", "--stages=load", "--config.task.limit=9", "--redo")
    assert "task.limit kept 9 of" in redone.stdout


def test_an_edited_data_file_is_not_taken_for_the_old_one(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    arguments = [f"--config.task.train_file={file}", "--stages=load"]
    assert run_here(tmp_path / "run", *arguments, config=JSONL).returncode == 0
    with file.open("a") as stream:
        stream.write(json.dumps(GOOD[0] | {"prompt": "one more"}) + "\n")
    assert "files" in refused(run_here(tmp_path / "run", *arguments, config=JSONL))


def test_a_workdir_that_another_run_uses_is_refused(tmp_path):
    with lock_workdir(tmp_path / "run"):
        assert "another run is using" in refused(run_here(tmp_path / "run"))


def test_the_debug_config_names_the_debug_model():
    assert quickstart.get_config("debug").model.path == "random:llama-tiny" and DEBUG.endswith(
        ":debug"
    )
