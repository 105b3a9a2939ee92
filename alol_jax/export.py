"""Export a trained model to transformers, PEFT, vLLM and llama.cpp, or the annotated rows.

python -m alol_jax.export --workdir=runs/quickstart --what=adapter --out=adapters/quickstart
python -m alol_jax.export --workdir=runs/quickstart --what=merged --push=me/quickstart
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from alol_jax import paths
from alol_jax.errors import UserError
from alol_jax.models.families.registry import causal_lm
from alol_jax.models.files.gguf_file import described, write_gguf
from alol_jax.models.files.hf_config import to_hf
from alol_jax.models.files.hf_reader import HFDirectory, json_object
from alol_jax.models.files.hf_writer import write_json, write_weights
from alol_jax.models.files.merge import (
    StoredTensors,
    Weight,
    dequantised_weights,
    hf_rows,
    merged_weights,
    weights_from_checkpoint,
    weights_from_params,
)
from alol_jax.models.files.peft_adapter import write_adapter
from alol_jax.models.language_model import DTYPES, LanguageModel
from alol_jax.paths import AnyPath
from alol_jax.reports.data_card import columns_read, data_card
from alol_jax.reports.model_card import THIS_FOLDER, Exported, model_card, modelfile
from alol_jax.runs.artifacts import load_result
from alol_jax.runs.command_line import Parser, parsed, started
from alol_jax.runs.data_files import DATASETS, FORMATS, write_data_set, write_training_rows
from alol_jax.runs.hub import DATASET, MODEL, check_push, push
from alol_jax.runs.progress import say
from alol_jax.runs.workdir import finished_stage
from alol_jax.text.gguf_vocabulary import read_vocabulary, special_fields
from alol_jax.text.tokenizer_files import GENERATION, save
from alol_jax.trained import MODELS, open_trained
from alol_jax.types import Params, Policy, TrainingTable


class Options(argparse.Namespace):
    """The flags."""

    workdir: AnyPath
    what: str
    out: AnyPath | None
    push: str
    private: bool
    stage: str
    dtype: str
    base: str
    adapter: str
    format: str
    compile_cache: str
    debug: bool


def export(options: Options) -> None:
    """Write the directory ``options.out``, with a README.md, or push it to the hub, or both.

    Raises:
        UserError: the run has no such model, the directory is not empty, the base model is not the
            one of the run, or the hub refuses the push. Nothing is left half-written; what was
            written to ``options.out`` stays if only the push fails.
    """
    _check_options(options)
    kind = DATASET if options.what == DATA else MODEL
    if options.push:
        check_push(options.push, kind)
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary) / "export"
        with paths.new_folder(out) as folder:
            (_export_data if options.what == DATA else _export_model)(options, folder)
        if options.push:
            url = push(paths.local_copy(out), options.push, kind, private=options.private)
            say(f"pushed: {url}")


def _check_options(options: Options) -> None:
    """Check the flags that stand alone."""
    known = (*WRITERS, DATA)
    if options.what not in known:
        raise UserError.unknown(f"--what: no form {options.what!r}", options.what, known)
    options.format = options.format or (DATASETS if options.push else "jsonl")
    formats = (*FORMATS, DATASETS)
    if options.format not in formats:
        raise UserError.unknown(f"--format: no {options.format!r}", options.format, formats)
    if options.push and options.what == DATA and options.format != DATASETS:
        raise UserError(f"--format={options.format}: what is pushed has --format={DATASETS}")
    if options.stage not in MODELS:
        raise UserError.unknown(f"--stage: no model {options.stage!r}", options.stage, MODELS)
    if options.dtype not in ("", *DTYPES):
        raise UserError.unknown(f"--dtype: no dtype {options.dtype!r}", options.dtype, DTYPES)
    if options.out is None and not options.push:
        raise UserError("--out: give a directory to write to, or --push=ORG/NAME for the hub")
    if options.out is not None:
        options.out = paths.resolve(options.out)
        _check_empty(options.out)
    if options.private and not options.push:
        raise UserError("--private: it is for --push")


def _export_model(options: Options, folder: Path) -> None:
    """Write the model files, the tokenizer and the model card."""
    stage, config, lm = open_trained(
        options.workdir, options.stage, base=options.base, adapter=options.adapter
    )
    policy = load_result(stage.folder, Policy)
    dtype = WRITERS[options.what](folder, lm, policy.trained, config.model.path, options.dtype)
    about = Exported(
        options.workdir,
        options.stage,
        options.what,
        stage,
        policy,
        config,
        lm.transformer.config.family,
        lm.transformer.lora,
        dtype,
    )
    _write_card(folder, model_card(about), options)
    if options.what == "gguf":
        task = stage.record["inputs"]["task"]
        text = modelfile(task["template"], task["stop"])
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    where = options.out or options.push
    say(f"the {options.stage} of {options.workdir} as {options.what}: {where}")


def _export_data(options: Options, folder: Path) -> None:
    """Write the annotated training rows."""
    select = finished_stage(options.workdir, "select")
    if select is None:
        raise UserError(
            f"{options.workdir} has no finished select: run alol_jax.main with this workdir first"
        )
    rows = load_result(select.folder, TrainingTable).rows
    if options.format != DATASETS:
        write_training_rows(folder, rows, options.format)
    else:
        write_data_set(folder, rows, columns_read(select))
        _write_card(folder, data_card(select, rows), options)
    where = options.out or options.push
    say(f"{len(rows)} training rows of {options.workdir} as {options.format}: {where}")


def _write_card(folder: Path, text: str, options: Options) -> None:
    """Write README.md; of what is pushed, it shows how to load that."""
    text = text.replace(THIS_FOLDER, options.push or THIS_FOLDER)
    (folder / "README.md").write_text(text, encoding="utf-8")


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
    save(lm.tokenizer, folder)
    return ""


def _merged(folder: Path, lm: LanguageModel, trained: Params, base: str, dtype: str) -> str:
    """Write a whole model for transformers, in the run's dtype unless one is given."""
    dtype = dtype or lm.transformer.dtype.name
    config, checkpoint = lm.transformer.config, lm.checkpoint
    ends = _token_ids(lm)
    architecture = causal_lm(config.family) if checkpoint is None else checkpoint.architecture
    tensors = StoredTensors(config, hf_rows(config, architecture), _weights(lm, trained))
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
    save(lm.tokenizer, folder)
    return dtype


def _gguf(folder: Path, lm: LanguageModel, trained: Params, base: str, dtype: str) -> str:
    """Write the merged model as one file for llama.cpp and Ollama."""
    dtype, config = dtype or lm.transformer.dtype.name, lm.transformer.config
    model = described(config)
    with tempfile.TemporaryDirectory() as files:
        save(lm.tokenizer, Path(files))
        vocabulary = read_vocabulary(Path(files), config.vocab_size)
    fields = model.keys | vocabulary.fields() | special_fields(lm.tokenizer)
    tensors = StoredTensors(config, model.rows, _weights(lm, trained))
    write_gguf(folder / "model.gguf", fields, tensors, model.vectors, dtype)
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
    "gguf": _gguf,
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


def _check_empty(out: AnyPath) -> None:
    if paths.names(out) or (paths.exists(out) and not paths.is_folder(out)):
        raise UserError(f"--out: {out} exists and is not empty: choose another name")


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        UserError: a flag is unknown or missing.
    """
    parser = Parser("alol_jax.export", description=__doc__, allow_abbrev=False)
    flag = parser.add_argument
    flag("--workdir", type=paths.path_of, required=True, help="workdir of the run")
    flag("--what", required=True, help=f"one of {', '.join((*WRITERS, DATA))}")
    flag(
        "--out",
        type=paths.path_of,
        help="the directory to create; must be empty or missing",
    )
    flag("--push", default="", metavar="ORG/NAME", help="push to the Hugging Face hub")
    flag("--private", action="store_true", help="push to a repository that others cannot see")
    flag("--stage", default="policy", help=f"one of {', '.join(MODELS)}")
    flag("--dtype", default="", help=f"of merged weights: {', '.join(DTYPES)}; default: the run's")
    flag("--base", default="", help="path of the base model, if it was moved")
    flag("--adapter", default="", help="path of the adapter that training began from, if moved")
    flag("--format", default="", help=f"of data: {', '.join((*FORMATS, DATASETS))}")
    flag("--compile_cache", default="", help="where compiled programs are kept; 'off' keeps none")
    flag("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments, Options())


def entry() -> None:
    """Run `export`; a `UserError` is printed as one line on stderr, with exit code 2."""
    started(parsed(parse, export))


if __name__ == "__main__":
    entry()
