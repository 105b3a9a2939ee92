"""What both sides wrote, compared: a table in markdown, and all numbers as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.against_pytorch.job import Job

GIB = 2**30


def train_rows(job: Job, found: dict[str, dict[str, list[dict]]]) -> list[dict]:
    """One row per objective: medians over rounds and steps of both sides.

    Args:
        found: objective -> side -> the result of each round.
    """
    rows, baseline = [], None
    for objective, sides in found.items():
        ours, theirs = sides["jax"], sides["torch"]
        items = job.items(objective)[1].shape[1]
        seconds = {side: _seconds(rounds) for side, rounds in sides.items()}
        ratios = [
            theirs_took / ours_took
            for o, t in zip(ours, theirs, strict=True)
            for ours_took, theirs_took in zip(o["seconds"], t["seconds"], strict=True)
        ]
        baseline = baseline or seconds["jax"] / items
        apart = max(
            abs(a - b) / max(abs(b), 1e-9)
            for a, b in zip(ours[0]["losses"], theirs[0]["losses"], strict=True)
        )
        tokens = job.real_tokens(objective) / len(ours[0]["seconds"])
        rows.append(
            {
                "objective": objective,
                "items": items,
                "seconds": seconds,
                "tokens_per_second": {side: tokens / s for side, s in seconds.items()},
                "ratio": statistics.median(ratios),
                "ratio_range": (min(ratios), max(ratios)),
                "peak_bytes": {s: max(r["peak_bytes"] for r in v) for s, v in sides.items()},
                "by_first_objective": seconds["jax"] / items / baseline,
                "loss_difference": apart,
                "losses": {side: rounds[0]["losses"] for side, rounds in sides.items()},
                "annotate_seconds_per_row": ours[0]["annotate_seconds"] / len(job.reward),
                "epoch_seconds": {
                    s: v / items * _epoch(job, objective) for s, v in seconds.items()
                },
                "real": ours[0]["real"],
                "grids": ours[0]["grids"],
            }
        )
    return rows


def _seconds(rounds: Sequence[dict]) -> float:
    return statistics.median(s for r in rounds for s in r["seconds"])


def _epoch(job: Job, objective: str) -> int:
    return len(job.items(objective)[0])


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
    """Both tables."""
    lines = []
    if training:
        lines += [
            "| objective | here, s per item | PyTorch | ratio | real tokens/s here | PyTorch | "
            "× first | peak here, GiB | PyTorch | losses differ by | real tokens | epoch here |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
    for row in training:
        each = {side: seconds / row["items"] for side, seconds in row["seconds"].items()}
        rate, peak = row["tokens_per_second"], row["peak_bytes"]
        low, high = row["ratio_range"]
        lines.append(
            f"| {row['objective']} | {each['jax']:.3f} | {each['torch']:.3f} | "
            f"{row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {rate['jax']:.0f} | "
            f"{rate['torch']:.0f} | {row['by_first_objective']:.3f} | {peak['jax'] / GIB:.2f} | "
            f"{peak['torch'] / GIB:.2f} | {row['loss_difference']:.1e} | {row['real']:.0%} | "
            f"{row['epoch_seconds']['jax']:.0f} s |"
        )
    annotated = [row for row in training if row["annotate_seconds_per_row"]]
    if annotated:
        each = statistics.median(row["annotate_seconds_per_row"] for row in annotated)
        lines += ["", f"Annotating log π_ref once costs {each:.3f} s per row, in no figure above."]
    if decoding:
        lines += [
            "",
            "| decoding | here, tokens/s | `generate` | ratio | same answers | |",
            "|---|---:|---:|---:|---:|---|",
        ]
    for row in decoding:
        rate, (low, high) = row["tokens_per_second"], row["ratio_range"]
        lines.append(
            f"| {row['load']} | {rate['jax']:.0f} | {rate['torch']:.0f} | {row['ratio']:.2f} "
            f"({low:.2f} to {high:.2f}) | {row['same_answers']:.0%} | {row['said']} |"
        )
    return "\n".join(lines)
