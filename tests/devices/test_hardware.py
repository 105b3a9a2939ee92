"""What a machine has: TPUs by their PCI numbers, GPUs by their files, and the driver's version."""

import math

import pytest

from alol_jax.devices.hardware import (
    TPU_DEVICES,
    Driver,
    accelerators,
    jax_extra,
    nvidia_driver,
    tpu_chips,
)
from alol_jax.errors import UserError
from tests.devices.machines import GVNIC, UNKNOWN, with_device, with_file

GOOGLE, NVIDIA = "0x1ae0", "0x10de"


def smi(folder, monkeypatch, script):
    """A stand-in for nvidia-smi, alone on the path but for the shell."""
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("number", TPU_DEVICES)
def test_a_device_of_googles_with_the_number_of_a_tpu_is_a_tpu(number, tmp_path):
    for count in (1, 2):
        with_device(tmp_path, GOOGLE, number)
        assert tpu_chips(tmp_path) == count and accelerators(tmp_path) == ("tpu",)


def test_a_device_of_googles_that_is_passed_through_is_a_tpu_of_a_later_kind(tmp_path):
    with_device(tmp_path, GOOGLE, UNKNOWN, driver="vfio-pci")
    with_device(tmp_path, GOOGLE, GVNIC, driver="gvnic")
    assert tpu_chips(tmp_path) == 1


def test_a_google_vm_without_a_tpu_has_none(tmp_path):
    with_device(tmp_path, GOOGLE, GVNIC, driver="gvnic")
    assert tpu_chips(tmp_path) == 0 and accelerators(tmp_path) == ()


def test_the_accelerator_files_of_a_google_vm_are_tpus(tmp_path):
    with_device(tmp_path, GOOGLE, UNKNOWN)
    for n in range(4):
        with_file(tmp_path, f"accel{n}")
    assert tpu_chips(tmp_path) == 4


def test_another_vendors_device_that_is_passed_through_is_no_tpu(tmp_path):
    with_device(tmp_path, NVIDIA, "0x2330", driver="vfio-pci")
    with_file(tmp_path, "vfio/0")
    with_file(tmp_path, "accel0")
    assert tpu_chips(tmp_path) == 0 and accelerators(tmp_path) == ()


@pytest.mark.parametrize("name", ["nvidia0", "nvidia3", "dxg"])
def test_a_gpu_is_known_by_its_file(name, tmp_path):
    with_file(tmp_path, "nvidia-uvm")
    assert accelerators(tmp_path) == ()
    assert accelerators(with_file(tmp_path, name)) == ("cuda",)


@pytest.mark.parametrize(
    ("version", "capability", "extra", "said"),
    [
        ("580.65.06", 9.0, "jax[cuda13]", "the NVIDIA driver is 580.65.06"),
        ("590.10", 7.5, "jax[cuda13]", "CUDA 13 needs 580 or newer"),
        ("579.99", 9.0, "jax[cuda12]", "579.99, CUDA 13 needs 580 or newer"),
        ("525.60.13", 8.0, "jax[cuda12]", "525.60.13, CUDA 13 needs 580 or newer"),
        ("580.65.06", 7.0, "jax[cuda12]", "compute capability 7.0, CUDA 13 needs 7.5"),
        ("580.65.06", math.inf, "jax[cuda13]", "580.65.06"),
    ],
)
def test_the_cuda_that_is_installed_follows_the_driver(version, capability, extra, said, tmp_path):
    chosen, why = jax_extra(tmp_path, Driver(version, capability))
    assert chosen == extra and said in why and "\n" not in why


def test_a_driver_too_old_for_every_cuda_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"driver is 470\.82\.01: jax\[cuda13\] needs 580 .* 525"):
        jax_extra(tmp_path, Driver("470.82.01", 8.0))


def test_a_machine_with_a_tpu_gets_jax_for_it_and_one_without_anything_plain_jax(tmp_path):
    assert jax_extra(tmp_path, None)[0] == "jax"
    with_device(tmp_path, GOOGLE, TPU_DEVICES[-1])
    assert jax_extra(tmp_path, None) == ("jax[tpu]", "TPU chips on this machine: 1")


def test_the_driver_is_asked_for_by_nvidia_smi(tmp_path, monkeypatch):
    several = 'case "$1" in *driver*) echo 550.54.14; echo 550.54.14;; *) echo 9.0; echo 7.0;; esac'
    smi(tmp_path, monkeypatch, several)
    assert nvidia_driver() == Driver("550.54.14", 7.0)


def test_an_old_nvidia_smi_that_knows_no_capability_is_enough(tmp_path, monkeypatch):
    known = 'case "$1" in *driver*) echo 450.80.02;; *) echo "Field is not valid"; exit 2;; esac'
    smi(tmp_path, monkeypatch, known)
    assert nvidia_driver() == Driver("450.80.02", math.inf)


@pytest.mark.parametrize("script", ["echo NVIDIA-SMI has failed; exit 9", "echo No devices found"])
def test_an_nvidia_smi_that_finds_nothing_is_no_driver(script, tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, script)
    assert nvidia_driver() is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert nvidia_driver() is None
