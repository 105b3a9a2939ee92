"""Rows as a person reads them: one line each, and one Markdown table of all."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accelerator.measuring import Row

COLUMNS = ("part", "what", "time", "tokens/s", "TFLOP/s", "MFU", "peak", "program", "notes")


def line(row: Row) -> str:
    """A row for the terminal."""
    if "failed" in row:
        return f"{row['what']}: {row['failed']}"
    cells = zip(COLUMNS[2:], _cells(row)[2:], strict=True)
    told = [text if name in ("time", "notes") else f"{name} {text}" for name, text in cells if text]
    return f"{row['what']}: " + "; ".join(told)


def markdown(about: Row, rows: Sequence[Row]) -> str:
    """All rows under the device's name. "MFU" counts no recomputation; "peak" is what the device's
    allocator had at most, "program" what the compiler says of the program, in GiB."""
    named = [f"{key} {value}" for key, value in about.items() if key not in ("device",) and value]
    head = f"**{about.get('device', 'no device')}** ({', '.join(named)})"
    lines = [head, "", _row(COLUMNS), "|---" * 2 + "|---:" * 6 + "|---|"]
    for row in rows:
        cells = _cells(row)
        lines.append(_row(cells[:-1] + [row["failed"]] if "failed" in row else cells))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _cells(row: Row) -> list[str]:
    notes = []
    if "forward_seconds" in row:
        notes.append(f"forward {duration(row['forward_seconds'])}")
    if "error" in row:
        notes.append(f"error {row['error']:.1e}")
    if "gradient_error" in row:
        notes.append(f"of gradients {row['gradient_error']:.1e}")
    if "hardware_share" in row:
        notes.append(f"with recomputation {row['hardware_share']:.1%}")
    if "compile_seconds" in row:
        notes.append(f"compiled in {row['compile_seconds']:.1f} s")
    if row.get("note"):
        notes.append(row["note"])
    return [
        row.get("part", ""),
        row["what"],
        duration(row["seconds"]) if "seconds" in row else "",
        f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "",
        f"{row['tflop_per_second']:.1f}" if "tflop_per_second" in row else "",
        f"{row['mfu']:.1%}" if "mfu" in row else "",
        _gib(row.get("peak_bytes")),
        _gib(row.get("analysed_bytes")),
        "; ".join(notes),
    ]


def duration(seconds: float) -> str:
    """Three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"
