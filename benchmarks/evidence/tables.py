"""Tables of the experiments, in Markdown: collected values in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from alol_jax.reports.results import signed
from alol_jax.training.held_out import LIKENESS_GAP, ORDER_OF_RATIO
from alol_jax.types import Interval
from benchmarks.evidence import relabelled
from benchmarks.evidence.pairs import measures, pairs, rewards
from benchmarks.evidence.summaries import (
    Plain,
    ablation_gains,
    between,
    by_seed,
    difference,
    explained,
    is_dialled,
    names_of,
    objective_of,
    over_seeds,
    share,
)
from benchmarks.evidence.words import Seeds, gain, percent, percents, plain, titled, with_range

JUDGING = ("coverage", "density", "similarity", LIKENESS_GAP, ORDER_OF_RATIO)
"""The measures whose differences are shown."""


def value_line(value: Plain) -> str:
    """What V explains, in a sentence."""
    pearson = value["pearson_training_rows"]
    said = "a constant" if pearson is None else f"Pearson {pearson:.3f}"
    held_out, training = (percent(value[f"explained_{of}"]) for of in ("held_out", "training_rows"))
    return (
        f"V: {value['epochs']} epochs chosen; it explains {held_out} of the variance on held-out "
        f"folds and {training} on the training rows, whose prompts it never sees ({said}); mean "
        f"{value['mean']:.3f}, standard deviation {value['sd']:.3f}."
    )


def labels(found: Plain) -> list[str]:
    """What is kept, V, and the measures."""
    parts = []
    for kind, groups in found["kept"].items():
        lines = [
            (name, str(rows), str(kept), plain(share(kept, rows)))
            for name, (kept, rows) in groups.items()
        ]
        title = f"What the filter keeps of the training rows, by {kind}"
        parts.append(titled(title, (kind, "rows", "kept", "share [95% over rows]"), lines))
    known, prompts = found["known"]
    parts += [
        value_line(found["value"]),
        f"{known} of {prompts} test prompts have a knowledge sentence that a training prompt has.",
    ]
    if found["runs"]:
        parts += [_measures(found), *_differences(found)]
        parts += pairs(measures(found, "coverage"), "Coverage")
    if "relabelled" in found:
        parts += relabelled.tables(found)
    if "study" in found:
        parts += _study(found["study"])
    return parts


def _measures(found: Plain) -> str:
    reference = found["reference"]
    lines = [("reference", "", "", *(f"{np.mean(column):.3f}" for column in reference.values()))]
    for name in names_of(found):
        runs = [run for run in found["runs"] if run["name"] == name]
        means = (np.mean([run["measures"][key] for run in runs]) for key in reference)
        steps = np.mean([run["looks"][-1][0] for run in runs])
        lines.append((name, str(len(runs)), f"{steps:g}", *(f"{mean:.3f}" for mean in means)))
    title = (
        "Steps of training; measures of the answers to the test prompts, and of the order of those "
        "in the data"
    )
    return titled(title, ("means", "seeds", "steps", *reference), lines)


def _differences(found: Plain) -> Iterator[str]:
    """Policy − reference in each measure that judges: over prompts, and over seeds."""
    reference = found["reference"]
    judging = [name for name in JUDGING if name in reference]
    over = {
        "mean [95% over prompts]": difference,
        "interquartile mean [95% over seeds]": _over_seeds,
    }
    for said, interval in over.items():
        lines = []
        for name in names_of(found):
            runs = [run for run in found["runs"] if run["name"] == name]
            cells = []
            for measure in judging:
                gains = np.array([run["measures"][measure] for run in runs])
                cells.append(gain(interval(gains - np.array(reference[measure]))))
            lines.append((name, str(len(runs)), *cells))
        yield titled(f"Policy − reference, {said}", ("", "seeds", *judging), lines)


def _study(study: Plain) -> Iterator[str]:
    """How much of the labels lies between prompts, and how much of it V finds."""
    lines = []
    for name in ("short", "all"):
        rewards = np.array(study[name])
        shares = map(percents, between(rewards))
        lines.append((name, str(len(rewards)), f"{rewards.std():.3f}", *shares))
    heads = ("prompts", "count", "sd of the label", "of one label", "of the mean of three")
    yield titled("Share of the labels' variance between prompts [95% over prompts]", heads, lines)
    lines = [
        (
            *(one["features"], one["prompts"], one["answers"], str(one["count"])),
            *(str(one["epochs"]) if one["features"] == "hidden states" else "–",),
            *(f"{one['chosen']:g}", percents(explained(np.array(one["errors"])))),
        )
        for one in study["settings"]
    ]
    heads = ("V reads", "prompts", "answers", "count", "epochs, at most", "epochs or penalty")
    title = "What V explains of the labels on held-out folds [95% over prompts]"
    yield titled(title, (*heads, "explained"), lines, texts=3)


def _over_seeds(gains: np.ndarray) -> Interval:
    return over_seeds(gains.mean(axis=1))


def noise(found: Plain) -> list[str]:
    """Kept shares by noise, and what the policies earn."""
    lines = []
    for one in sorted(found["levels"], key=lambda level: (level["share"], level["seed"])):
        cells = [
            plain(share(*one[group])) if one[group][1] else "–" for group in ("moved", "others")
        ]
        value = one["value"]
        more = (f"{value['mean']:.3f}", percent(value["explained_held_out"]))
        lines.append((f"{one['share']:.0%}", str(one["seed"]), *cells, *more))
    heads = (
        "moved",
        "seed",
        "kept of the moved rows",
        "kept of the others",
        "mean V",
        "V explains",
    )
    parts = [titled("What the filter keeps [95% over rows], and V", heads, lines)]
    levels = [one for one in found["levels"] if one["runs"]]
    return [*parts, _parts_by_share(levels), *_by_share(levels)] if levels else parts


def _parts_by_share(levels: Sequence[Plain]) -> str:
    """For each share moved and system: the parts of the reward, over seeds."""
    (names,) = {tuple(run["components"]) for one in levels for run in one["runs"]}
    systems: dict[tuple[float, str], list[Plain]] = {}
    for one in sorted(levels, key=lambda level: level["share"]):
        for system in ({"name": "reference", **one["reference"]}, *one["runs"]):
            systems.setdefault((one["share"], system["name"]), []).append(system)
    lines = []
    for (part, name), seeds in systems.items():
        columns = [[one["distinct-2"] for one in seeds]]
        columns += [[one["components"][of] for one in seeds] for of in names]
        echoes = f"{np.mean([one['echoes'] for one in seeds]):.1f}"
        lines.append((f"{part:.0%}", name, str(len(seeds)), echoes, *map(with_range, columns)))
    title = (
        "Answers to test prompts, which have no noise: echoes, distinct-2, means of the reward's "
        "parts and total (lowest to highest seed)"
    )
    heads = ("moved", "answers by", "seeds", "echoes", "distinct-2", *names)
    return titled(title, heads, lines, texts=2)


def _by_share(levels: Sequence[Plain]) -> Iterator[str]:
    """For each objective and share moved: the reward, and what it is above the reference's."""
    shares = sorted({level["share"] for level in levels})
    runs: dict[str, dict[float, list[tuple[list[float], list[float]]]]] = {}
    for level in levels:
        for run in level["runs"]:
            pair = (run["rewards"], level["reference"]["rewards"])
            runs.setdefault(run["name"], {}).setdefault(level["share"], []).append(pair)
    heads = ("", *(f"{part:.0%} moved" for part in shares))
    seeds = Seeds(len(each) for found in runs.values() for each in found.values())
    for title, of in (("Total reward", _reward), ("Policy − reference", _gain)):
        lines = [
            (name, *(_cell(of, found.get(part, ()), seeds) for part in shares))
            for name, found in runs.items()
        ]
        yield titled(f"{title} [95% over prompts; {seeds.in_words}]", heads, lines)
    for part in shares:
        same = [level for level in levels if level["share"] == part]
        found = [run | {"seed": level["seed"]} for level in same for run in level["runs"]]
        yield from pairs(rewards(found), f"Total reward, {part:.0%} moved")


def _cell(of: Callable[[np.ndarray], str], each: Sequence[Any], seeds: Seeds) -> str:
    return of(np.array(each)) + seeds.beside(len(each)) if len(each) else "–"


def _reward(both: np.ndarray) -> str:
    return plain(difference(both[:, 0]))


def _gain(both: np.ndarray) -> str:
    return gain(difference(both[:, 0] - both[:, 1]))


def order(found: Plain) -> list[str]:
    """All variants, ablations, best of n and V by samples."""
    parts = [value_line(found["value"])]
    if found["runs"]:
        parts.append(_totals(found))
        paired = [run for run in found["runs"] if not is_dialled(run["name"])]
        parts += pairs(rewards(paired), "Total reward")
    parts += _dialled(found)
    gains = [
        (f"{name} − {base}", str(len(each)), signed(float(each.mean()), 3), gain(over_seeds(each)))
        for name, base, each in ablation_gains(found)
    ]
    if gains:
        title = "Total reward, difference of the means of each seed"
        parts.append(titled(title, ("ablation", "seeds", "mean", "IQM [over seeds]"), gains))
    if best := found.get("best_of_n"):
        rows = zip(best["n"], best["rewards"], best["kl"], strict=True)
        lines = [
            (f"best of {n}", plain(difference(np.array([r]))), f"{kl:.2f}") for n, r, kl in rows
        ]
        title = "The reference's best of n sampled answers"
        parts.append(titled(title, ("", "reward [over prompts]", "KL, at most"), lines))
    return parts + [_samples(found)] * bool(found["by_samples"])


def _totals(found: Plain) -> str:
    """What the reference and each variant earn."""
    start = found["reference"]
    mean, alike = float(np.mean(start["rewards"])), start["distinct-2"]
    lines = [("reference", "", f"{mean:.3f}", "", "", "", "", f"{alike:.3f}", "")]
    for name in names_of(found):
        runs = [run for run in found["runs"] if run["name"] == name]
        means = np.array(list(by_seed(found, name).values()))
        gains = np.array([run["rewards"] for run in runs]) - np.array(found["reference"]["rewards"])
        lines.append(
            (
                *(name, str(len(runs)), f"{means.mean():.3f}", plain(over_seeds(means))),
                *(gain(difference(gains)), ", ".join(signed(one, 3) for one in gains.mean(axis=1))),
                *(f"{np.mean([run['kl'] for run in runs]):.2f}",),
                *(f"{np.mean([run['distinct-2'] for run in runs]):.3f}",),
                *(f"{np.mean([run['seconds'] for run in runs]):.0f}",),
            )
        )
    heads = (
        "",
        "seeds",
        "mean reward",
        "IQM [over seeds]",
        "− reference [over prompts]",
        "by seed",
    )
    title = "Total reward on the test prompts; KL to the reference in nats; seconds of the fit"
    return titled(title, (*heads, "KL", "distinct-2", "seconds"), lines)


def _dialled(found: Plain) -> Iterator[str]:
    """Other learning rates and betas beside the usual one, on the same seeds."""
    lines = []
    for name in filter(is_dialled, names_of(found)):
        seeds = by_seed(found, name).keys()
        cells = [str(len(seeds))]
        for one in (name, objective_of(name)):
            runs = [r for r in found["runs"] if r["name"] == one and r["seed"] in seeds]
            if not runs:
                cells += ["–", "–"]
                continue
            gains = np.array([r["rewards"] for r in runs]) - np.array(found["reference"]["rewards"])
            cells += [gain(difference(gains)), f"{np.mean([r['kl'] for r in runs]):.2f}"]
        lines.append((name, *cells))
    if lines:
        heads = ("", "seeds", "− reference", "KL", "the usual − reference", "KL")
        title = "Other learning rates and betas, and the usual one on the same seeds"
        yield titled(f"{title} [95% over prompts]", heads, lines)


def _samples(found: Plain) -> str:
    lines = []
    for one in found["by_samples"]:
        value, several, earned = one["value"], one["samples"] > 1, ("not run", "–")
        if one["runs"]:
            gains = np.subtract([r["rewards"] for r in one["runs"]], one["reference"]["rewards"])
            each = ", ".join(signed(mean, 3) for mean in gains.mean(axis=1))
            earned = (gain(difference(gains)), each)
        lines.append(
            (
                *(
                    str(one["samples"]),
                    percents(between(one["answers"]).of_one) if several else "–",
                ),
                *(str(value["epochs"]), percent(value["explained_held_out"])),
                *(percent(value["explained_training_rows"]), f"{value['kept']} of {value['rows']}"),
                *earned,
            )
        )
    heads = (
        *("answers per prompt", "variance between prompts", "epochs"),
        *("held-out variance explained", "of training rows"),
    )
    title = "V fitted to the reward of several sampled answers per prompt"
    more = ("kept", "a_lol − reference [95% over prompts]", "by seed")
    return titled(title, (*heads, *more), lines)


def reading(found: Plain) -> list[str]:
    """How often the policy's answer was found better, and the difference over prompts."""
    lines = []
    for one in found["readings"]:
        better, worse, alike = (str(one["verdicts"].count(v)) for v in (1, -1, 0))
        lines.append((str(one["seed"]), better, worse, alike))
    verdicts = np.array([one["verdicts"] for one in found["readings"]], float)
    title = "The policy's answer is, to a reader who does not know which it is"
    parts = [titled(title, ("seed", "better", "worse", "alike"), lines)]
    return [*parts, f"Better − worse, as a share of the prompts: {gain(difference(verdicts))}."]
