"""What is on the machine: room on the disk, a token, a port, devices."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import jax

from alol_jax.errors import UserError, reason
from alol_jax.prepare.hub import has_token

LEAST_ROOM = 2 * 2**30  # bytes; a small model with its results and compiled programs
ELSEWHERE = "--workdir=DIR, --compile_cache=DIR and HF_HOME=DIR go elsewhere"


def disk(folders: Sequence[Path]) -> str:
    """Say how much room there is where results, compiled programs and downloads go.

    Raises:
        UserError: there is too little, or a folder cannot be written.
    """
    found = []
    for folder in folders:
        whole = folder.absolute()
        there = next(path for path in (whole, *whole.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            raise UserError(f"{folder} cannot be written; {ELSEWHERE}")
        if free < LEAST_ROOM:
            raise UserError(f"{folder} has only {_gib(free)} left: free some; {ELSEWHERE}")
        found.append(f"{folder} {_gib(free)}")
    return f"free: {', '.join(found)}"


def hub_token() -> str:
    """Say whether there is a token of the Hugging Face hub; nothing is sent."""
    if has_token():
        return "a token is here; a gated model also needs its licence accepted at its page"
    return "no token; gated models (meta-llama/…) and uploads need one: hf auth login"


def port(number: int) -> str:
    """Say whether the port where processes meet is free; a run of one process needs none."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", number))
        except OSError as error:
            return f"{number} is not free ({reason(error)}); only runs of several processes need it"
    return f"{number} is free for a run of several processes"


def devices(found: Sequence[jax.Device]) -> str:
    """Describe the devices and the memory of each, or of the machine."""
    kinds = f"{len(found)} × {found[0].device_kind} ({found[0].platform})"
    limit = (found[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return f"{kinds}, {_gib(limit)} of memory each"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{kinds}, {_gib(memory)} of memory in all, {os.cpu_count()} CPU cores"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
