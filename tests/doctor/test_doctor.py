"""The doctor: what it says of a ready machine, and the way out on one that is not."""

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import namedtuple

import jax
import jax.numpy as jnp
import pytest

from alol_jax.doctor import __main__ as program
from alol_jax.doctor.finding import find
from alol_jax.doctor.machine import LEAST_ROOM, devices, disk, hub_token, port
from alol_jax.doctor.packages import packages, required
from alol_jax.doctor.step import open_tiny_model, training
from alol_jax.errors import UserError
from tests.running import ROOT, environment
from tests.tiny_run import mesh_of

SUBJECTS = ["packages", "disk", "hub", "port", "devices", "attention", "training"]


def doctor(**variables):
    """The program in a process of its own: its lines and its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "alol_jax.doctor"],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == ""
    return done.stdout.splitlines(), done.returncode


def versions(**installed):
    """A function like `importlib.metadata.version` for these packages alone."""

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    return version


def test_a_machine_that_is_ready_gets_one_ok_for_everything():
    lines, code = doctor()
    assert code == 0
    assert [re.match(r"ok     (\w+): .", line)[1] for line in lines] == SUBJECTS
    assert "1 × cpu (cpu)" in lines[4] and lines[5] == "ok     attention: xla (cpu)"


def test_without_devices_it_says_why_and_tries_no_step():
    lines, code = doctor(JAX_PLATFORMS="nonsense")
    assert code == 2 and len(lines) == SUBJECTS.index("devices") + 1
    assert lines[-1].startswith("error  devices: JAX_PLATFORMS=nonsense: this machine has")


def test_a_missing_package_ends_it_before_anything_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(program, "required", lambda: ["no-such-package>=1,<2"])
    monkeypatch.setattr(program, "examine", lambda: pytest.fail("it went on"))
    with pytest.raises(SystemExit) as ended:
        program.entry()
    assert ended.value.code == 2
    assert capsys.readouterr().out == (
        "error  packages: no-such-package is not installed, tested is <2,>=1: "
        "pip install -r requirements.txt\n"
    )


def test_packages_are_held_against_their_tested_ranges():
    ranges = ["jax>=0.10.2,<0.12", "flax>=0.12.8,<0.13", "sums==1.2"]
    said = packages(ranges, versions(jax="0.11.1", flax="0.12.9", sums="1.2"))
    assert "jax 0.11.1, flax 0.12.9; all 3 in the tested ranges" in said
    with pytest.raises(UserError, match="jax is 0.12.0, tested is .*; sums is not installed"):
        packages(ranges, versions(jax="0.12.0", flax="0.12.9"))


def test_the_ranges_are_those_of_the_requirements():
    ranges = required()
    assert any(line.startswith("jax>=") for line in ranges)
    assert all(re.fullmatch(r"[\w.\[\]-]+[<>=]+\S+", line) for line in ranges)


def test_the_disk_is_looked_at_where_a_folder_will_be(tmp_path):
    folder = tmp_path / "not" / "yet"
    assert re.fullmatch(rf"free: {folder} [\d.]+ GiB", disk([folder]))
    assert not folder.exists()


def test_a_full_disk_and_one_that_cannot_be_written_name_the_folder(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(LEAST_ROOM - 1))
    with pytest.raises(UserError, match=f"{tmp_path} has only 2.0 GiB left: .*--workdir=DIR"):
        disk([tmp_path])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written; .*HF_HOME=DIR"):
        disk([tmp_path])


def test_a_token_of_the_hub_is_seen_and_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "a token is here" in hub_token() and "hf_secret" not in hub_token()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "no token" in hub_token() and "hf auth login" in hub_token()


def test_a_port_that_another_program_has_is_told_and_no_error():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert f"{number} is not free (Address already in use)" in port(number)
    assert port(number) == f"{number} is free for a run of several processes"


def test_devices_are_counted_and_their_memory_is_told():
    class Chip:
        device_kind, platform = "TPU v5 lite", "tpu"

        def memory_stats(self):
            return {"bytes_limit": 16 * 2**30}

    assert devices([Chip(), Chip()]) == "2 × TPU v5 lite (tpu), 16.0 GiB of memory each"
    assert devices(jax.devices()).startswith("8 × cpu (cpu), ")


def test_the_step_is_measured_and_a_loss_that_is_no_number_is_an_error(monkeypatch):
    lm = open_tiny_model(mesh_of(2))
    said = training(lm)
    assert re.fullmatch(r"a step of a tiny model: [\d.]+ s with compiling, then [\d.]+ s", said)

    def broken(logp, targets):
        loss = jnp.nan * jnp.sum(logp)
        return loss, {"loss": loss}

    monkeypatch.setattr("alol_jax.doctor.step.nll", broken)
    with pytest.raises(UserError, match="the losses of a tiny model are .nan, nan.: is the acc"):
        training(lm)


def test_an_error_of_jax_is_a_finding():
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: the chip is on fire\nand more")

    found = find("training", fail)
    assert str(found) == "error  training: INTERNAL: the chip is on fire"
