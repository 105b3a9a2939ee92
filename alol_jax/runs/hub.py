"""Pushing a folder to the Hugging Face hub as a new repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alol_jax.errors import UserError, reason
from alol_jax.runs.progress import on_terminal

MODEL, DATASET = "model", "dataset"  # kinds of repositories
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_push(name: str, kind: str) -> None:
    """Check that a new repository can be made, before anything is computed for it.

    Raises:
        UserError: the name is not ORG/NAME, it is taken, there is no token, or no connection.
    """
    import huggingface_hub

    if not _NAME.fullmatch(name):
        raise UserError(f"--push={name}: expected ORG/NAME, as on the Hugging Face hub")
    if huggingface_hub.get_token() is None:
        raise UserError(
            "--push: there is no token of the Hugging Face hub: log in with `hf auth login`, or "
            "set HF_TOKEN; the token needs the right to write"
        )
    api = huggingface_hub.HfApi()
    with _asking(name):
        api.whoami()  # refuses a token that is not valid, which the next call would not
        taken = api.repo_exists(name, repo_type=kind)
    if taken:
        raise UserError(
            f"--push={name}: the hub has a {kind} of this name already: choose another name"
        )


def push(folder: Path, name: str, kind: str, *, private: bool) -> str:
    """Make the repository and upload all files of the folder, in one commit; return its address.

    Raises:
        UserError: the hub refuses it, or there is no connection.
    """
    import huggingface_hub.utils

    if not on_terminal():
        huggingface_hub.utils.disable_progress_bars()
    api = huggingface_hub.HfApi()
    with _asking(name):
        url = api.create_repo(name, repo_type=kind, private=private)
    try:
        with _asking(name):
            api.upload_folder(
                repo_id=name,
                repo_type=kind,
                folder_path=folder,
                commit_message="Exported by alol_jax",
            )
    except UserError as error:
        raise UserError(f"{error}; the repository is there now, empty: delete it first") from error
    return str(url)


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Turn what the hub answers into a UserError."""
    import huggingface_hub

    try:
        yield
    except huggingface_hub.errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"--push={name}: the hub refuses this token ({status}): log in with `hf auth "
                "login` with a token that may write to this account"
            ) from error
        if status == 409:
            raise UserError(
                f"--push={name}: the hub has a repository of this name already: choose another name"
            ) from error
        raise UserError(f"--push={name}: the hub says: {reason(error)}") from error
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
        raise UserError(
            f"--push={name}: the Hugging Face hub cannot be reached ({reason(error)}): check the "
            "connection"
        ) from error
