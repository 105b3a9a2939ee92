"""What is known of a repository of the Hugging Face hub, and whether it is here already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Facts(NamedTuple):
    """Size in bytes, 0 if not known, and licence, "" if not known."""

    size: int
    licence: str


def cached(name: str, patterns: Sequence[str]) -> Path | None:
    """Return the directory of the hub model ``name`` if all its files of ``patterns`` are here."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=list(patterns), local_files_only=True
        )
    except (OSError, ValueError):  # LocalEntryNotFoundError: nothing, or not all, is here
        return None
    return Path(folder)


def facts(name: str, patterns: Sequence[str]) -> Facts:
    """Ask the hub for the size of the files of ``patterns`` and for the licence."""
    import huggingface_hub

    try:
        files = huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), dry_run=True)
        card = huggingface_hub.HfApi().model_info(name, timeout=15.0).card_data
    except (OSError, ValueError):  # no connection, no such repository, or not for everyone
        return Facts(0, "")
    licence = "" if card is None else card.get("license") or ""
    return Facts(sum(file.file_size or 0 for file in files), str(licence))
