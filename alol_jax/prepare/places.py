"""The published places of data and models that are not on a model hub: one table, `PLACES`.

No address was fetched from where this table was written. Each was looked up, on the day that its
entry names, in what its comment names. A size of 0 and an empty sha256 are not known.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alol_jax.errors import UserError, reason


@dataclasses.dataclass(frozen=True)
class Place:
    """Where something is published.

    Attributes:
        files: what is wanted of it -> the local path. Of an archive: the end of a member's name,
            or of a folder's with a final "/". Of a plain file: "".
        addresses: where it is, tried in this order; none if it must be fetched by hand.
        size: bytes; 0 = not known.
        sha256: "" = not known.
        licence: as stated where it is published.
        manual: without addresses, what to fetch and do by hand.
        looked_up: the day on which the addresses were looked up.
        note: what is known of the addresses beyond that.
    """

    files: Mapping[str, str]
    addresses: tuple[str, ...] = ()
    size: int = 0
    sha256: str = ""
    licence: str = "not stated"
    manual: str = ""
    looked_up: str = "2026-11-28"
    note: str = "not fetched from here"


Places = Mapping[str, Place]

# The state of the repository in which the hashes below were computed.
_LOL_RL = (
    "https://raw.githubusercontent.com/abaheti95/LoL-RL/9f8d81660bfa0bad17ae5d7835185987f028812e/"
)
_SKD = "https://storage.googleapis.com/ai2-mosaic-public/projects/symbolic-knowledge-decoding/"


def _lol_rl(path: str, size: int = 0, sha256: str = "") -> Place:
    """A file of the A-LoL repository, which has no licence; the rows are of Anthropic/hh-rlhf."""
    licence = "not stated; the rows are from Anthropic/hh-rlhf, MIT"
    return Place({"": path}, (_LOL_RL + path,), size, sha256, licence)


PLACES: Places = {
    # Helpful and Harmless Assistant. Files and hashes: the repository's own objects.
    "sampled_dev.json": _lol_rl(
        "data/hh_dev/sampled_dev.json",
        596_805,
        "eaa69b99e48ff8ba55608201cff5f3851e0a96fe50b9bac2efb1d7832e7516fa",
    ),
    "harmless_base.json": _lol_rl(
        "data/hh_test/harmless_base.json",
        3_656_948,
        "6dd66e9f0dab6537d278ade6a27970ba45c163eff3e0b7b5395efdb5fd248e33",
    ),
    "helpful_base.json": _lol_rl(
        "data/hh_test/helpful_base.json",
        3_911_338,
        "5a8337b85b1dc65fbae9318368857bfed3232a475834918aa4938550c43dcaf7",
    ),
    "helpful_online.json": _lol_rl(
        "data/hh_test/helpful_online.json",
        3_520_496,
        "c57b78d0abaef53f0fe88e3bdfd06472f5adbc4b10b73bd6975e124393986664",
    ),
    # In the repository's list of files; its text was not at hand.
    "helpful_rejection.json": _lol_rl("data/hh_test/helpful_rejection.json"),
    "bad_test_indices.json": _lol_rl(
        "data/hh_test/bad_test_indices.json",
        1_979,
        "e13f292bae2f7bae18029b5df7bd8782f89511bb0b60741b1f564b1f6426c283",
    ),
    # Named by the README of PRO (github.com/AlibabaResearch/DAMO-ConvAI) and by that of A-LoL. The
    # name of the folder is in both; that of the file in it in the training script of PRO.
    "pro-data.zip": Place(
        {"hh_train_len2/train.json": "data/hh_train_len2/train.json"},
        ("https://ylab-mobile-prod.oss-cn-beijing.aliyuncs.com/yueli.ybw/data.zip",),
        licence="not stated; the rows are from Anthropic/hh-rlhf, MIT",
    ),
    # COMET. Named by the READMEs of symbolic-knowledge-distillation
    # (github.com/peterwestai2/symbolic-knowledge-distillation) and of A-LoL; the members by the
    # commands of the second, with "downloaded/" before them.
    "symbolic-knowledge-distillation.tar.gz": Place(
        {
            "downloaded/ATOMIC10X.jsonl": "data/comet/ATOMIC10X.jsonl",
            "downloaded/comet-distill/": "models/comet-distill",
            "downloaded/comet-distill-tokenizer/": "models/comet-distill",
        },
        (_SKD + "symbolic-knowledge-distillation.tar.gz",),
    ),
    # The first address is that of the README of github.com/allenai/comet-atomic-2020; the second
    # is older and named by many. Size and hash: as several public repositories record them.
    "atomic2020_data-feb2021.zip": Place(
        {"atomic2020_data-feb2021/test.tsv": "data/comet/test.tsv"},
        (
            "https://drive.usercontent.google.com/download"
            "?id=1uuY0Y_s8dhxdsoOe8OHRgsqf-9qJIai7&export=download&confirm=t",
            "https://ai2-atomic.s3-us-west-2.amazonaws.com/data/atomic2020_data-feb2021.zip",
        ),
        12_580_048,
        "47c5f362ab4a3ea58c4962eebfdfd1c5420d3780e74cd3fe09efeef64f941c2b",
        licence="CC BY",
    ),
    # Named by purification_code/README.md of symbolic-knowledge-distillation.
    "comet-critic": Place(
        {"": "models/comet-critic"},
        manual=(
            f"it is published as a Keras file only, {_SKD}purification_models/"
            "original_from_paper.zip: unpack it, convert it with "
            "convert_keras_roberta_to_huggingface.py of github.com/abaheti95/LoL-RL, and put the "
            "directory there, with config.json, weights, head and tokenizer"
        ),
    ),
    # Reddit. Named by the README of A-LoL, by a page that uses the data set; the data set by many.
    "reddit-comments": Place(
        {
            "comments_positive.csv": "data/reddit/comments_positive.csv",
            "comments_negative.csv": "data/reddit/comments_negative.csv",
        },
        manual=(
            "it needs a login: fetch comments_positive.csv and comments_negative.csv from "
            "https://www.kaggle.com/datasets/ehallmar/reddit-comment-score-prediction and put them "
            "into data/reddit/"
        ),
    ),
    # Named by the README of A-LoL.
    "toxichat-offensive": Place(
        {"": "models/DGPT_medium_OC_S_and_SBF_offensive_e2"},
        manual=(
            "fetch ToxiChat's classifiers with a browser from https://mega.nz/file/"
            "ANhEWDiA#ky-f6HNfmgM4-QVpNv_-z5cN1yf4d0Ml6PAEWHnQVCg, unpack them, and put the "
            "folder of that name there"
        ),
    ),
    # Address and hash: parlai/tasks/wizard_of_wikipedia/build.py of github.com/facebookresearch/
    # ParlAI. Its certificate does not hold for https; the hash says whether the file is the one.
    "wizard_of_wikipedia.tgz": Place(
        {
            f"{name}.json": f"data/wow/{name}.json"
            for name in (
                "train",
                "valid_random_split",
                "valid_topic_split",
                "test_random_split",
                "test_topic_split",
            )
        },
        ("http://parl.ai/downloads/wizard_of_wikipedia/wizard_of_wikipedia.tgz",),
        sha256="2a549627a83fea745efa2076a41d1c0078ad002ab2b54eae6a4e3d3d66ae24b7",
    ),
}
"""Name, under which an archive is downloaded, -> place."""

HUB_DATA = {
    "Anthropic/hh-rlhf": "MIT",  # from memory: its data card was not looked up
    "McGill-NLP/FaithDial": "MIT",  # its data card
}
"""Data sets of the Hugging Face hub that tasks read -> licence."""


def find(path: str | Path, places: Places) -> tuple[str, Place] | None:
    """Return (name, place) of the first place that has the local path, if there is one."""
    for name, place in places.items():
        if Path(path) in map(Path, place.files.values()):
            return name, place
    return None


def read_places(file: str) -> Places:
    """Read places that go before those of `PLACES`; "" for none.

    The file holds one JSON object, name -> the fields of a `Place`. It is for mirrors, and for what
    a group publishes for itself.

    Raises:
        UserError: the file cannot be read, or a place has other fields.
    """
    if not file:
        return PLACES
    try:
        listed = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"ALOL_PLACES: {file}: cannot be read ({reason(error)})") from error
    if not isinstance(listed, dict):
        raise UserError(f"ALOL_PLACES: {file}: expected an object, name -> place")
    mine = {name: _place(f"ALOL_PLACES: {file}: {name}", told) for name, told in listed.items()}
    return mine | {name: place for name, place in PLACES.items() if name not in mine}


def _place(where: str, told: Any) -> Place:
    known = {field.name for field in dataclasses.fields(Place)}
    if not isinstance(told, dict) or not isinstance(told.get("files"), dict):
        raise UserError(f"{where}: expected an object with files, member -> local path")
    for name in told.keys() - known:
        raise UserError.unknown(f"{where}: a place has no field {name!r}", name, known)
    if isinstance(told.get("addresses"), str):
        raise UserError(f"{where}: addresses is a text: expected a list of them")
    addresses = tuple(map(str, told.get("addresses", ())))
    return Place(**({"looked_up": "", "note": ""} | told | {"addresses": addresses}))
