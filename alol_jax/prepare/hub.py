"""What is known of a repository of the Hugging Face hub, and whether it is here already."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from alol_jax.models.files.hf_reader import HubFiles, OnHub


class Facts(NamedTuple):
    """Size in bytes, 0 if not known, and licence, "" if not known."""

    size: int
    licence: str


def cached(model: OnHub, files: HubFiles) -> Path | None:
    """Return the directory of a model of the hub if it is here, with weights."""
    import huggingface_hub

    for weights in (files.weights, files.torch_weights):
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    model.name,
                    revision=model.revision,
                    allow_patterns=[*files.always, *weights],
                    local_files_only=True,
                )
            )
        except (OSError, ValueError):  # LocalEntryNotFoundError: nothing, or not all, is here
            continue
        if any(True for pattern in weights for _ in folder.glob(pattern)):
            return folder
    return None


def has_token() -> bool:
    """Return whether a token of the hub is stored on this machine."""
    import huggingface_hub

    return huggingface_hub.get_token() is not None


def cache_folder() -> Path:
    """Return the folder that downloads of the hub go to."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def facts(model: OnHub, files: HubFiles) -> Facts:
    """Ask the hub for the size of the files and for the licence."""
    import huggingface_hub

    try:
        weights = _size(model, files.weights) or _size(model, files.torch_weights)
        size = weights + _size(model, files.always)
        told = huggingface_hub.HfApi().model_info(model.name, revision=model.revision, timeout=15.0)
    except (OSError, ValueError):  # no connection, no such repository, or not for everyone
        return Facts(0, "")
    licence = (told.card_data or {}).get("license") or ""
    return Facts(size, str(licence))


def _size(model: OnHub, patterns: tuple[str, ...]) -> int:
    """The bytes of all files of these patterns."""
    import huggingface_hub

    found = huggingface_hub.snapshot_download(
        model.name, revision=model.revision, allow_patterns=list(patterns), dry_run=True
    )
    return sum(file.file_size or 0 for file in found)
