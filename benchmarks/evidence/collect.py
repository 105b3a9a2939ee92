"""Read what the experiments stored into plain values, for small JSON files.

A run counts once it is evaluated; rows count once they are annotated. So an experiment that was cut
gives what it has. Numbers are kept per prompt, so that intervals can be taken again. The texts that
people labelled are not: see `side_by_side`.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alol_jax.errors import UserError
from alol_jax.reports.results import by_prompt
from alol_jax.reports.statistics import distinct
from alol_jax.reports.text_measures import measured
from alol_jax.rewards.gold import by_prompt as gold_by_prompt
from alol_jax.runs.artifacts import load_fields, load_result
from alol_jax.runs.workdir import finished_stage
from alol_jax.tables.table import Table
from alol_jax.tasks import dialogue
from alol_jax.types import Annotated, Answers, Evaluation, Splits
from benchmarks.evidence import paid, relabelled
from benchmarks.evidence.labels import REWARDS
from benchmarks.evidence.order import BEST_OF_N
from benchmarks.evidence.stored import annotated, evaluation_of, fit_of, runs_of, value_of
from benchmarks.evidence.summaries import Plain
from benchmarks.evidence.value import STUDY

# people's labels


def labels(workdir: Path) -> Plain | None:
    """The experiment `labels`: what is kept by label and writer, V, and measures of the answers."""
    rows = annotated(workdir / "shared")
    if rows is None:
        return None
    found: Plain = {"kept": _kept(rows, workdir / "rows" / "train.jsonl")}
    found |= {"value": value_of(workdir / "shared"), "known": _known(workdir / "rows"), "runs": []}
    for name, seed, folder in runs_of(workdir):
        evaluation = evaluation_of(folder)
        if "reference" not in found:
            found["reference"] = _measures(evaluation, "reference")
        measures = _measures(evaluation, "policy")
        found["runs"].append({"name": name, "seed": seed, "measures": measures, **fit_of(folder)})
    read = relabelled.collected(workdir)
    if (workdir / STUDY).exists():
        found["study"] = json.loads((workdir / STUDY).read_text(encoding="utf-8"))
    return found | ({"relabelled": read} if read else {})


def _known(folder: Path) -> list[int]:
    """How many test prompts have a knowledge sentence of a training prompt, and how many in all."""
    train, test = (_lines(folder / f"{name}.jsonl") for name in ("train", "test"))
    seen = {line["knowledge"] for line in train}
    prompts = {(line["knowledge"], *line["history"]) for line in test}
    return [sum(knowledge in seen for knowledge, *_ in prompts), len(prompts)]


def _lines(file: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _kept(rows: Table[Annotated], file: Path) -> dict[str, dict[str, list[int]]]:
    """Kept and all rows, by label and by writer."""
    about: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for answer in _lines(file):
        about.setdefault((answer["knowledge"], answer["response"]), []).append(answer)
    counts = {kind: collections.defaultdict(lambda: [0, 0]) for kind in ("label", "writer")}
    for prompt, response, kept in zip(
        rows["prompt_text"], rows["response_text"], rows["kept"], strict=True
    ):
        same = about[dialogue.pair(prompt, response)]
        answer = same.pop(0) if len(same) > 1 else same[0]
        for kind, group in (("label", answer["BEGIN"][0]), ("writer", answer["writer"])):
            counts[kind][group][0] += int(kept)
            counts[kind][group][1] += 1
    order = {label: place for place, label in enumerate(REWARDS)}
    return {
        kind: dict(sorted(found.items(), key=lambda item: (order.get(item[0], 0), item[0])))
        for kind, found in counts.items()
    }


def _measures(evaluation: Evaluation, system: str) -> dict[str, list[float]]:
    """The measures of a system's answers, by prompt."""
    rows = getattr(evaluation, system)
    answers = list(rows["response"])
    pairs = list(map(dialogue.pair, rows["prompt"], answers))
    components = rows["components"].matrix.T
    found = dict(zip(evaluation.component_names, components, strict=True))
    found |= {name: measured(name, pairs, None) for name in ("coverage", "density")}
    found["words"] = np.array([len(text.split()) for text in answers], float)
    found["distinct words"] = np.array([distinct([text], 1) for text in answers])
    stored = evaluation.by_prompt[system].matrix.T
    found |= {one.name: column for one, column in zip(evaluation.stored, stored, strict=True)}
    return {name: _rounded(values) for name, values in found.items()}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


# noise


def noise(workdir: Path) -> Plain | None:
    """The experiment `noise`: what is kept of moved and of other rows, and what policies earn."""
    levels = []
    for folder in sorted(workdir.iterdir()) if workdir.is_dir() else ():
        share, _, seed = folder.name.rpartition("-")
        rows = annotated(folder / "shared") if folder.is_dir() else None
        if rows is None:
            continue
        true = _belongs(folder / "shared", rows)
        level = {"share": float(share), "seed": int(seed), "value": value_of(folder / "shared")}
        for name, part in (("moved", ~true), ("others", true)):
            level[name] = [int(rows["kept"][part].sum()), int(part.sum())]
        levels.append(level | _runs(folder))
    return {"levels": levels} if levels else None


def _belongs(shared: Path, rows: Table[Annotated]) -> np.ndarray:
    """bool[rows]: whether the data has the response to this prompt."""
    (gold,) = load_fields(finished_stage(shared, "load").folder, Splits, ("gold",))
    own = gold_by_prompt(gold)
    pairs = zip(rows["prompt_text"], rows["response_text"], strict=True)
    return np.array([not own or response in own[prompt] for prompt, response in pairs])


def _runs(workdir: Path) -> Plain:
    """What the reference of a sweep earns, and what each of its policies does."""
    found: Plain = {"runs": []}
    for name, seed, folder in runs_of(workdir):
        evaluation = evaluation_of(folder)
        found.setdefault("reference", _earned(evaluation, "reference"))
        run = {"name": name, "seed": seed, **_earned(evaluation, "policy"), **fit_of(folder)}
        found["runs"].append(run | {"kl": None if evaluation.kl is None else evaluation.kl.mean})
    return found


def _earned(evaluation: Evaluation, system: str) -> Plain:
    """Total rewards by test prompt, the means of the components, distinct-2 and echoes."""
    answers = getattr(evaluation, system)
    rows = by_prompt(answers)[1]
    names = (*evaluation.component_names, "total")
    means = dict(zip(names, _rounded(rows.mean(axis=0)), strict=True))
    found = {"rewards": _rounded(rows[:, -1]), "components": means}
    texts = list(answers["response"])
    echoes = sum(map(paid.is_echo, answers["prompt"], texts))
    return found | {"distinct-2": distinct(texts, 2), "echoes": echoes}


# order


def order(workdir: Path) -> Plain | None:
    """The experiment `order`: all runs, best of n, and V by the number of sampled answers."""
    if annotated(workdir / "shared") is None:
        return None
    found: Plain = {"value": value_of(workdir / "shared"), "by_samples": [], **_runs(workdir)}
    for folder in sorted(workdir.glob("samples_*")):
        if annotated(folder / "shared") is not None:
            count = int(folder.name.rpartition("_")[2])
            value, answers = value_of(folder / "shared"), _answers(folder / "shared")
            of_v = {"samples": count, "value": value, "answers": answers}
            found["by_samples"].append({**of_v, **_runs(folder)})
    if (workdir / BEST_OF_N).exists():
        found["best_of_n"] = json.loads((workdir / BEST_OF_N).read_text(encoding="utf-8"))
    return found


def _answers(shared: Path) -> list[list[float]]:
    """The rewards of the answers that V is fitted to, by prompt."""
    rows = load_result(finished_stage(shared, "generate").folder, Answers).rows
    groups: dict[str, list[float]] = {}
    for prompt, reward in zip(rows["example_id"], rows["reward"], strict=True):
        groups.setdefault(prompt, []).append(round(float(reward), 4))
    return list(groups.values())


# reading


def reading(workdir: Path) -> Plain | None:
    """Blind verdicts by seed: 1 where the policy's answer was found better, −1 where worse."""
    seeds = []
    for file in sorted(workdir.glob("*/verdicts.json")):
        key = json.loads((file.parent / "key.json").read_text(encoding="utf-8"))
        verdicts = json.loads(file.read_text(encoding="utf-8"))
        if len(verdicts) != len(key) or set(verdicts) - {"A", "B", "="}:
            raise UserError(f"{file}: expected a list of {len(key)} of 'A', 'B' and '='")
        found = [0 if v == "=" else 1 if v == k else -1 for v, k in zip(verdicts, key, strict=True)]
        seeds.append({"seed": int(file.parent.name), "verdicts": found})
    return {"readings": seeds} if seeds else None


EXPERIMENTS: dict[str, Callable[[Path], Plain | None]] = {
    "candidates": paid.collected,
    "labels": labels,
    "noise": noise,
    "order": order,
    "reading": reading,
}
"""Experiment, and the folder of its workdir -> what collects it; None: nothing is there yet."""
