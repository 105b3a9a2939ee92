"""XLA's persistent compilation cache: a program compiled once is read from disk from then on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import jax

from alol_jax import paths
from alol_jax.errors import UserError
from alol_jax.paths import AnyPath

OFF = "off"
MAX_BYTES = 4 * 2**30  # the least recently used programs go first


def use_compile_cache(folder: str = "", *, say: Callable[[str], None]) -> AnyPath | None:
    """Turn the cache on for all that this process compiles, and return its folder.

    JAX keys a program by its code, its shapes, the devices, XLA's flags and the versions of jax and
    jaxlib, so a stale program is never read. A cache that ``JAX_COMPILATION_CACHE_DIR`` or
    ``JAX_ENABLE_COMPILATION_CACHE`` configures is left as it is.

    Args:
        folder: where programs are kept; "" is `default_folder`, "off" turns the cache off.
        say: gets one line if the default folder cannot be written.

    Returns:
        The folder, or None if nothing is cached.

    Raises:
        UserError: ``folder`` cannot be written.
    """
    if folder == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if not folder and not jax.config.jax_enable_compilation_cache:
        return None
    if not folder and jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    path = paths.path_of(folder) if folder else default_folder()
    try:
        paths.make_folder(path)
        if not paths.is_bucket(path) and not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied", str(path))
    except OSError as error:
        if folder:
            raise UserError(f"--compile_cache: {path}: {error.strerror}") from error
        say(f"compiled programs are not kept: {path}: {error.strerror} (--compile_cache=DIR)")
        return None
    if not paths.is_bucket(path):
        drop_unfinished(path)
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    # Nothing is evicted from a bucket: that needs locks.
    jax.config.update("jax_compilation_cache_max_size", -1 if paths.is_bucket(path) else MAX_BYTES)
    # Also what compiles fast: a start compiles dozens of small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return path


def drop_unfinished(folder: Path) -> None:
    """Delete programs without a time of access, which a killed process was about to write.

    JAX writes the program first, then that time. It does not replace such a program, and keeps no
    further one as long as it is there.
    """
    with (folder / ".lockfile").open("a") as lock:  # the one that JAX holds while it writes
        fcntl.flock(lock, fcntl.LOCK_EX)
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                program.unlink()


def default_folder() -> Path:
    """``alol_jax/compiled`` in the user's cache directory."""
    return paths.cache_folder() / "compiled"
