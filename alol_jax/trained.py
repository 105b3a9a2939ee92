"""The models that a finished run trained, opened again: for export, chat and harness."""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from alol_jax.devices.opening import open_devices
from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.paths import AnyPath
from alol_jax.runs.workdir import Stage, finished_stage

MODELS = {"policy": ("fit_policy", "fit_policy_online"), "reference": ("fit_reference",)}
"""Model -> the stages that can train it."""


class Trained(NamedTuple):
    """The stage that trained a model, and the base that it was trained on."""

    stage: Stage
    config: ConfigDict  # of the run
    lm: LanguageModel  # on one device


def open_trained(workdir: AnyPath, name: str, *, base: str, adapter: str) -> Trained:
    """Open the base of a model of a run; no weights are read yet.

    Args:
        name: a key of `MODELS`.
        base: where the base model is now; "" = where it was.
        adapter: where the adapter is that training began from; "" = where it was.

    Raises:
        UserError: the run has no such model, or the base is another one.
    """
    stage = trained_stage(workdir, name)
    config = stage.config()
    config.model.path = base or config.model.path
    config.model.adapter = adapter or config.model.adapter
    config.model.attention = "xla"  # available everywhere
    lm = open_language_model(
        config.model, make_mesh(data=1, fsdp=1, tensor=1, devices=open_devices()[:1])
    ).for_template(config.task.template)
    _check_base(lm, stage, config.model.path)
    return Trained(stage, config, lm)


def trained_stage(workdir: AnyPath, name: str) -> Stage:
    """Return the stage that trained the model; if there are several, the one that was evaluated.

    Raises:
        UserError: there is none, or neither of two was evaluated.
    """
    stages = [finished_stage(workdir, stage) for stage in MODELS[name]]
    found = [stage for stage in stages if stage is not None]
    if len(found) > 1:
        evaluated = finished_stage(workdir, "evaluate")
        inputs = {} if evaluated is None else evaluated.record["inputs"]
        found = [stage for stage in found if stage.fingerprint == inputs.get(name)]
        if not found:
            raise UserError(
                f"{workdir} holds {' and '.join(MODELS[name])}, and neither is the one that was "
                "evaluated: run alol_jax.main with this workdir again"
            )
    if not found:
        raise UserError(
            f"{workdir} has no finished {MODELS[name][0]}: run alol_jax.main with this workdir "
            "first"
        )
    return found[0]


def _check_base(lm: LanguageModel, stage: Stage, path: str) -> None:
    """Check that the base model is the one that the leaves were trained on."""
    trained_on = stage.record["inputs"]["lm"]
    for key in ("weights", "tokenizer", "adapter"):
        if trained_on.get(key) != lm.fingerprint.get(key):
            raise UserError(
                f"{path}: the {key} differ from those of the run ({trained_on.get(key)}, here "
                f"{lm.fingerprint.get(key)}): give the run's base with --base"
            )
