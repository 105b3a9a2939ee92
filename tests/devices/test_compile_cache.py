"""The compilation cache: where it lies, what a second process reads from it, and refusals."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from alol_jax.devices.compile_cache import default_folder, use_compile_cache
from alol_jax.errors import UserError

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jax import monitoring
from alol_jax.devices.compile_cache import use_compile_cache
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
where = use_compile_cache(sys.argv[1], say=print)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4))).block_until_ready()
print(where, events.count("/jax/compilation_cache/cache_hits") > 0)
"""


def started(folder: str, **variables: str) -> str:
    """What `PROGRAM` prints in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    words = [sys.executable, "-c", PROGRAM, folder]
    done = subprocess.run(words, env=kept | variables, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def settings(monkeypatch):
    """The cache's settings, put back afterwards; no folder is configured."""
    names = ("compilation_cache_dir", "compilation_cache_max_size", "enable_compilation_cache")
    names = (*names, "persistent_cache_min_compile_time_secs")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_second_process_reads_what_the_first_one_compiled(tmp_path):
    assert started("", XDG_CACHE_HOME=str(tmp_path)) == f"{tmp_path}/alol_jax/compiled False"
    assert started("", XDG_CACHE_HOME=str(tmp_path)) == f"{tmp_path}/alol_jax/compiled True"


def test_what_a_killed_process_left_of_a_program_is_written_again(tmp_path):
    started(str(tmp_path))
    (program,) = (path for path in tmp_path.glob("*-cache") if path.name.startswith("jit__lambda"))
    access = program.with_name(program.name.removesuffix("cache") + "atime")
    whole = program.read_bytes()
    program.write_bytes(whole[: len(whole) // 2])
    access.unlink()
    assert started(str(tmp_path)).endswith("True")  # the other programs
    assert len(program.read_bytes()) > len(whole) // 2 and access.exists()


def test_off_keeps_nothing(tmp_path):
    assert started("off", XDG_CACHE_HOME=str(tmp_path)) == "None False"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_jax_was_told_of_stays(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert use_compile_cache(say=print) == tmp_path / "theirs"
    assert not (tmp_path / "theirs").exists()


def test_the_default_is_in_the_users_cache_directory(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/alol_jax/compiled")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_folder() == Path("/home/someone/.cache/alol_jax/compiled")


def test_a_folder_that_cannot_be_made_is_refused_if_asked_for_and_said_if_not(
    settings, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--compile_cache: .*/file/below: Not a directory"):
        use_compile_cache(str(tmp_path / "file" / "below"), say=print)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    assert use_compile_cache(say=said.append) is None
    assert len(said) == 1 and "compiled programs are not kept" in said[0]
    assert jax.config.jax_compilation_cache_dir is None
