"""Collect the experiments, and write their tables and figures for docs/evidence.md.

    python -m benchmarks.evidence.draw --runs=runs/evidence   # what is finished
    python -m benchmarks.evidence.draw                        # draw again what was collected before

Collected values go to ``<out>/<experiment>.json``, one file each, and join what the file has of
earlier workdirs with the same reference; figures (SVG) and ``tables.md`` are made of these files
alone. The answers of `labels` are written beside its runs, as ``side_by_side.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from alol_jax.errors import UserError
from alol_jax.runs.command_line import guarded
from alol_jax.runs.progress import say
from benchmarks.evidence import figures, paid, relabelled, tables
from benchmarks.evidence.collect import EXPERIMENTS
from benchmarks.evidence.merging import merged
from benchmarks.evidence.side_by_side import side_by_side
from benchmarks.evidence.summaries import Plain, ablation_gains, is_dialled, names_of

TABLES: dict[str, Callable[[Plain], list[str]]] = {
    "candidates": paid.tables,
    "labels": tables.labels,
    "noise": tables.noise,
    "order": tables.order,
    "reading": tables.reading,
}
"""Experiment -> the parts of its section."""


def candidates_figures(found: Plain) -> Iterator[tuple[str, str]]:
    """Yield name and SVG."""
    for component in ("relevance", "novelty") if found["sums"] else ():
        yield f"candidates-{component}", figures.by_sum(found, component)


def labels_figures(found: Plain) -> Iterator[tuple[str, str]]:
    """Yield name and SVG."""
    for kind, groups in found["kept"].items():
        yield f"labels-kept-by-{kind}", figures.kept_shares(groups)
    for measure in ("coverage", "similarity") if found["runs"] else ():
        yield f"labels-{measure}", figures.label_differences(found, measure)
    if "study" in found:
        yield "labels-value", figures.explained_by_setting(found["study"])
    for name, seeds in relabelled.by_reading(found) if "relabelled" in found else ():
        yield f"labels-read-{name}", figures.read_blind(found, seeds)


def noise_figures(found: Plain) -> Iterator[tuple[str, str]]:
    """Yield name and SVG."""
    yield "noise-kept", figures.kept_by_noise(found)
    components = {
        name for one in found["levels"] for run in one["runs"] for name in run["components"]
    }
    for name in sorted(components & {"relevance", "total"}):
        yield f"noise-{name}", figures.earned_by_noise(found, name)


def order_figures(found: Plain) -> Iterator[tuple[str, str]]:
    """Yield name and SVG."""
    if found["runs"]:
        yield "order-frontier", figures.chosen_steps(found)
        yield "order-looks", figures.validation_looks(found)
    if all(one["runs"] for one in found["by_samples"]) and found["by_samples"]:
        yield "order-samples", figures.earned_by_samples(found)
    if any(map(is_dialled, names_of(found))):
        yield "order-rates", figures.frontiers(found)
    if next(ablation_gains(found), None) is not None:
        yield "order-ablations", figures.ablations(found)


FIGURES: dict[str, Callable[[Plain], Iterator[tuple[str, str]]]] = {
    "candidates": candidates_figures,
    "labels": labels_figures,
    "noise": noise_figures,
    "order": order_figures,
    "reading": lambda found: iter(()),
}
"""Experiment -> its figures."""


def collect(runs: Path, out: Path) -> None:
    """Write what the workdirs below ``runs`` have.

    Raises:
        UserError: there is no such folder, or runs of another reference were collected before.
    """
    if not runs.is_dir():
        raise UserError(f"--runs={runs}: there is no such folder")
    for name, read in EXPERIMENTS.items():
        found = read(runs / name)
        if found is None:
            continue
        file = out / f"{name}.json"
        if file.exists():
            found = merged(json.loads(file.read_text(encoding="utf-8")), found)
        text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
        file.write_text(text + "\n", encoding="utf-8")
        say(f"collected {name}")
        if name == "labels":
            text = side_by_side(runs / name)
            (runs / name / "side_by_side.md").write_text(text, encoding="utf-8")


def draw(out: Path) -> None:
    """Write ``tables.md`` and the figures of what was collected.

    Raises:
        UserError: nothing was collected.
    """
    parts = ["# Tables of the evidence", "Written by `python -m benchmarks.evidence.draw`."]
    for name in EXPERIMENTS:
        file = out / f"{name}.json"
        parts.append(f"## {name.capitalize()}")
        if not file.exists():
            parts.append("Not run.")
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        parts += TABLES[name](found)
        for figure, svg in FIGURES[name](found):
            (out / f"{figure}.svg").write_text(svg, encoding="utf-8")
            parts.append(f"![{figure}]({figure}.svg)")
            say(f"drawn {figure}")
    if not any((out / f"{name}.json").exists() for name in EXPERIMENTS):
        raise UserError(f"--out={out} has no collected experiment: give --runs")
    (out / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.evidence.draw", description=__doc__)
    parser.add_argument("--runs", type=Path, help="the folder of the workdirs")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"), help="where to write")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.runs is not None:
        collect(options.runs, options.out)
    draw(options.out)


if __name__ == "__main__":
    sys.exit(guarded(main, debug=lambda: False))
