"""Objectives with advantages, and their variants, against those without, on seeds of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from alol_jax.objectives.registry import OBJECTIVES
from benchmarks.evidence.summaries import Plain, objective_of, over_seeds_and_prompts
from benchmarks.evidence.words import Seeds, gain, titled

Values = Mapping[str, Mapping[int, Sequence[float]]]
"""Name -> seed -> a number for each test prompt."""


def rewards(runs: Iterable[Plain]) -> Values:
    """The total rewards of an experiment's runs."""
    return by_name_and_seed((run["name"], run["seed"], run["rewards"]) for run in runs)


def measures(found: Plain, measure: str) -> Values:
    """A measure of the runs of `labels`."""
    return by_name_and_seed(
        (run["name"], run["seed"], run["measures"][measure]) for run in found["runs"]
    )


def by_name_and_seed(parts: Iterable[tuple[str, int, Sequence[float]]]) -> Values:
    """Values of triples: name, seed and a number for each test prompt."""
    values: dict[str, dict[int, Sequence[float]]] = {}
    for name, seed, numbers in parts:
        values.setdefault(name, {})[seed] = numbers
    return values


def pairs(values: Values, what: str) -> list[str]:
    """A table of row − column, if both kinds of objectives were run."""
    places = {name: place for place, name in enumerate(OBJECTIVES)}
    names = sorted(values, key=lambda name: places[objective_of(name)])
    weighing = [name for name in names if "advantage" in OBJECTIVES[objective_of(name)].reads]
    others = [name for name in names if name not in weighing]
    if not weighing or not others:
        return []
    gains = {
        (name, other): _gains(values[name], values[other]) for name in weighing for other in others
    }
    seeds = Seeds(map(len, gains.values()))
    lines = [
        (name, *(_difference(gains[name, other], seeds) for other in others)) for name in weighing
    ]
    over = "prompts" if seeds.most == 1 else "seeds and prompts"
    title = f"{what}, the row's objective − the column's [95% over {over}; {seeds.in_words}]"
    return [titled(title, ("", *others), lines)]


def _gains(
    mine: Mapping[int, Sequence[float]], theirs: Mapping[int, Sequence[float]]
) -> np.ndarray:
    """f64[seeds, prompts]: the differences on the seeds that both have."""
    seeds = sorted(mine.keys() & theirs.keys())
    return np.array([np.subtract(mine[seed], theirs[seed]) for seed in seeds])


def _difference(gains: np.ndarray, seeds: Seeds) -> str:
    if not len(gains):
        return "–"
    return gain(over_seeds_and_prompts(gains)) + seeds.beside(len(gains))
