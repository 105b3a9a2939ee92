"""Stopping: SIGTERM is noticed at a safe point, or the process ends without one."""

import signal
import subprocess
import sys
import time

from tests.running import ROOT, environment

BUSY = """
import hashlib
from alol_jax.runs.command_line import stop_on_signals
stop_on_signals(grace=1.0)
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # no return to Python, as in a compilation
"""
SAVING = """
import time
from alol_jax.runs.command_line import stop_on_signals
stopping = stop_on_signals(grace=0.2)
print("ready", flush=True)
while not stopping():
    time.sleep(0.01)
time.sleep(1.0)
print("saved", flush=True)
"""
DEAF = """
import time
from alol_jax.runs.command_line import stop_on_signals
stop_on_signals(grace=60.0)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""
FORKING = """
import os, signal, time
from alol_jax.runs.command_line import stop_on_signals
stopping = stop_on_signals(grace=0.2)
print("ready", flush=True)
child = os.fork()
if child == 0:
    time.sleep(60.0)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
time.sleep(1.0)
os.kill(child, signal.SIGKILL)
print("alive", stopping(), flush=True)
"""


def _started(program):
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_sigterm_ends_a_process_that_comes_to_no_safe_point():
    process = _started(BUSY)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and 1.0 <= time.monotonic() - sent < 10.0
    assert said.startswith("stopped: no safe point within 1 s") and said.count("\n") == 1


def test_a_process_that_has_noticed_sigterm_may_save_as_long_as_it_takes():
    process = _started(SAVING)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and said.endswith("saved\n")


def test_a_second_signal_stops_at_once():
    process = _started(DEAF)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("stopping at the next safe point")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_signal_of_a_child_process_does_not_end_its_parent():
    process = _started(FORKING)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and said.endswith("alive False\n")
