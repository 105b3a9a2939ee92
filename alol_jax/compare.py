"""Compare finished runs: one HTML page, and the same numbers as CSV, JSON and LaTeX tables.

python -m alol_jax.compare runs/nll runs/a_lol runs/a_lol_seed1 --out=runs/comparison

The runs must have the same data, reward, test prompts and decoding. Runs whose configs differ only
in seeds are shown one by one and as their mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from alol_jax import paths
from alol_jax.errors import UserError
from alol_jax.paths import AnyPath
from alol_jax.reports.compare.files import plain_table, to_csv, to_json, to_latex
from alol_jax.reports.compare.page import to_html
from alol_jax.reports.compare.table import Comparison, compare_runs
from alol_jax.reports.finished_runs import read_runs
from alol_jax.runs.command_line import Parser, started
from alol_jax.runs.progress import say

FILES: dict[str, Callable[[Comparison], str]] = {
    "compare.html": to_html,
    "compare.csv": to_csv,
    "compare.json": to_json,
    "compare.tex": to_latex,
}
"""The files of a comparison -> the functions that make them."""


class Options(argparse.Namespace):
    """The command line."""

    workdirs: list[AnyPath]
    out: AnyPath
    against: str | None
    debug: bool


def compare(
    workdirs: Sequence[AnyPath], out: AnyPath, *, against: str | None, say: Callable[[str], None]
) -> None:
    """Write ``FILES`` into the directory ``out`` and print the table.

    Args:
        against: what every run is compared with: an objective, "reference", a row or a workdir;
            None for nll if exactly one group is nll, otherwise each run's own reference.
        say: prints a line.

    Raises:
        UserError: a run is not finished, the runs cannot be compared, ``against`` matches none of
            them, or ``out`` holds other files. Nothing is written then.
    """
    check_out(out)
    found = compare_runs(read_runs(workdirs), against=against)
    texts = {name: write(found) for name, write in FILES.items()}
    paths.make_folder(out)
    for name, text in texts.items():
        paths.write_text(out / name, text)
    say(plain_table(found))
    say(f"comparison of {len(found.runs)} runs: {out / 'compare.html'}")


def check_out(out: AnyPath) -> None:
    """Raise UserError if ``out`` is a file, or holds files that are not from a comparison."""
    if paths.exists(out) and not paths.is_folder(out):
        raise UserError(f"--out: {out} is a file: give a directory")
    others = sorted(set(paths.names(out)) - FILES.keys())
    if others:
        raise UserError(
            f"--out: {out} holds {others[0]!r}, which is not from a comparison: choose another "
            "directory"
        )


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line.

    Raises:
        UserError: a flag is unknown, or workdirs or --out are missing.
    """
    parser = Parser("alol_jax.compare", description=__doc__, allow_abbrev=False)
    flag = parser.add_argument
    flag(
        "workdirs",
        type=paths.path_of,
        nargs="+",
        metavar="WORKDIR",
        help="workdir of a finished run",
    )
    flag(
        "--out",
        type=paths.path_of,
        required=True,
        help="the directory to write to; created if missing",
    )
    flag("--against", help="an objective, 'reference' or a workdir; default: nll, else reference")
    flag("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments, Options())


def entry() -> None:
    """Run `compare`; a `UserError` is printed as one line on stderr, with exit code 2."""

    def run(arguments: list[str]) -> None:
        options = parse(arguments)
        compare(options.workdirs, options.out, against=options.against, say=say)

    started(run)


if __name__ == "__main__":
    entry()
