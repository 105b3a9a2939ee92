"""Opening the devices that a program computes on, and why that fails."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax

from alol_jax.devices.hardware import GPU, NAMES, ROOT, TPU, accelerators
from alol_jax.errors import UserError, reason

NOTHING = "it finds no device"
ON_THE_CPU = "JAX_PLATFORMS=cpu computes on the CPU"


def open_devices(root: Path = ROOT) -> list[jax.Device]:
    """Return the devices of the platform that ``JAX_PLATFORMS`` asks for, else of the machine's.

    An accelerator that JAX cannot use is an error, not a reason to compute on the CPU.

    Args:
        root: where the machine's files are.

    Raises:
        UserError: JAX cannot open the platform; the message says what is here.
    """
    here = accelerators(root)
    if not jax.config.jax_platforms and (chosen := choose_platforms(here)):
        jax.config.update("jax_platforms", chosen)
    wanted = (jax.config.jax_platforms or "").split(",")
    asked = os.environ.get("JAX_PLATFORMS", "")  # JAX itself may have set the other
    if asked.split(",")[0] == TPU and TPU not in here:  # libtpu would complain, or abort
        raise UserError(explain(asked, here, NOTHING))
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter if JAX finds no GPU for "cuda"
        why = reason(error) if str(error) else NOTHING
        raise UserError(explain(asked, here, why)) from error
    if here and devices[0].platform == "cpu" and wanted[0] != "cpu":
        raise UserError(explain(asked, here, NOTHING))
    return devices


def choose_platforms(here: Sequence[str]) -> str:
    """Return a value for ``jax_platforms``; "" leaves the choice to JAX.

    Without a TPU, an installed libtpu prints complaints if JAX tries it. A plugin of JAX may be
    for hardware that `accelerators` does not know.
    """
    if here:
        return f"{here[0]},cpu"
    return "cpu" if _is_installed("libtpu") and not _is_installed("jax_plugins") else ""


def explain(asked: str, here: Sequence[str], why: str) -> str:
    """Return the error line if no device could be opened.

    Args:
        asked: the value of ``JAX_PLATFORMS``; "" if it is not set.
        here: the platforms that the machine has hardware for.
        why: JAX's message.
    """
    if "TPU is already in use" in why:
        holder = re.search(r"process with pid \d+", why)
        return (
            f"the TPU is in use by {holder[0] if holder else 'another process'}; to find it: "
            f"sudo lsof -w /dev/accel* /dev/vfio/*; stop it, or {ON_THE_CPU}"
        )
    has = " and ".join(NAMES[platform] for platform in here) or "neither a TPU nor an NVIDIA GPU"
    platforms = {GPU if platform == "gpu" else platform for platform in asked.split(",")}
    if asked and not platforms & set(here):
        return f"JAX_PLATFORMS={asked}: this machine has {has}; unset it to use what is here"
    why = re.sub(r"\.? \((set|you may need to).*", "", why)  # JAX's advice on JAX_PLATFORMS
    if not here:
        return f"JAX opens no device: {why}; {ON_THE_CPU}"
    extra = "jax[tpu]" if here[0] == TPU else "jax[cuda13] or jax[cuda12]"
    return (
        f"this machine has {has}, but JAX cannot use it: {why}; install {extra} for it "
        f"(python -m launch.jax_extra says which), or {ON_THE_CPU}"
    )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
