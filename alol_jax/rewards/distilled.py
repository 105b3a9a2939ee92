"""A small reward model that `distill_reward` fitted: a frozen language model and a value head.

    score = sigmoid(w · pool(h([prompt | response])) + b)

with h the hidden states of the base and pool the value head's attention over all non-padding
tokens. It is saved as a folder with ``reward.json`` (a `Description`) and ``head/`` (the head's
parameters).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alol_jax import paths
from alol_jax.devices.sharding import place_params
from alol_jax.errors import UserError
from alol_jax.models.heads import ValueHead, slot_mask
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.models.transformer import Transformer
from alol_jax.paths import AnyPath
from alol_jax.rewards.packed import read_texts
from alol_jax.runs.checkpoint import load_params, save_params
from alol_jax.text.prompts import encoder_of
from alol_jax.types import Distilled, Exchange, Params, Watch

DESCRIPTION = "reward.json"
HEAD = "head"
NAME = "distilled"  # of the scorer that a run fits to its own rows
FORMAT = 4


@dataclasses.dataclass(frozen=True)
class Description:
    """A distilled reward model, as stored in ``reward.json``.

    Attributes:
        template, marks, date: how a prompt is asked, as in `Task`.
        limits: maximum tokens of prompt and response.
        heads: number of attention heads of the value head.
        base: weights, tokenizer, dtype and quantisation of the base (`base_fingerprint`).
        model: ``config.model``, to reopen the base.
        figures: how well it predicts held-out rows.
    """

    template: str
    marks: tuple[str, ...]
    date: str
    limits: tuple[int, int]
    heads: int
    base: dict[str, Any]
    model: dict[str, Any]
    figures: dict[str, float]


def base_fingerprint(lm: LanguageModel) -> dict[str, Any]:
    """Return what the hidden states of the base depend on."""
    fingerprint = lm.fingerprint
    kept = {name: fingerprint[name] for name in ("weights", "tokenizer")}
    return kept | {name: lm.options[name] for name in ("dtype", "quantisation")}


def encode(
    lm: LanguageModel,
    description: Description,
    read: Callable[[str, str], Exchange],
    prompt: str,
    response: str,
) -> tuple[int, ...]:
    """Return the token ids that the base reads: the prompt in its template, then the response.

    Args:
        read: from the task: prompt, response -> exchange.
    """
    limits = description.limits
    asked = encoder_of(lm.tokenizer, description, lambda text: read(text, response).conversation)
    prompts, _ = asked([prompt], limit=limits[0])
    return (*prompts[0].tolist(), *lm.tokenizer.encode_response(response, limit=limits[1])[0])


def reader_of(lm: LanguageModel) -> Transformer:
    """Return the base without adapters."""
    return dataclasses.replace(lm.transformer, lora=None)


@functools.lru_cache(maxsize=8)
def _scorer(model: Transformer, head: ValueHead) -> Callable[..., jax.Array]:
    @jax.jit
    def score(base, params, grid):
        hidden = model.hidden(base, grid.ids, grid.segment, positions=grid.position)
        return head(params, hidden, slot_mask(grid))

    return score


@dataclasses.dataclass(frozen=True, eq=False)
class DistilledScorer:
    """Scores responses with a distilled reward model.

    Attributes:
        path: the model's folder.
        description: what was stored with it.
        read: from the task: prompt, response -> exchange.
        lm: a language model with the same base: the run's own if possible.
        head: the head's parameters, on the mesh.
    """

    path: str
    description: Description
    read: Callable[[str, str], Exchange]
    lm: LanguageModel
    head: Params

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Identify the base, the template and limits, and the head."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(self.head):
            digest.update(path.encode() + np.asarray(self.head[path]).tobytes())
        stored = dataclasses.asdict(self.description)
        names = ("template", "marks", "date", "limits", "heads", "base")
        kept = {name: stored[name] for name in names}
        return kept | {"head": digest.hexdigest()}

    @property
    def commits(self) -> dict[str, str]:
        """The commit of its base, if that is on the hub."""
        return self.lm.commits

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest score."""
        return 0.0, 1.0

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Score responses: f64[rows] in (0, 1)."""
        rows = [
            encode(self.lm, self.description, self.read, prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        model = reader_of(self.lm)
        head = ValueHead(model.config.width, 1.0, self.description.heads)
        return read_texts(
            functools.partial(_scorer(model, head), self.lm.base, self.head),
            rows,
            config=model.config,
            mesh=self.lm.mesh,
            pad_id=self.lm.tokenizer.pad_id,
            watch=Watch(f"reward model {self.path}"),
        )

    def notes(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[str, ...]:
        """Return no notes: texts are cut as the language model's own are."""
        return ()


def fitted_scorer(
    described: Description,
    read: Callable[[str, str], Exchange],
    lm: LanguageModel,
    fitted: Distilled,
) -> DistilledScorer:
    """Return the scorer that a run fitted to its own rows, on the base of ``lm``.

    Args:
        read: from the task: prompt, response -> exchange.
    """
    return DistilledScorer(NAME, described, read, lm, place_params(fitted.head, lm.mesh))


def check_output_folder(folder: AnyPath) -> None:
    """Raise UserError unless ``folder`` is free for a reward model.

    It must not exist or be empty, apart from what an interrupted save left.
    """
    if paths.exists(folder) and not paths.is_folder(folder):
        raise UserError(f"{folder} is a file: choose another --out")
    if set(paths.names(folder)) - {HEAD}:
        raise UserError(f"{folder} is not empty: choose another --out")


def save_distilled(folder: AnyPath, description: Description, head: Params) -> None:
    """Save a reward model for use as ``config.reward_models.*.path``.

    Raises:
        UserError: the folder is taken (`check_output_folder`) or not writable.
    """
    check_output_folder(folder)
    paths.make_folder(folder)
    paths.remove(folder / HEAD)
    save_params(folder / HEAD, head)
    text = json.dumps({"format": FORMAT} | dataclasses.asdict(description), indent=1)
    paths.write_text(folder / DESCRIPTION, text + "\n")


def read_description(file: Path, where: str) -> Description:
    """Read ``reward.json``.

    Raises:
        UserError: it is damaged or of another format.
    """
    names = {field.name for field in dataclasses.fields(Description)}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        stored = None
    if (
        not isinstance(stored, dict)
        or stored.pop("format", None) != FORMAT
        or stored.keys() != names
    ):
        raise UserError(f"{where}: {file} is damaged or of another format: distil it again")
    return Description(**stored | {name: tuple(stored[name]) for name in ("marks", "limits")})


def open_distilled(
    wanted: ConfigDict,
    where: str,
    read: Callable[[str, str], Exchange],
    mesh: Mesh,
    lm: LanguageModel | None,
) -> DistilledScorer:
    """Open the distilled reward model in the folder ``wanted.path``.

    If ``lm`` has the same base, the two share it, and no second model is loaded.

    Args:
        wanted: one entry of ``config.reward_models``; only ``path`` is used.
        where: its key in the config, for messages.
        read: from the task: prompt, response -> exchange.
        mesh: the device mesh.
        lm: a language model that is open already, if any.

    Raises:
        UserError: the format is unknown, or the base is not the one the head was fitted on.
    """
    folder = paths.local_copy(wanted.path)
    description = read_description(folder / DESCRIPTION, where)
    shared = lm is not None and base_fingerprint(lm) == description.base
    base = lm if shared else _open_base(description, where, mesh)
    head = place_params(load_params(folder / HEAD), mesh)
    return DistilledScorer(wanted.path, description, read, base, head)


def _open_base(description: Description, where: str, mesh: Mesh) -> LanguageModel:
    options = ConfigDict(description.model)
    options.lora.modules = tuple(options.lora.modules)
    options.attention = "auto"  # the stored choice was for another machine
    opened = open_language_model(options, mesh).for_template(description.template)
    if base_fingerprint(opened) != description.base:
        raise UserError(
            f"{where}: the model at {options.path} is not the one that this reward model was "
            "distilled on: restore that model, or distil again"
        )
    return opened
