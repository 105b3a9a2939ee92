"""Numbers of bytes as people read them."""

from __future__ import annotations


def in_bytes(count: int) -> str:
    """Format a number of bytes: 979 -> "979 B", 12_580_048 -> "12.6 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
