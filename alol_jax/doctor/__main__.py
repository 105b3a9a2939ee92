"""Check whether this machine is ready for a run: one line each, with the way out where it is not.

python -m alol_jax.doctor

Versions of the packages, room on the disk, the token of the Hugging Face hub, the port for runs of
several processes, devices and their memory, the attention kernel, and a training step of a tiny
model. It exits with code 2 if a run would not work.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

from alol_jax.doctor.finding import Finding, find
from alol_jax.doctor.packages import packages, required


def examine() -> Iterator[Finding]:
    """Yield the findings about the machine, the quick ones first."""
    from alol_jax.devices.compile_cache import default_folder
    from alol_jax.devices.hardware import COORDINATOR_PORT
    from alol_jax.devices.opening import open_devices
    from alol_jax.devices.sharding import make_mesh
    from alol_jax.doctor.machine import devices, disk, hub_token, port
    from alol_jax.doctor.step import open_tiny_model, training
    from alol_jax.prepare.hub import cache_folder

    yield find("disk", lambda: disk((Path("runs"), default_folder(), cache_folder())))
    yield find("hub", hub_token)
    yield find("port", lambda: port(COORDINATOR_PORT))
    opened = find("devices", lambda: devices(open_devices()))
    yield opened
    if opened.ready:
        lm = open_tiny_model(make_mesh(data=-1, fsdp=1, tensor=1))
        (kernel,) = (note for note in lm.notes if note.startswith("attention: "))
        yield Finding(True, *kernel.split(": ", 1))
        yield find("training", lambda: training(lm))


def entry() -> None:
    """Print the findings; exit with code 2 if one is an error."""
    first = find("packages", lambda: packages(required(), importlib.metadata.version))
    if not first.ready:  # what is missing cannot be imported
        sys.stdout.write(f"{first}\n")
        sys.exit(2)
    from alol_jax.runs.command_line import BAD_INPUT, guarded
    from alol_jax.runs.progress import say

    def run() -> None:
        say(str(first))
        findings = []
        for finding in examine():
            say(str(finding))
            findings.append(finding)
        if not all(finding.ready for finding in findings):
            sys.exit(BAD_INPUT)

    sys.exit(guarded(run))


if __name__ == "__main__":
    entry()
