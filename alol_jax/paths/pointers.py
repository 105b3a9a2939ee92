"""Pointers of Git LFS, which a clone without `git lfs` has in the place of its large files.

A pointer is a text of about 130 bytes that names the hash and the size of the file.
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

import pathlib

from alol_jax.errors import UserError

BEGINNING = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(file: pathlib.Path) -> None:
    """Check that an existing local file is no pointer of Git LFS.

    Raises:
        UserError: it is one.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        if stream.read(len(BEGINNING)) == BEGINNING:
            raise UserError(
                f"{file}: a Git LFS pointer, not the file itself: run `git lfs pull` in its folder"
            )
