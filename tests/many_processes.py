"""Runs the program in several processes of one machine, which find each other by ``--distributed``.

Each has its own virtual devices; gloo carries what they exchange.
"""

import contextlib
import dataclasses
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tests.running import DEBUG, ROOT, command, environment, limited

PATIENCE = 300.0  # seconds
TOGETHER = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of the error, or "" if it printed none."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) <= 1, self.err
        assert "Traceback" not in self.err, self.err
        return lines[0] if lines else ""


@contextlib.contextmanager
def started(
    workdir: Path,
    count: int,
    *arguments: str,
    config: str = DEBUG,
    own: Sequence[Sequence[str]] = (),
    variables: Mapping[int, Mapping[str, str]] = MappingProxyType({}),
    full_disks: Mapping[int, int] = MappingProxyType({}),
    devices: int = 1,
) -> Iterator[list[subprocess.Popen]]:
    """Start the processes of a run; those that are left are killed at the end.

    Args:
        own: further arguments of each process.
        variables: environment variables of single processes, by rank.
        full_disks: rank -> kilobytes that each file of this process may have.
        devices: of each.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(count):
        words = [*arguments, *(own[rank] if own else ())]
        words.append(f"--distributed=localhost:{port},{rank},{count}")
        line = command(workdir, *words, config=config)
        if rank in full_disks:
            line = limited(line, kilobytes=full_disks[rank])
        found.append(
            subprocess.Popen(
                line,
                cwd=ROOT,
                env=environment(devices=devices) | TOGETHER | variables.get(rank, {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        yield found
    finally:
        for process in found:
            process.kill()


def ended(processes: Sequence[subprocess.Popen]) -> list[Ended]:
    """Wait until all have ended."""
    until = time.monotonic() + PATIENCE
    return [
        Ended(process.returncode, out, err)
        for process in processes
        for out, err in [process.communicate(timeout=until - time.monotonic())]
    ]


def run_together(workdir: Path, count: int, *arguments: str, **options) -> list[Ended]:
    """Run to the end; see `started`."""
    with started(workdir, count, *arguments, **options) as processes:
        return ended(processes)
