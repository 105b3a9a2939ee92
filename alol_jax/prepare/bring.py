"""Getting what a place holds to its local paths."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from alol_jax.errors import UserError
from alol_jax.prepare.places import Place
from alol_jax.prepare.unpack import is_archive, unpack
from alol_jax.prepare.web import Wanted, download

ARCHIVES = Path("data") / "downloads"  # where archives are until they are unpacked


class Surroundings(NamedTuple):
    """What bringing something uses of the program."""

    say: Callable[[str], None]  # prints one line
    stopping: Callable[[], bool] = lambda: False  # True once the program should stop
    sleep: Callable[[float], None] = time.sleep  # between two tries


def bring(name: str, place: Place, around: Surroundings) -> None:
    """Download a place and, if it is an archive, unpack it. An archive is deleted afterwards.

    Raises:
        UserError: it has no address or none works; or what came is not what was expected. The
            message says what to put where by hand.
    """
    locals_ = ", ".join(place.files.values())
    if not place.addresses:
        raise UserError(f"{locals_}: not fetched: {place.manual}")
    if not is_archive(name):
        (target,) = map(Path, place.files.values())
        _download(place, target, around, f"fetch it yourself and put it there as {target}")
        return
    archive = ARCHIVES / name
    members = ", ".join(place.files)
    if not archive.is_file():
        by_hand = f"fetch it yourself and put its {members} there as {locals_}"
        _download(place, archive, around, by_hand)
    around.say(f"unpacking {archive}")
    unpack(archive, place.files)
    archive.unlink()
    if not any(ARCHIVES.iterdir()):
        shutil.rmtree(ARCHIVES)


def _download(place: Place, target: Path, around: Surroundings, by_hand: str) -> None:
    """Download from the first address that works."""
    for number, address in enumerate(place.addresses, start=1):
        around.say(f"downloading {address}")
        try:
            download(
                Wanted(address, target, place.size, place.sha256),
                stopping=around.stopping,
                sleep=around.sleep,
            )
            return
        except UserError as error:
            if number == len(place.addresses):
                raise UserError(f"{error}; or {by_hand}") from error
            around.say(f"{error}: trying the next address")
