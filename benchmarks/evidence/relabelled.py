"""What blind readers said of answers: collected from their sheets, and as tables.

`relabel` writes the sheets. A reading is a set of systems, read for one or more seeds.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from alol_jax.errors import UserError
from alol_jax.runs.progress import say
from benchmarks.evidence.labels import REWARDS
from benchmarks.evidence.pairs import Values, by_name_and_seed, pairs
from benchmarks.evidence.summaries import Plain, difference, names_of
from benchmarks.evidence.words import gain, titled

RELABEL, KEY = "relabel", "key.json"  # folder and file of `relabel`
LABELS = tuple(REWARDS)  # labels are collected as places in it
PAID = np.array(list(REWARDS.values()))
VERDICTS = [[label, fit] for label in LABELS for fit in (0, 1, 2)]
ENTAILED = 0.75  # the least reward of an entailed answer
UNCOOPERATIVE = LABELS.index("entailment, uncooperative")
MADE_UP = [place for place, label in enumerate(LABELS) if "hallucination" in label]


def collected(workdir: Path) -> list[Plain]:
    """All readings below the workdir of `labels` that are finished, by name and seed."""
    found = []
    for file in sorted((workdir / RELABEL).glob(f"*/*/{KEY}")):
        said = _sheets(file.parent)
        if said is not None:
            name, seed = file.parts[-3:-1]
            found.append({"reading": name, "seed": int(seed), **said})
    return found


def _sheets(folder: Path) -> Plain | None:
    """The labels and fits of each system, and pairs of labels, people's first.

    Returns:
        None as long as a sheet is not read.

    Raises:
        UserError: a sheet has not a label and a fit for each answer.
    """
    key = json.loads((folder / KEY).read_text(encoding="utf-8"))
    files = [file.with_suffix(".json") for file in folder.glob("sheet-*.md")]
    if not all(file.exists() for file in files):
        say(f"{folder}: not all sheets are read yet")
        return None
    said = []
    for number in range(len(files)):
        said += json.loads((folder / f"sheet-{number}.json").read_text(encoding="utf-8"))
    if list(map(len, said)) != list(map(len, key)):
        raise UserError(f"{folder}: expected a [label, fit] for each answer of each prompt")
    systems: dict[str, dict[str, list[int]]] = {}
    people = []
    for entries, verdicts in zip(key, said, strict=True):
        for entry, verdict in zip(entries, verdicts, strict=True):
            if verdict not in VERDICTS:
                raise UserError(f"{folder}: {verdict} is not a label of the six and 0, 1 or 2")
            place, fit = LABELS.index(verdict[0]), verdict[1]
            for name in entry["systems"]:
                its = systems.setdefault(name, {"labels": [], "fit": []})
                its["labels"].append(place)
                its["fit"].append(fit)
            people += [[LABELS.index(theirs), place] for theirs in entry["labels"]]
    return {"answers": sum(map(len, key)), "systems": systems, "people": people}


def by_reading(found: Plain) -> Iterator[tuple[str, list[Plain]]]:
    """Yield the name of each reading, and what it has of each seed."""
    named = sorted(found["relabelled"], key=lambda one: (one["reading"], one["seed"]))
    for name, seeds in itertools.groupby(named, key=lambda one: one["reading"]):
        yield name, list(seeds)


def systems(found: Plain, seeds: Sequence[Plain]) -> list[str]:
    """The systems that a reading has: the reference, then the policies, in the runs' order."""
    read = {name for one in seeds for name in one["systems"]}
    return ["reference", *(name for name in names_of(found) if name in read)]


def column(seeds: Sequence[Plain], name: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    """A system's ``labels`` or ``fit``, and the reference's of the same seeds.

    Returns:
        both i64[seeds, prompts].
    """
    both = [one["systems"] for one in seeds if name in one["systems"]]
    mine, theirs = ([one[of][which] for one in both] for of in (name, "reference"))
    return np.array(mine), np.array(theirs)


def gains(seeds: Sequence[Plain], name: str) -> np.ndarray:
    """f64[seeds, prompts]: the rewards of a system's labels, less the reference's."""
    mine, theirs = (PAID[labels] for labels in column(seeds, name, "labels"))
    return mine - theirs


def agreement(judged: np.ndarray) -> tuple[float, float]:
    """The share of equal judgements in i64[n, 2], and Cohen's κ.

    κ = (agreed − by chance) / (1 − by chance), where by chance is what two judges with the same
    shares of each judgement would agree if they drew at random (Cohen 1960).
    """
    agreed = float(np.mean(judged[:, 0] == judged[:, 1]))
    kinds = np.unique(judged)
    shares = (judged[:, :, None] == kinds).mean(axis=0)
    chance = float(np.sum(shares[0] * shares[1]))
    return agreed, (agreed - chance) / (1 - chance) if chance < 1 else math.nan


def tables(found: Plain) -> Iterator[str]:
    """Of each reading: the labels of each system, pairs of systems, and whether readers agree."""
    for name, seeds in by_reading(found):
        yield _labels(name, found, seeds)
        yield from pairs(_rewards(seeds), f"Reward of a blind reader's label, reading `{name}`")
        people = np.array([pair for one in seeds for pair in one["people"]])
        theirs, readers = (people == UNCOOPERATIVE).sum(axis=0)
        yield (
            f"{sum(one['answers'] for one in seeds)} answers were read, equal ones of a seed once. "
            f"Of {len(people)} labels that people had given, {_agreement(people)} People say "
            f"“{LABELS[UNCOOPERATIVE]}” {theirs} times, readers {readers}."
        )
    for (first, ones), (second, others) in itertools.combinations(by_reading(found), 2):
        judged = _read_twice(ones, others)
        if len(judged):
            yield (
                f"Readings `{first}` and `{second}` share systems and seeds, with {len(judged)} "
                f"labels of each. Of these, {_agreement(judged)}"
            )


def _labels(reading: str, found: Plain, seeds: Sequence[Plain]) -> str:
    lines = []
    for name in systems(found, seeds):
        (labels, _), (fit, its_fit) = (column(seeds, name, of) for of in ("labels", "fit"))
        each = [labels == place for place in range(len(LABELS))]
        kinds = (*each, PAID[labels] >= ENTAILED, np.isin(labels, MADE_UP))
        shares = (f"{np.mean(kind):.0%}" for kind in kinds)
        both = (gains(seeds, name), fit - its_fit)
        cells = ["", ""] if name == "reference" else [gain(difference(one)) for one in both]
        means = (f"{PAID[labels].mean():.3f}", f"{fit.mean():.2f}")
        lines.append((name, str(len(labels)), *shares, *means, *cells))
    heads = ("answers by", "seeds", *LABELS, "entailed", "made up", "reward", "fit")
    more = ("reward − reference's", "fit − reference's")
    title = f"What blind readers said of the answers to the test prompts, reading `{reading}`"
    return titled(f"{title}; differences [95% over prompts]", (*heads, *more), lines)


def _rewards(seeds: Sequence[Plain]) -> Values:
    return by_name_and_seed(
        (name, one["seed"], PAID[said["labels"]])
        for one in seeds
        for name, said in one["systems"].items()
        if name != "reference"
    )


def _agreement(judged: np.ndarray) -> str:
    agreed, kappa = agreement(judged)
    faithful, kappa_of_two = agreement((PAID[judged] >= ENTAILED).astype(int))
    return (
        f"{agreed:.0%} are the same (κ {kappa:.2f}), and {faithful:.0%} agree whether the answer "
        f"is entailed (κ {kappa_of_two:.2f})."
    )


def _read_twice(ones: Sequence[Plain], others: Sequence[Plain]) -> np.ndarray:
    """i64[n, 2]: the two labels of each answer of a system to a prompt that both readings have."""
    judged: list[tuple[int, int]] = []
    for one, other in itertools.product(ones, others):
        if one["seed"] == other["seed"]:
            for name in one["systems"].keys() & other["systems"].keys():
                both = (each["systems"][name]["labels"] for each in (one, other))
                judged += zip(*both, strict=True)
    return np.array(judged).reshape(-1, 2)
