"""Join what was collected before with what has been run since, on the same reference."""

from __future__ import annotations

from collections.abc import Callable

from alol_jax.errors import UserError
from benchmarks.evidence.summaries import Plain

KEYS = {
    "sums": ("sum",),
    "levels": ("share", "seed"),
    "by_samples": ("samples",),
    "runs": ("name", "seed"),
    "readings": ("seed",),
    "relabelled": ("reading", "seed"),
}
"""List -> what tells its elements apart."""
REPLACED = {"study"}  # one file with all of it


def merged(before: Plain, now: Plain) -> Plain:
    """All of ``before`` and ``now``; of a run, sum, reading or study in both, the one in ``now``.

    Raises:
        UserError: anything else differs: they are policies of different references.
    """
    found = before | now
    for key in (before.keys() & now.keys()) - REPLACED:
        if key in KEYS:
            join = _newer if key in ("sums", "runs", "readings", "relabelled") else merged
            found[key] = _joined(before[key], now[key], KEYS[key], join)
        elif before[key] != now[key]:
            raise UserError(
                f"{key} differs from what was collected before, so the runs have different "
                "references: delete the older file, or give another --out"
            )
    return found


def _joined(
    before: list[Plain],
    now: list[Plain],
    names: tuple[str, ...],
    join: Callable[[Plain, Plain], Plain],
) -> list[Plain]:
    elements = {tuple(one[name] for name in names): one for one in before}
    for one in now:
        place = tuple(one[name] for name in names)
        elements[place] = join(elements[place], one) if place in elements else one
    return list(elements.values())


def _newer(_: Plain, now: Plain) -> Plain:
    return now
