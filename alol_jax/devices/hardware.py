"""The accelerators of a machine, and the extra of jax that they need; asks no library.

``root`` is the root of the file system; tests pass another folder.
"""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from alol_jax.errors import UserError

ROOT = Path("/")
TPU, GPU = "tpu", "cuda"  # as in JAX_PLATFORMS
NAMES = {TPU: "a TPU", GPU: "an NVIDIA GPU"}

GOOGLE = "0x1ae0"  # PCI vendor; its network and disk controllers have the same
TPU_DEVICES = (  # v2 to v8
    *("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076", "0x007c", "0x0083"),
)
PASS_THROUGH = "vfio-pci"  # the kernel driver through which libtpu reaches newer TPUs
GPU_FILES = ("dev/nvidia[0-9]*", "dev/dxg")  # dxg: in WSL 2

CUDA13_DRIVER, CUDA12_DRIVER = 580, 525
CUDA13_CAPABILITY = 7.5  # CUDA 13 has no code for older GPUs

COORDINATOR_PORT = 8476  # where the processes of a run meet


def accelerators(root: Path = ROOT) -> tuple[str, ...]:
    """Return the platforms of JAX that this machine has hardware for, besides the CPU."""
    found = ((TPU, tpu_chips(root)), (GPU, nvidia_gpus(root)))
    return tuple(platform for platform, count in found if count)


def tpu_chips(root: Path = ROOT) -> int:
    """Count the TPU chips: devices of Google's on the PCI bus that can be nothing else.

    Google's network and disk controllers are on the bus too, and other vendors' devices are in
    ``/dev/vfio`` wherever a machine passes them through.
    """
    devices = root.glob("sys/bus/pci/devices/*")
    google = [device for device in devices if _read(device / "vendor") == GOOGLE]
    chips = sum(
        _read(device / "device") in TPU_DEVICES
        or (device / "driver").resolve().name == PASS_THROUGH
        for device in google
    )
    return chips or (len(list(root.glob("dev/accel[0-9]*"))) if google else 0)


def nvidia_gpus(root: Path = ROOT) -> int:
    """Count the device files of NVIDIA GPUs."""
    return sum(len(list(root.glob(pattern))) for pattern in GPU_FILES)


class Driver(NamedTuple):
    """NVIDIA's driver."""

    version: str  # like 580.65.06
    capability: float  # the lowest compute capability of the GPUs; ∞ if the driver does not tell


def nvidia_driver() -> Driver | None:
    """Ask nvidia-smi; None if there is none, or if it finds no GPU."""
    version, capability = (_nvidia_smi(field) for field in ("driver_version", "compute_cap"))
    if not version:
        return None
    return Driver(version[0], min(map(float, capability), default=math.inf))


def jax_extra(root: Path, driver: Driver | None) -> tuple[str, str]:
    """Return what to install for this machine, like ``jax[cuda13]``, and why.

    Raises:
        UserError: the driver is too old for every CUDA that jax supports.
    """
    if chips := tpu_chips(root):
        return "jax[tpu]", f"TPU chips on this machine: {chips}"
    if driver is None:
        return "jax", "no TPU and no working NVIDIA driver (nvidia-smi) on this machine"
    here, major = f"the NVIDIA driver is {driver.version}", int(driver.version.split(".")[0])
    if major < CUDA12_DRIVER:
        raise UserError(
            f"{here}: jax[cuda13] needs {CUDA13_DRIVER} or newer, jax[cuda12] {CUDA12_DRIVER}: "
            "update the driver, or set JAX_PLATFORMS=cpu to install for the CPU"
        )
    if major < CUDA13_DRIVER:
        return "jax[cuda12]", f"{here}, CUDA 13 needs {CUDA13_DRIVER} or newer"
    if driver.capability < CUDA13_CAPABILITY:
        return "jax[cuda12]", (
            f"a GPU has compute capability {driver.capability}, CUDA 13 needs {CUDA13_CAPABILITY}"
        )
    return "jax[cuda13]", f"{here}, CUDA 13 needs {CUDA13_DRIVER} or newer"


def _nvidia_smi(field: str) -> list[str]:
    """One value per GPU that looks like a version; none if nvidia-smi does not know it."""
    words = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^\d+(?:\.\d+)+$", done.stdout, re.MULTILINE)


def _read(file: Path) -> str:
    return file.read_text(encoding="ascii").strip() if file.is_file() else ""
