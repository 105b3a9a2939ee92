"""Parsing a raw row of the Helpful-and-Harmless data into a conversation and its responses.

There are two kinds of rows, told apart by their fields:

==============  ===============================================================================
published       ``prefix``: a list of tagged turns per response, all equal; ``suffix``: the
                responses, the preferred one first; ``reward``: the raw score of each (optional);
                ``meta``: has the ``path`` of the row's source file (optional)
transcripts     ``chosen`` and ``rejected``: two transcripts that differ in their last answer
==============  ===============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from alol_jax.errors import UserError
from alol_jax.tasks import conversation, fields


class Row(NamedTuple):
    """A parsed row."""

    turns: tuple[str, ...]
    responses: tuple[str, ...]  # the preferred one first
    rewards: tuple[float, ...]  # f64, sigmoids of the stored scores; one per response, or empty
    folder: str  # of the raw data; "" if the row has none
    shortened: bool  # whether paragraphs were dropped, as in the published preprocessing


def is_published(row: Mapping[str, Any]) -> bool:
    """Whether the row is of the published kind."""
    return fields.has(row, "prefix") and fields.has(row, "suffix")


def read_row(where: str, row: Mapping[str, Any]) -> Row | str:
    """Parse a row, or return why it cannot be used, phrased to follow the word "rows".

    Raises:
      UserError: the row is of neither kind, or a field is malformed; names place and field.
    """
    if is_published(row):
        parsed = _published(where, row)
    elif fields.has(row, "chosen") and fields.has(row, "rejected"):
        parsed = _transcripts(where, row)
    else:
        there = ", ".join(sorted(name for name in row if fields.has(row, name))) or "none"
        raise UserError(
            f"{where}: expected a published row (prefix, suffix) or two transcripts (chosen, "
            f"rejected); its fields are: {there}"
        )
    if isinstance(parsed, Row) and not conversation.round_trips(parsed.turns):
        return "with a turn that contains the mark of another turn"
    return parsed


def _published(where: str, row: Mapping[str, Any]) -> Row | str:
    responses = fields.elements(where, row, "suffix", str)
    lists = fields.elements(where, row, "prefix", list)
    prefixes = [fields.elements(where, {"prefix": turns}, "prefix", str) for turns in lists]
    if not responses or len(prefixes) != len(responses):
        raise UserError(f"{where}: {len(prefixes)} prefixes for {len(responses)} suffixes")
    rewards = _stored_rewards(where, row, len(responses)) if fields.has(row, "reward") else ()
    if any(prefix != prefixes[0] for prefix in prefixes):
        return "whose responses have different prefixes"
    turns = conversation.from_tagged(prefixes[0])
    if turns is None:
        return "whose turns do not alternate from the person to the assistant"
    return Row(turns, responses, rewards, _folder(row), shortened=False)


def _stored_rewards(where: str, row: Mapping[str, Any], count: int) -> tuple[float, ...]:
    scores = fields.elements(where, row, "reward", float)
    if len(scores) != count:
        raise UserError(f"{where}: {len(scores)} rewards for {count} suffixes")
    return tuple(map(sigmoid, scores))


def _folder(row: Mapping[str, Any]) -> str:
    meta = row.get("meta")
    path = meta.get("path") if isinstance(meta, dict) else None
    return PurePosixPath(path).parent.name if isinstance(path, str) else ""


def _transcripts(where: str, row: Mapping[str, Any]) -> Row | str:
    chosen, rejected = (
        conversation.from_transcript(fields.field(where, row, name, str))
        for name in ("chosen", "rejected")
    )
    if chosen is None or rejected is None:
        return "whose turns do not alternate from the person to the assistant"
    if chosen.turns != rejected.turns:
        return "whose two transcripts do not share the prompt"
    shortened = chosen.shortened or rejected.shortened
    return Row(chosen.turns, (chosen.response, rejected.response), (), "", shortened)


def sigmoid(score: float) -> float:
    """Return 1 / (1 + e^−score) in f64, without overflow."""
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    small = math.exp(score)
    return small / (1.0 + small)
