"""Paths of local folders and of buckets (``gs://…``): the one door to both.

Start at `store`: what can be done with a path of either kind. `copies` has the local copies of
what is in a bucket. Everybody may come in; nobody else asks where a path is.
"""

from alol_jax.paths.copies import (
    Appended,
    cache_folder,
    drafts_of,
    local_copy,
    move,
    new_folder,
    send,
    with_home,
    with_local_copies,
    written,
)
from alol_jax.paths.pointers import check_no_pointer
from alol_jax.paths.store import (
    AnyPath,
    asking,
    create,
    exists,
    is_bucket,
    is_folder,
    make_folder,
    names,
    path_of,
    read_text,
    remove,
    resolve,
    workdir_of,
    write_text,
)

__all__ = [
    "AnyPath",
    "Appended",
    "asking",
    "cache_folder",
    "check_no_pointer",
    "create",
    "drafts_of",
    "exists",
    "is_bucket",
    "is_folder",
    "local_copy",
    "make_folder",
    "move",
    "names",
    "new_folder",
    "path_of",
    "read_text",
    "remove",
    "resolve",
    "send",
    "with_home",
    "with_local_copies",
    "workdir_of",
    "write_text",
    "written",
]
