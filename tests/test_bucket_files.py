"""Data, models and what programs write, in a bucket: as if they were on this machine."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.compare import FILES
from alol_jax.compare import compare as compare_runs
from alol_jax.compare import parse as parse_compare
from alol_jax.devices.compile_cache import use_compile_cache
from alol_jax.errors import UserError
from alol_jax.export import export, parse
from alol_jax.models.files.convert import open_checkpoint
from alol_jax.models.files.peft_adapter import read_adapter
from alol_jax.models.presets import PRESETS
from alol_jax.paths import with_local_copies
from alol_jax.prepare.wanted import wanted
from alol_jax.rewards.distilled import DESCRIPTION, Description, read_description, save_distilled
from alol_jax.runs.checkpoint import load_params
from alol_jax.sweep import earlier_runs
from alol_jax.tasks.registry import get_task
from configs import own
from tests.finished_run import config_of, finished_run
from tests.models.files.torch_files import write_torch
from tests.models.tiny_llama import random_weights, write_directory
from tests.reports import runs
from tests.running import refused, run_here

CACHE = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


def put(folder, bucket):
    """Copies a local folder into a bucket."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with paths.written(bucket / str(file.relative_to(folder))) as local:
                shutil.copyfile(file, local)
    return bucket


def inside(folder):
    """The files in a local copy of a bucket's folder."""
    return {str(file.relative_to(folder)) for file in folder.rglob("[!.]*") if file.is_file()}


# data


def _rows(count):
    return "".join(
        json.dumps({"prompt": f"question {n}", "response": f"answer {n}", "reward": n % 7}) + "\n"
        for n in range(count)
    )


def test_a_task_reads_its_files_from_a_bucket(bucket):
    paths.write_text(bucket / "data" / "mine.jsonl", _rows(40))
    options = own.get_config().task
    options.train_file = f"{bucket}/data/mine.jsonl"
    options.validation = options.test = 5
    local = with_local_copies(options)
    splits = get_task(options).load(local)
    assert len(splits.train) == 30 and splits.train[0].source == "mine"
    assert [file.read_text() for file in get_task(options).files(local)] == [_rows(40)]
    assert options.train_file == f"{bucket}/data/mine.jsonl"  # as the record has it


def test_lists_and_sections_of_files_are_copied_and_other_options_are_not_touched(bucket):
    for name in "ab":
        paths.write_text(bucket / name, name)
    options = ConfigDict(
        {"files": (f"{bucket}/a", "local.csv"), "of": {"b": f"{bucket}/b"}, "text": "as in gs://x"}
    )
    local = with_local_copies(options)
    assert [Path(file).read_text() for file in (local.files[0], local.of.b)] == ["a", "b"]
    assert local.files[1] == "local.csv" and local.text == "as in gs://x"


def test_a_run_reads_its_data_from_a_bucket_and_sees_when_it_changes(bucket, tmp_path):
    file = bucket / "mine.jsonl"
    paths.write_text(file, _rows(60))
    arguments = (f"--config.task.train_file={file}", "--config.task.validation=8")
    arguments += ("--config.task.test=8", "--stages=load")
    first = run_here(tmp_path / "run", *arguments, config="configs/own.py:debug")
    assert "[load] train: 44 prompts" in first.stdout, first.stderr
    again = run_here(tmp_path / "run", *arguments, config="configs/own.py:debug")
    assert "[load] already done" in again.stdout
    paths.write_text(file, _rows(61))
    said = refused(run_here(tmp_path / "run", *arguments, config="configs/own.py:debug"))
    assert "01_load was made with files" in said


def test_data_that_is_not_in_the_bucket_is_one_line(bucket, tmp_path):
    missing = f"--config.task.train_file={bucket}/no.jsonl"
    said = refused(run_here(tmp_path / "run", missing, config="configs/own.py:debug"))
    assert said == f"error: {bucket}/no.jsonl: there is no such file or folder in the bucket"


def test_prepare_lists_what_is_in_a_bucket_and_what_is_not(bucket):
    paths.write_text(bucket / "mine.jsonl", _rows(3))
    config = own.get_config("debug")
    config.task.train_file = f"{bucket}/mine.jsonl"
    (data,) = wanted(config, {})[:1]
    assert data.title == f"data {bucket}/mine.jsonl" and data.there() and data.about() == "your own"
    config.task.train_file = f"{bucket}/no.jsonl"
    assert not wanted(config, {})[0].there()


# models


def _same(one, other):
    assert one.weights.shapes == other.weights.shapes
    for name in one.weights.shapes:
        np.testing.assert_array_equal(one.weights.read(name), other.weights.read(name))


def test_a_model_is_read_from_a_bucket_and_its_other_files_are_not_copied(bucket, tmp_path):
    here = open_checkpoint(write_directory(tmp_path / "llama", random_weights()))
    (tmp_path / "llama" / "optimizer.pt").write_text("large")
    (tmp_path / "llama" / "checkpoint-5").mkdir()
    (tmp_path / "llama" / "checkpoint-5" / "model.safetensors").write_text("large")
    put(tmp_path / "llama", bucket / "llama")
    shutil.rmtree(paths.cache_folder())  # where they were written first
    there = open_checkpoint(f"{bucket}/llama")
    _same(here, there)
    assert inside(there.weights.path) == {"config.json", "model.safetensors"}


def test_a_model_of_torch_files_is_read_from_a_bucket(bucket, tmp_path):
    here = open_checkpoint(write_directory(tmp_path / "llama", random_weights()))
    other = tmp_path / "torch"
    write_directory(other, random_weights())
    (other / "model.safetensors").unlink()
    write_torch(other / "pytorch_model.bin", random_weights())
    _same(here, open_checkpoint(str(put(other, bucket / "torch"))))


def test_a_bucket_without_the_model_is_one_line(bucket):
    with pytest.raises(UserError, match=f"^{bucket}/llama: there is no such file or folder"):
        open_checkpoint(f"{bucket}/llama")


def test_a_distilled_reward_model_is_saved_in_a_bucket_and_read_from_it(bucket):
    described = Description("{prompt}", (), "", (4, 4), 2, {"weights": "0"}, {}, {"rows": 3})
    head = {"kernel": np.arange(6, dtype=np.float32)}
    save_distilled(bucket / "reward", described, head)
    with pytest.raises(UserError, match="reward is not empty: choose another --out"):
        save_distilled(bucket / "reward", described, head)
    local = paths.local_copy(bucket / "reward")
    assert read_description(local / DESCRIPTION, "here") == described
    np.testing.assert_array_equal(load_params(local / "head")["kernel"], head["kernel"])


# what programs write


def test_an_export_from_and_to_a_bucket_is_that_of_local_folders(bucket, tmp_path):
    finished_run(tmp_path / "run", config_of("random:llama-tiny"))
    finished_run(bucket / "run", config_of("random:llama-tiny"))
    for workdir, out in ((tmp_path / "run", tmp_path / "out"), (bucket / "run", bucket / "out")):
        export(parse([f"--workdir={workdir}", "--what=adapter", f"--out={out}"]))
    copy = paths.local_copy(bucket / "out")
    names = inside(tmp_path / "out")
    assert inside(copy) == names
    for name in names - {"README.md"}:  # which names the workdir
        assert (copy / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    read = [read_adapter(out, PRESETS["llama-tiny"]) for out in (f"{bucket}/out", tmp_path / "out")]
    assert read[0].lora == read[1].lora
    with pytest.raises(UserError, match=f"--out: {bucket}/out exists and is not empty"):
        export(parse([f"--workdir={bucket}/run", "--what=adapter", f"--out={bucket}/out"]))


def test_an_export_that_breaks_off_leaves_nothing_in_the_bucket(bucket, faults, monkeypatch):
    async def at_once(seconds):
        pass

    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", at_once)
    finished_run(bucket / "run", config_of("random:llama-tiny"))
    faults.refused_writes = {"out/adapter_model": math.inf}
    with pytest.raises(UserError, match=f"^{bucket}/out/adapter_model"):
        export(parse([f"--workdir={bucket}/run", "--what=adapter", f"--out={bucket}/out"]))
    assert paths.names(bucket / "out") == []


def test_runs_in_a_bucket_are_compared_and_the_comparison_written_there(bucket, capsys):
    runs.finish(bucket / "a_lol-0", runs.config_of("a_lol"))
    runs.finish(bucket / "nll-0", runs.config_of("nll"))
    assert earlier_runs(bucket) == (bucket / "a_lol-0", bucket / "nll-0")
    asked = parse_compare([f"{bucket}/a_lol-0", f"{bucket}/nll-0", f"--out={bucket}/compare"])
    for _ in range(2):  # a second time over the first
        compare_runs(asked.workdirs, asked.out, against=f"{bucket}/nll-0", say=print)
    assert f"comparison of 2 runs: {bucket}/compare/compare.html" in capsys.readouterr().out
    assert paths.names(bucket / "compare") == sorted(FILES)
    with pytest.raises(UserError, match="is given twice"):
        compare_runs([bucket / "nll-0"] * 2, asked.out, against=None, say=print)
    paths.write_text(bucket / "compare" / "mine.txt", "")
    with pytest.raises(UserError, match="holds 'mine.txt', which is not from a comparison"):
        compare_runs(asked.workdirs, asked.out, against=None, say=print)


def test_compiled_programs_are_kept_in_a_bucket(bucket):
    before = {name: getattr(jax.config, name) for name in CACHE}
    try:
        assert use_compile_cache(str(bucket / "compiled"), say=print) == bucket / "compiled"
        compilation_cache.reset_cache()
        jax.jit(lambda x: x * 41 + 7)(np.float32(1)).block_until_ready()
        assert any(name.startswith("jit_") for name in paths.names(bucket / "compiled"))
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
