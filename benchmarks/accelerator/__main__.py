"""What this code does on one GPU or TPU: values, step times, memory, decoding, and against PyTorch.

    python -m benchmarks.accelerator --out=FILE.json --seconds=480

Runs the parts of `parts.PARTS` in their order, each in a process of its own: its peak memory is its
own, and what kills it kills nothing else. A part that does not fit into the seconds that are left
is not begun; one that outlasts its own is stopped, and its rows so far count. Rows are printed as
they come; at the end all of them as one Markdown table. FILE.json is written after each part.

``--only=kernels,steps-1b`` runs some parts; ``--tiny`` small models, for a CPU. Weights are random,
nothing is downloaded, and neither ml_collections nor a library of the data path is needed. Torch,
transformers and peft are used where they are installed.
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

LEAST = 20.0  # seconds: no part says anything in less
TORCH = "torch"  # parts of that name leave the device to torch


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
    """What is set for a part unless the caller has set it.

    jax takes nearly all of a GPU at start-up, because nobody else is there; what a row tells is
    what was in use. Compiled programs are kept for this run alone, so that a row which tells how
    long compiling took was compiled, unless it says what an earlier row has said.
    """
    return {
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }


def _be_part(name: str, tiny: bool, file: Path) -> None:
    """Writes the rows of a part as lines of JSON, each as soon as it is known."""
    with file.open("w", encoding="utf-8") as stream:

        def tell(row: Row) -> None:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            if "about" not in row:
                _say(row)

        if not name.startswith(TORCH):
            tell({"about": about()})
        PARTS[name].run(tell, tiny)


def _say(row: Row) -> Row:
    print("  " + line(row), flush=True)
    return row


if __name__ == "__main__":
    main()
