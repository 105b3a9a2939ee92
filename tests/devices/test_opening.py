"""The devices of a program: what is chosen, and one line where JAX cannot open it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from alol_jax.devices import opening
from alol_jax.devices.hardware import accelerators
from alol_jax.devices.opening import choose_platforms, explain, open_devices
from alol_jax.errors import UserError
from tests.devices.machines import with_file
from tests.running import ROOT

OPEN = """
import sys
from pathlib import Path
from alol_jax.devices.opening import open_devices
from alol_jax.errors import UserError
try:
    print(open_devices(Path(sys.argv[1]))[0].platform)
except UserError as error:
    print(error)
"""


def opened(root, platforms=""):
    """What a process of its own prints that opens its devices."""
    if accelerators():
        pytest.skip("JAX would open this machine's accelerator")
    unset = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(root)],
        cwd=ROOT,
        env=unset | ({"JAX_PLATFORMS": platforms} if platforms else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def test_a_machine_without_accelerators_computes_on_the_cpu_without_complaints(tmp_path):
    assert opened(tmp_path) == ("cpu", "")


def test_a_gpu_that_jax_does_not_see_ends_the_program(tmp_path):
    with_file(tmp_path, "nvidia0")
    said, _ = opened(tmp_path)
    assert said.startswith("this machine has an NVIDIA GPU, but JAX cannot use it: ")
    assert "install jax[cuda13] or jax[cuda12]" in said and "JAX_PLATFORMS=cpu" in said


def test_a_gpu_is_left_alone_if_the_cpu_is_asked_for(tmp_path):
    assert opened(with_file(tmp_path, "nvidia0"), "cpu")[0] == "cpu"


def test_a_tpu_that_jax_alone_has_found_is_opened(tmp_path, monkeypatch):
    chip, config = SimpleNamespace(platform="tpu"), SimpleNamespace(jax_platforms="tpu,cpu")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(opening, "jax", SimpleNamespace(config=config, devices=lambda: [chip]))
    assert open_devices(tmp_path) == [chip]


@pytest.mark.parametrize("platforms", ["tpu", "cuda", "nonsense"], ids="asked for {}".format)
def test_a_platform_that_is_not_here_is_one_line_with_what_is(platforms, tmp_path):
    said, complaints = opened(tmp_path, platforms)
    assert said == (
        f"JAX_PLATFORMS={platforms}: this machine has neither a TPU nor an NVIDIA GPU; "
        "unset it to use what is here"
    )
    assert platforms != "tpu" or complaints == ""  # libtpu's, where it is installed


@pytest.mark.parametrize(
    ("message", "who"),
    [
        (
            "ABORTED: The TPU is already in use by process with pid 6199. Not",
            "process with pid 6199",
        ),
        (
            "ABORTED: The TPU is already in use by another process probably owned by another user",
            "another process",
        ),
    ],
)
def test_a_tpu_that_another_process_holds_is_said_with_the_way_to_find_it(
    message, who, monkeypatch
):
    def fail():
        raise RuntimeError(f"Unable to initialize backend 'tpu': {message}")

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match=f"the TPU is in use by {who}; to find it") as caught:
        open_devices()
    assert "sudo lsof -w /dev/accel* /dev/vfio/*" in str(caught.value)


def test_jaxs_reason_is_told_but_not_its_advice():
    why = "Unable to initialize backend 'tpu': no libtpu.so (you may need to uninstall it)"
    said = explain("", ("tpu",), why)
    assert "this machine has a TPU, but JAX cannot use it: Unable to initialize" in said
    assert "no libtpu.so; install jax[tpu]" in said and "uninstall" not in said
    assert "no libtpu.so" in explain("", (), why)


def test_the_platform_follows_the_hardware_and_libtpu_is_not_asked_without_a_tpu(monkeypatch):
    installed = set()
    monkeypatch.setattr(opening, "_is_installed", installed.__contains__)
    assert choose_platforms(("tpu",)) == "tpu,cpu"
    assert choose_platforms(("cuda",)) == "cuda,cpu"
    assert choose_platforms(()) == ""
    installed.add("libtpu")
    assert choose_platforms(()) == "cpu"
    installed.add("jax_plugins")
    assert choose_platforms(()) == ""
