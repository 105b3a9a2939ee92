"""Measure one GPU or TPU: values, step times, memory, decoding, and PyTorch for comparison.

    python -m benchmarks.accelerator --out=FILE.json --seconds=480

Runs the parts of `parts.PARTS` in order, each in its own process, so that peak memory is per part
and a crash ends only that part. A part is skipped if too little time is left, and stopped if it
takes longer than its limit; rows found until then are kept. Rows are printed as they come, and at
the end as one Markdown table. FILE.json is written after each part.

``--only=kernels,steps-1b`` runs some parts, ``--tiny`` small models for tests on a CPU. Weights
are random and nothing is downloaded. Neither ml_collections nor a library of the data path is
needed. torch, transformers and peft are used if they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.accelerator.measuring import Row, about
from benchmarks.accelerator.parts import PARTS, Part
from benchmarks.accelerator.table import line, markdown

LEAST = 20.0  # seconds; no part finishes anything in less


def main() -> None:
    options = _options()
    if options.part:
        _be_part(options.part, options.tiny, Path(options.rows))
        return
    began, found = time.monotonic(), {"about": {}, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            left = options.seconds - (time.monotonic() - began)
            rows = _run_part(name, PARTS[name], left, options.tiny, Path(folder))
            found["rows"] += [{"part": name} | row for row in rows if "about" not in row]
            found["about"] |= next((row["about"] for row in rows if "about" in row), {})
            found["about"]["seconds"] = round(time.monotonic() - began, 1)
            if options.out:
                Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n" + markdown(found["about"], found["rows"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.accelerator", description=__doc__)
    parser.add_argument("--out", default="", help="a JSON file for all rows")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
    parser.add_argument("--tiny", action="store_true", help="small models, for a CPU")
    parser.add_argument("--only", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--part", default="", help="internal: be this part")
    parser.add_argument("--rows", default="", help="internal: where its rows go")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := [name for name in options.only if name not in PARTS]:
        parser.error(f"--only: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return options


def _run_part(name: str, part: Part, left: float, tiny: bool, folder: Path) -> list[Row]:
    """The rows of a part from a process of its own, and a last one if it did not end well."""
    file = folder / f"{name}.jsonl"
    limit = left if tiny else min(part.seconds, left)
    if limit < LEAST:
        return [_say({"what": name, "failed": f"not begun: {left:.0f} s were left"})]
    print(f"\n{name} (at most {limit:.0f} s)", flush=True)
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--part={name}", f"--rows={file}"]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command + (["--tiny"] if tiny else []),
            timeout=limit,
            env=_settings(folder) | os.environ,
            stdin=subprocess.DEVNULL,
        )
        failed = f"ended with code {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = f"stopped after {limit:.0f} s"
    rows = [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []
    if failed:
        rows.append(_say({"what": name, "failed": failed}))
    print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    return rows


def _settings(folder: Path) -> dict[str, str]:
    """Return the environment of a part; what the caller has set takes precedence.

    JAX reserves nearly all of a GPU; the rows show what was used of it. The compilation cache is
    private to this run, so that compile times are real, except where two parts share a program.
    """
    return {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }


def _be_part(name: str, tiny: bool, file: Path) -> None:
    """Run a part and write its rows as lines of JSON, each as soon as it is known."""
    with file.open("w", encoding="utf-8") as stream:

        def tell(row: Row) -> None:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            if "about" not in row:
                _say(row)

        if not PARTS[name].torch:
            tell({"about": about()})
        PARTS[name].run(tell, tiny)


def _say(row: Row) -> Row:
    print("  " + line(row), flush=True)
    return row


if __name__ == "__main__":
    main()
