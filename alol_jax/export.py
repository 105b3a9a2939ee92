"""Export a trained model to transformers, PEFT and vLLM, or the annotated rows to other tools.

python -m alol_jax.export --workdir=runs/quickstart --what=adapter --out=adapters/quickstart
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from alol_jax import paths
from alol_jax.devices.compile_cache import use_compile_cache
from alol_jax.devices.opening import open_devices
from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.models.families.registry import ARCHITECTURES
from alol_jax.models.files.hf_config import to_hf
from alol_jax.models.files.hf_reader import HFDirectory, json_object
from alol_jax.models.files.hf_writer import write_json, write_weights
from alol_jax.models.files.merge import (
    HFTensors,
    Weight,
    dequantised_weights,
    merged_weights,
    weights_from_checkpoint,
    weights_from_params,
)
from alol_jax.models.files.peft_adapter import write_adapter
from alol_jax.models.language_model import DTYPES, LanguageModel, open_language_model
from alol_jax.paths import AnyPath
from alol_jax.reports.model_card import Exported, model_card
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.command_line import guarded
from alol_jax.runs.data_files import FORMATS, write_training_rows
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import Stage, finished_stage
from alol_jax.text.tokenizer_files import GENERATION, save
from alol_jax.types import Params, Policy, TrainingTable

MODELS = {"policy": ("fit_policy", "fit_policy_online"), "reference": ("fit_reference",)}
"""Model to export -> the stages that can train it."""


class Options(argparse.Namespace):
    """The flags."""

    workdir: AnyPath
    what: str
    out: AnyPath
    stage: str
    dtype: str
    base: str
    adapter: str
    format: str
    compile_cache: str
    debug: bool


def export(options: Options) -> None:
    """Write the directory ``options.out``: model files, tokenizer files and README.md.

    Raises:
        UserError: the run has no such model, the directory is not empty, or the base model is not
            the one of the run. Nothing is left half-written.
    """
    if options.what not in (*WRITERS, DATA):
        known = (*WRITERS, DATA)
        raise UserError.unknown(f"--what: no form {options.what!r}", options.what, known)
    if options.format not in FORMATS:
        raise UserError.unknown(f"--format: no {options.format!r}", options.format, FORMATS)
    if options.stage not in MODELS:
        raise UserError.unknown(f"--stage: no model {options.stage!r}", options.stage, MODELS)
    if options.dtype not in ("", *DTYPES):
        raise UserError.unknown(f"--dtype: no dtype {options.dtype!r}", options.dtype, DTYPES)
    options.out = paths.resolve(options.out)
    _check_empty(options.out)
    if options.what == DATA:
        _export_data(options)
        return
    stage = _trained_stage(options.workdir, options.stage)
    config = stage.config()
    config.model.path = options.base or config.model.path
    config.model.adapter = options.adapter or config.model.adapter
    config.model.attention = "xla"  # available everywhere; nothing is computed with it
    lm = open_language_model(
        config.model, make_mesh(data=1, fsdp=1, tensor=1, devices=open_devices()[:1])
    ).for_template(config.task.template)
    _check_base(lm, stage, config.model.path)
    policy = load_result(stage.folder, Policy)
    with paths.new_folder(options.out) as folder:
        dtype = WRITERS[options.what](folder, lm, policy.trained, config.model.path, options.dtype)
        save(lm.tokenizer, folder)
        about = Exported(
            options.workdir,
            options.stage,
            stage,
            policy,
            config,
            lm.transformer.config.family,
            lm.transformer.lora,
            dtype,
        )
        (folder / "README.md").write_text(model_card(about), encoding="utf-8")
    say(f"the {options.stage} of {options.workdir} as {options.what}: {options.out}")


def _export_data(options: Options) -> None:
    """Write the annotated training rows."""
    select = finished_stage(options.workdir, "select")
    if select is None:
        raise UserError(
            f"{options.workdir} has no finished select: run alol_jax.main with this workdir first"
        )
    rows = load_result(select.folder, TrainingTable).rows
    with paths.new_folder(options.out) as folder:
        write_training_rows(folder, rows, options.format)
    say(f"{len(rows)} training rows of {options.workdir} as {options.format}: {options.out}")


def _trained_stage(workdir: AnyPath, name: str) -> Stage:
    """The stage that trained the model; if there are several, the one that was evaluated."""
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


def _adapter(folder: Path, lm: LanguageModel, trained: Params, base: str, dtype: str) -> str:
    """Write an adapter that PEFT loads onto the base model."""
    if lm.transformer.lora is None:
        raise UserError(
            "--what=adapter: this run trained every weight (config.model.lora.rank = 0), so there "
            "is no adapter: use --what=merged"
        )
    if lm.adapter is not None and lm.adapter.changes:
        raise UserError(
            f"--what=adapter: the run began from {lm.adapter.folder}, which also changes weights "
            f"of its base ({lm.adapter.changes}): use --what=merged"
        )
    if dtype:
        raise UserError("--dtype: an adapter is always float32; leave it out, or use --what=merged")
    write_adapter(folder, lm.transformer.config, lm.transformer.lora, trained, base)
    return ""


def _merged(folder: Path, lm: LanguageModel, trained: Params, base: str, dtype: str) -> str:
    """Write a whole model for transformers, in the run's dtype unless one is given."""
    dtype = dtype or lm.transformer.dtype.name
    config, checkpoint = lm.transformer.config, lm.checkpoint
    ends = _token_ids(lm)
    architecture = _causal_lm(config.family) if checkpoint is None else checkpoint.architecture
    tensors = HFTensors(config, architecture, _weights(lm, trained))
    write_weights(folder, tensors.shapes, dtype, tensors.read)
    if checkpoint is not None and isinstance(checkpoint.weights, HFDirectory):
        fields = dict(checkpoint.weights.config_json)
        stored, generation = checkpoint.weights.path / GENERATION, ends
        if stored.is_file():
            generation = ends | json_object(stored) | {"eos_token_id": ends["eos_token_id"]}
    else:
        generation = ends
        fields = {"architectures": [architecture]} | to_hf(config) | ends
        if config.rotary is not None:  # where transformers 4 reads it
            fields["rope_theta"] = config.rotary.theta
    fields.pop("dtype", None)
    write_json(folder / "config.json", fields | {"torch_dtype": dtype})
    write_json(folder / GENERATION, generation)
    return dtype


def _token_ids(lm: LanguageModel) -> dict[str, int | list[int]]:
    """The tokens that end an answer in generation, and the padding token."""
    first, *more = lm.tokenizer.ends
    return {"eos_token_id": [first, *more] if more else first, "pad_token_id": lm.tokenizer.pad_id}


DATA = "data"
"""--what for the annotated training rows; ``--format`` chooses the kind of file."""

WRITERS: dict[str, Callable[[Path, LanguageModel, Params, str, str], str]] = {
    "adapter": _adapter,
    "merged": _merged,
}
"""--what -> its writer: (folder, model, trained leaves, path of the base, dtype or "") -> the dtype
of the merged weights, or "" for an adapter."""


def _weights(lm: LanguageModel, trained: Params) -> Weight:
    """A function that returns the weights of the trained model one by one."""
    lora, nf4 = lm.transformer.lora, lm.transformer.nf4
    if lora is None:
        return weights_from_params(trained)
    if lm.checkpoint is not None:
        weight = weights_from_checkpoint(lm.checkpoint)
    else:
        plain = dataclasses.replace(lm.transformer, lora=None, nf4=None)
        weight = weights_from_params(
            dataclasses.replace(lm, transformer=plain).trainable(jax.random.key(0))
        )
    stored = None if lm.checkpoint is None else lm.checkpoint.stored_nf4
    requantised = nf4 is not None and stored is None
    return merged_weights(
        dequantised_weights(weight, nf4) if requantised else weight, lora, trained
    )


def _causal_lm(family: str) -> str:
    """The causal language model class of ``family`` in transformers."""
    return next(
        name
        for name, kind in ARCHITECTURES.items()
        if kind.family == family and [row.paths for row in kind.head] == [("head/kernel",)]
    )


def _check_base(lm: LanguageModel, stage: Stage, path: str) -> None:
    """Check that the base model is the one that the leaves were trained on."""
    trained_on = stage.record["inputs"]["lm"]
    for key in ("weights", "tokenizer", "adapter"):
        if trained_on.get(key) != lm.fingerprint.get(key):
            raise UserError(
                f"{path}: the {key} differ from those of the run ({trained_on.get(key)}, here "
                f"{lm.fingerprint.get(key)}): give the run's base with --base"
            )


def _check_empty(out: AnyPath) -> None:
    if paths.names(out) or (paths.exists(out) and not paths.is_folder(out)):
        raise UserError(f"--out: {out} exists and is not empty: choose another name")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        UserError: a flag is unknown or missing.
    """
    parser = _Parser("alol_jax.export", description=__doc__, allow_abbrev=False)
    flag = parser.add_argument
    flag("--workdir", type=paths.path_of, required=True, help="workdir of the run")
    flag("--what", required=True, help=f"one of {', '.join((*WRITERS, DATA))}")
    flag(
        "--out",
        type=paths.path_of,
        required=True,
        help="the directory to create; must be empty or missing",
    )
    flag("--stage", default="policy", help=f"one of {', '.join(MODELS)}")
    flag("--dtype", default="", help=f"of merged weights: {', '.join(DTYPES)}; default: the run's")
    flag("--base", default="", help="path of the base model, if it was moved")
    flag("--adapter", default="", help="path of the adapter that training began from, if moved")
    flag("--format", default="jsonl", help=f"of data: {', '.join(FORMATS)}")
    flag("--compile_cache", default="", help="where compiled programs are kept; 'off' keeps none")
    flag("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments, Options())


def entry() -> None:
    """Run `export`; a `UserError` is printed as one line on stderr, with exit code 2."""

    def run() -> None:
        options = parse(sys.argv[1:])
        use_compile_cache(options.compile_cache, say=say)
        export(options)

    sys.exit(guarded(run, debug=lambda: "--debug" in sys.argv))


if __name__ == "__main__":
    entry()
