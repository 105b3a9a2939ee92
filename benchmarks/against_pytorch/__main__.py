"""Race the published structure in PyTorch: the same rows, initial weights and draws.

    python -m benchmarks.against_pytorch --config=configs/hha.py:size=smollm2 --rows=64 \\
        --config.task.train_files="('helpful_base.jsonl',)" … --out=runs/race

needs torch, transformers and peft. For each objective, both sides train the same steps, in turn,
each in a process of its own; then both answer the same prompts. Where TRL is installed, its
``DPOTrainer`` runs in ``dpo``, too. Prints seconds per item (row or pair), real tokens per second,
their ratio with its spread over rounds, peak memory, and by how much the losses differ; and writes
all that, with the loss of every step, to ``--out``.

The rows have rewards from the data where there are any; the advantage is the reward less the mean,
at least 0.1, so that every row trains. Neither changes what a step costs.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from alol_jax.devices.sharding import make_mesh
from alol_jax.errors import UserError
from alol_jax.export import WRITERS
from alol_jax.models.language_model import LanguageModel, open_language_model
from alol_jax.runs.command_line import guarded
from alol_jax.stages.load import counter_of, read_splits
from alol_jax.tables.table import Table
from alol_jax.tasks.registry import get_task
from alol_jax.training.items import tokenise
from alol_jax.types import Scored
from benchmarks.against_pytorch import job as jobs
from benchmarks.against_pytorch.job import Job
from benchmarks.against_pytorch.report import decode_rows, markdown, train_rows

CONFIG = config_flags.DEFINE_config_file("config", "configs/hha.py:size=smollm2")
OBJECTIVES = flags.DEFINE_list("objectives", ["nll", "a_lol", "a_lol_seq", "dpo"], "To train with.")
ROWS = flags.DEFINE_integer("rows", 64, "Rows to train on; as many prompts are answered.")
STEPS = flags.DEFINE_integer("steps", 3, "Optimizer steps of each objective.")
ROUNDS = flags.DEFINE_integer("rounds", 2, "How often each side runs, in turn.")
DECODE = flags.DEFINE_bool("decode", True, "Race in decoding, too.")
OUT = flags.DEFINE_string("out", "runs/race", "The folder for the results.")
SIDE = flags.DEFINE_string("side", "", "Internal: be one side: jax, torch or trl.")
WHAT = flags.DEFINE_string("what", "", "Internal: an objective, or a load of decoding.")

LOADS = {"equal": "32 at a time, 64 tokens each", "ending": "32 at a time, to their end"}
NEW_TOKENS = {"equal": 64, "ending": 128}


def make_job(lm: LanguageModel, config) -> Job:
    """The first rows of the task, and the items of each step."""
    task = get_task(config.task)
    examples = read_splits(task, config.task, counter_of(lm, task, config.task)).train
    rows = [
        Scored(example.id, example.prompt, response, example.source, (), reward)
        for example in (examples[n] for n in range(min(len(examples), ROWS.value)))
        for response, reward in zip(
            example.responses, example.rewards or [1.0] * len(example.responses), strict=True
        )
    ][: ROWS.value]
    table = Table.of(rows, Scored)
    tokens, _ = tokenise(table, task, lm.tokenizer, lm.limits)
    reward = np.array([row.reward for row in rows], np.float32)
    ids = [row.example_id for row in rows]
    pairs = [(n, n + 1) for n in range(len(ids) - 1) if ids[n] == ids[n + 1]]
    size, rng = config.policy.batch_size, np.random.default_rng(0)
    optimizer = config.policy.optimizer
    return Job(
        prompts=[tokens["prompt"][n] for n in range(len(rows))],
        responses=[tokens["response"][n] for n in range(len(rows))],
        reward=reward,
        advantage=np.maximum(reward - reward.mean(), 0.1).astype(np.float32),
        pairs=np.array(pairs, np.int64).reshape(-1, 2),
        draws=rng.integers(len(rows), size=(STEPS.value, size)),
        pair_draws=rng.integers(max(len(pairs), 1), size=(STEPS.value, size)),
        options={
            "max_prompt": lm.limits.prompt,
            "max_response": lm.limits.response,
            "dtype": config.model.dtype,
            "learning_rate": optimizer.learning_rate,
            "max_grad_norm": optimizer.max_grad_norm or 1e9,
            "clip": config.objective.clip,
            "beta": config.objective.beta,
            "slots": config.decode.batch_size,
            "eos": lm.tokenizer.eos_id,
        },
    )


def prompts_of(job: Job, load: str) -> tuple[list[np.ndarray], dict]:
    """The prompts of a load of decoding, and its options."""
    options = dict(job.options, new_tokens=NEW_TOKENS[load])
    if load == "ending":
        return job.prompts, options | {"end": job.options["eos"]}
    count, width = job.options["slots"], 128
    rng, known = np.random.default_rng(0), np.unique(np.concatenate(job.prompts))
    return [rng.choice(known, width) for _ in range(count)], options | {"end": 0}


def be_side(folder: Path) -> dict:
    """Run one side of the race; only here is torch or a model loaded."""
    job, what = jobs.load(folder), WHAT.value
    if SIDE.value == "trl":
        from benchmarks.against_pytorch import trl_side

        return trl_side.train(job, folder)
    if SIDE.value == "torch":
        from benchmarks.against_pytorch import torch_side

        if what in LOADS:
            prompts, options = prompts_of(job, what)
            return torch_side.decode(prompts, folder, options)
        return torch_side.train(job, what, folder)
    from benchmarks.against_pytorch import jax_side

    lm = opened()
    if what in LOADS:
        prompts, options = prompts_of(job, what)
        return jax_side.decode(prompts, lm, options)
    return jax_side.train(job, what, lm, optimizer_of(CONFIG.value))


def optimizer_of(config):
    """The optimizer of the race: AdamW at a constant rate, as on the other side."""
    options = config.policy.optimizer.copy_and_resolve_references()
    options.update({"schedule": "constant", "warmup": 0, "b1": 0.9, "b2": 0.999})
    options.update({"epsilon": 1e-8, "weight_decay": 0.0})
    return options


def opened() -> LanguageModel:
    config = CONFIG.value
    lm = open_language_model(config.model, make_mesh(data=-1, fsdp=1, tensor=1))
    return lm.for_template(config.task.template)


def raced(folder: Path, what: str) -> dict[str, list[dict]]:
    """Run the sides in turn; return side -> the result of each round."""
    found: dict[str, list[dict]] = {"torch": [], "jax": []}
    if what == "dpo" and importlib.util.find_spec("trl"):
        found["trl"] = []
    passed = [word for word in sys.argv[1:] if word.startswith("--config")]
    for number in range(ROUNDS.value):
        for side in list(found)[:: 1 if number % 2 else -1]:
            command = [sys.executable, "-m", "benchmarks.against_pytorch", f"--side={side}"]
            command += [f"--what={what}", f"--out={folder}", *passed]
            subprocess.run(command, check=True)
            file = folder / f"{side}.json"
            found[side].append(json.loads(file.read_text()))
            file.unlink()
        print(f"{what}: round {number + 1} of {ROUNDS.value}", flush=True)
    return found


def main(_) -> None:
    folder = Path(OUT.value)
    if SIDE.value:
        found = be_side(folder)
        (folder / f"{SIDE.value}.json").write_text(json.dumps(found), encoding="utf-8")
        return
    if not set(OBJECTIVES.value) <= {"nll", "a_lol", "a_lol_seq", "dpo"}:
        raise UserError("--objectives: nll, a_lol, a_lol_seq and dpo can race")
    lm = opened()
    job = make_job(lm, CONFIG.value)
    if "dpo" in OBJECTIVES.value and not len(job.pairs):
        raise UserError("--objectives: dpo needs two responses of a prompt, and no prompt has them")
    start = lm.trainable(jax.random.key(0))
    for name in ("model", "adapter"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    WRITERS["merged"](
        folder / "model", lm, start, CONFIG.value.model.path, CONFIG.value.model.dtype
    )
    WRITERS["adapter"](folder / "adapter", lm, start, str(folder / "model"), "")
    jobs.save(folder, job)
    training = train_rows(job, {name: raced(folder, name) for name in OBJECTIVES.value})
    loads = LOADS if DECODE.value else {}
    decoding = decode_rows({said: raced(folder, load) for load, said in loads.items()})
    text = markdown(training, decoding)
    (folder / "race.json").write_text(json.dumps([training, decoding], indent=1), encoding="utf-8")
    (folder / "race.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(guarded(lambda: app.run(main)))
