"""What both sides wrote, compared: a table in markdown, and all numbers as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.against_pytorch.job import Job

GIB = 2**30
NAMES = {"torch": "PyTorch", "trl": "TRL"}


def train_rows(job: Job, found: dict[str, dict[str, list[dict]]]) -> list[dict]:
    """One row per objective and other side: medians over rounds and steps.

    Args:
        found: objective -> side -> the result of each round.
    """
    rows: list[dict] = []
    for objective, sides in found.items():
        for other in sides.keys() - {"jax"}:
            rows.append(_compared(job, objective, sides["jax"], other, sides[other]))
    rows.sort(key=lambda row: (list(found).index(row["objective"]), row["other"]))
    for row in rows:
        first, items = rows[0]["seconds"]["jax"] / rows[0]["items"], row["items"]
        row["by_first_objective"] = row["seconds"]["jax"] / items / first
    return rows


def _compared(job: Job, objective: str, ours: list[dict], other: str, theirs: list[dict]) -> dict:
    """This side and another one in one objective."""
    sides = {"jax": ours, other: theirs}
    members, draws = job.items(objective)
    items = draws.shape[1]
    seconds = {side: _seconds(rounds) for side, rounds in sides.items()}
    ratios = [
        theirs_took / ours_took
        for o, t in zip(ours, theirs, strict=True)
        for ours_took, theirs_took in zip(o["seconds"], t["seconds"], strict=True)
    ]
    losses = {side: rounds[0]["losses"] for side, rounds in sides.items()}
    apart = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(*losses.values(), strict=True))
    tokens = job.real_tokens(objective) / len(draws)
    annotating = ours[0]["annotate_seconds"] / len(job.reward) * members.shape[1]
    each = {side: took / items for side, took in seconds.items()}
    return {
        "objective": objective,
        "other": other,
        "items": items,
        "seconds": seconds,
        "tokens_per_second": {side: tokens / took for side, took in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": (min(ratios), max(ratios)),
        "peak_bytes": {s: max(r["peak_bytes"] for r in v) for s, v in sides.items()},
        "loss_difference": apart,
        "losses": losses,
        "annotate_seconds_per_item": annotating,
        "ratio_of_one_epoch": each[other] / (each["jax"] + annotating),
        "epoch_seconds": {side: took * len(members) for side, took in each.items()},
        "real": ours[0]["real"],
        "grids": ours[0]["grids"],
    }


def _seconds(rounds: Sequence[dict]) -> float:
    return statistics.median(s for r in rounds for s in r["seconds"])


def decode_rows(found: dict[str, dict[str, list[dict]]]) -> list[dict]:
    """One row per load: tokens per second of both sides, and whether the answers agree."""
    rows = []
    for load, sides in found.items():
        rate = {s: [r["tokens"] / r["seconds"] for r in rounds] for s, rounds in sides.items()}
        ratios = [a / b for a, b in zip(rate["jax"], rate["torch"], strict=True)]
        pairs = zip(sides["jax"][0]["answers"], sides["torch"][0]["answers"], strict=True)
        same = [a == b for a, b in pairs]
        rows.append(
            {
                "load": load,
                "tokens_per_second": {s: statistics.median(v) for s, v in rate.items()},
                "ratio": statistics.median(ratios),
                "ratio_range": (min(ratios), max(ratios)),
                "same_answers": sum(same) / len(same),
                "said": sides["jax"][0]["said"],
            }
        )
    return rows


def markdown(training: list[dict], decoding: list[dict]) -> str:
    """The tables of training, of its losses and of decoding."""
    parts = []
    if training:
        parts += [_training(training), _annotating(training), _losses(training)]
    if decoding:
        parts.append(_decoding(decoding))
    return "\n\n".join(part for part in parts if part)


def _training(rows: list[dict]) -> str:
    lines = [
        "| objective | against | here, s per item | there | ratio | real tokens/s here | there | "
        "× first | peak here, GiB | there | losses differ by | real tokens | epoch here |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        other, (low, high) = row["other"], row["ratio_range"]
        each = {side: seconds / row["items"] for side, seconds in row["seconds"].items()}
        rate, peak = row["tokens_per_second"], row["peak_bytes"]
        lines.append(
            f"| {row['objective']} | {NAMES[other]} | {each['jax']:.3f} | {each[other]:.3f} | "
            f"{row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {rate['jax']:.0f} | "
            f"{rate[other]:.0f} | {row['by_first_objective']:.3f} | {peak['jax'] / GIB:.2f} | "
            f"{peak[other] / GIB:.2f} | {row['loss_difference']:.1e} | {row['real']:.0%} | "
            f"{row['epoch_seconds']['jax']:.0f} s |"
        )
    return "\n".join(lines)


def _annotating(rows: list[dict]) -> str:
    said = [
        f"{row['objective']} {row['annotate_seconds_per_item']:.3f} s, then {NAMES[row['other']]} "
        f"takes {row['ratio_of_one_epoch']:.2f} ×"
        for row in rows
        if row["annotate_seconds_per_item"]
    ]
    if not said:
        return ""
    return (
        "Annotating log π_ref, once per item and in no figure above, with the ratio of a run of "
        "one epoch: " + "; ".join(said) + "."
    )


def _losses(rows: list[dict]) -> str:
    """The loss of every step on each side."""
    curves = {}
    for row in rows:
        curves[row["objective"], "here"] = row["losses"]["jax"]
        curves[row["objective"], NAMES[row["other"]]] = row["losses"][row["other"]]
    steps = range(1, 1 + max(map(len, curves.values())))
    lines = [
        "| loss of step | | " + " | ".join(map(str, steps)) + " |",
        "|---|---|" + "---:|" * len(steps),
    ]
    for (objective, side), losses in curves.items():
        lines.append(f"| {objective} | {side} | " + " | ".join(f"{x:.5g}" for x in losses) + " |")
    return "\n".join(lines)


def _decoding(rows: list[dict]) -> str:
    lines = [
        "| decoding | here, tokens/s | `generate` | ratio | same answers | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        rate, (low, high) = row["tokens_per_second"], row["ratio_range"]
        lines.append(
            f"| {row['load']} | {rate['jax']:.0f} | {rate['torch']:.0f} | {row['ratio']:.2f} "
            f"({low:.2f} to {high:.2f}) | {row['same_answers']:.0%} | {row['said']} |"
        )
    return "\n".join(lines)
