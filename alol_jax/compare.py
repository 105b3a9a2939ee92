"""Finished runs side by side: one page, and the same figures as CSV, JSON and a LaTeX table.

python -m alol_jax.compare runs/nll runs/a_lol runs/a_lol_seed1 --out=runs/comparison

The runs must have the same data, reward, test prompts and decoding. Runs whose configs differ by
seeds alone are shown one by one and as their mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from alol_jax.reports.compare.files import plain_table, to_csv, to_json, to_latex
from alol_jax.reports.compare.page import to_html
from alol_jax.reports.compare.table import Comparison, compared
from alol_jax.reports.finished_runs import read_runs
from alol_jax.runs.command_line import guarded
from alol_jax.runs.progress import say
from alol_jax.types import UserError

FILES: dict[str, Callable[[Comparison], str]] = {
    "compare.html": to_html,
    "compare.csv": to_csv,
    "compare.json": to_json,
    "compare.tex": to_latex,
}
"""The files of a comparison and who writes them."""


class Options(argparse.Namespace):
    """The command line."""

    workdirs: list[Path]
    out: Path
    against: str | None
    debug: bool


def compare(
    workdirs: Sequence[Path], out: Path, *, against: str | None, say: Callable[[str], None]
) -> None:
    """Writes ``FILES`` into the directory ``out``, and says the table.

    Args:
        against: what every run is compared with: an objective, "reference", a row or a workdir;
            None for nll, or each run's reference where no row, or more than one, is of nll.

    Raises:
        UserError: a workdir is not finished, the runs cannot be compared, ``against`` names none of
            them, or ``out`` holds something else. Nothing is written then.
    """
    check_out(out)
    found = compared(read_runs(workdirs), against=against)
    texts = {name: write(found) for name, write in FILES.items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    say(plain_table(found))
    say(f"comparison of {len(found.runs)} runs: {out / 'compare.html'}")


def check_out(out: Path) -> None:
    """Raises UserError where ``out`` is a file, or holds what no comparison wrote."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file: give a directory")
    others = sorted({item.name for item in out.iterdir()} - FILES.keys()) if out.exists() else []
    if others:
        raise UserError(
            f"--out: {out} holds {others[0]!r}, which is of no comparison: choose another directory"
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def parse(arguments: Sequence[str]) -> Options:
    """The command line.

    Raises:
        UserError: a flag is unknown, or workdirs or --out are missing.
    """
    parser = _Parser("alol_jax.compare", description=__doc__, allow_abbrev=False)
    flag = parser.add_argument
    flag("workdirs", type=Path, nargs="+", metavar="WORKDIR", help="of a finished run")
    flag("--out", type=Path, required=True, help="the directory to write to; made if absent")
    flag("--against", help="an objective, 'reference' or a workdir; if absent nll, else reference")
    flag("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments, Options())


def entry() -> None:
    """Runs `compare`; what the user can mend becomes one line on stderr and exit code 2."""

    def run() -> None:
        options = parse(sys.argv[1:])
        compare(options.workdirs, options.out, against=options.against, say=say)

    sys.exit(guarded(run, debug=lambda: "--debug" in sys.argv))


if __name__ == "__main__":
    entry()
