"""Bad input in several real processes: all of them end, and one line names the one that it was."""

import json

import pytest

from alol_jax.text.tokenizer_files import byte_level, save
from tests.bucket import without_permission
from tests.many_processes import Ended, run_together
from tests.models.tiny_llama import random_weights, write_directory
from tests.prepare.hub import serving_hub
from tests.running import SMALL

FIRST = "--stages=load,score,fit_reference"


def refused(processes: list[Ended]) -> str:
    """The line of process 0; the others print nothing."""
    assert [process.code for process in processes] == [2] * len(processes), processes[0].err
    assert all(process.error == "" for process in processes[1:])
    return processes[0].error.removeprefix("error: ")


def test_a_process_with_another_config_ends_all_of_them(tmp_path):
    own = ((), ("--config.seed=5",))
    line = refused(run_together(tmp_path / "run", 2, *SMALL, own=own))
    assert line.startswith("process 1 (") and "seed = 5, process 0 has " in line


@pytest.mark.slow
def test_other_data_on_one_host_is_refused_by_name(tmp_path):
    rows = [{"prompt": f"p{n}", "response": "good", "reward": 1.0 + n % 3} for n in range(40)]
    own = []
    for rank in range(2):
        file = tmp_path / str(rank) / "rows.jsonl"
        file.parent.mkdir()
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[rank:]))
        own.append((f"--config.task.train_file={file}",))
    line = refused(run_together(tmp_path / "run", 2, config="configs/own.py:debug", own=own))
    assert line.startswith("process 1 (")


@pytest.mark.slow
def test_a_mesh_that_the_devices_do_not_divide_is_refused(tmp_path):
    line = refused(run_together(tmp_path / "run", 2, *SMALL, "--config.mesh.fsdp=3"))
    assert line.startswith("config.mesh ") and "does not fit 2 devices" in line


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bucket_without_permission_on_one_host_is_one_line(rank, bucket, faults):
    """The other host may read and write."""
    line = refused(run_together(bucket, 2, *SMALL, variables={rank: without_permission()}))
    assert line.startswith(f"process {rank} (") and f"{bucket}/.shared: no permission (" in line


@pytest.mark.slow
def test_a_full_disk_on_the_first_host_is_one_line_and_the_run_goes_on_later(tmp_path):
    kept = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # no halves of programs
    stopped = run_together(
        *(tmp_path / "run", 2, *SMALL, "--stages=load"), full_disks={0: 1}, variables={0: kept}
    )
    line = refused(stopped)
    assert line.startswith("process 0 (")
    assert f"writing below {tmp_path / 'run'}: File too large" in line
    later = run_together(tmp_path / "run", 2, *SMALL, "--stages=load")
    assert [process.code for process in later] == [0, 0]


@pytest.mark.slow
def test_a_full_disk_on_the_second_host_is_one_line_and_nothing_is_lost(tmp_path):
    """With a model in parts, each process writes its part of a checkpoint; the second one's
    libraries print what they say of it beside."""
    arguments = (*SMALL, "--config.mesh.data=1", "--config.mesh.fsdp=2", FIRST)
    stopped = run_together(tmp_path / "run", 2, *arguments, full_disks={1: 1})
    assert [process.code for process in stopped] == [2, 2], stopped[0].err
    assert stopped[0].error.startswith("error: process 1 (")
    assert "File too large" in stopped[0].error
    later = run_together(tmp_path / "run", 2, *arguments)
    assert [process.code for process in later] == [0, 0], later[0].err
    assert later[0].out.count("already done") == 2


@pytest.mark.slow
def test_a_hub_name_without_token_on_one_host_is_one_line(tmp_path):
    folder = tmp_path / "tiny"
    write_directory(folder, random_weights())
    save(byte_level(), folder)
    with serving_hub() as hub:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        hub.repositories["models/someone/gated"] = files
        hub.gated.add("models/someone/gated")
        reached = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        variables = {
            rank: {**reached, "HF_HOME": str(tmp_path / str(rank)), **token}
            for rank, token in enumerate(({"HF_TOKEN": "a token"}, {}))
        }
        line = refused(
            run_together(
                *(tmp_path / "run", 2, *SMALL, "--config.model.path=someone/gated"),
                variables=variables,
            )
        )
    assert line.startswith("process 1 (") and "someone/gated is gated" in line
    assert "hf auth login" in line
