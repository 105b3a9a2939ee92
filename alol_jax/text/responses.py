"""Responses as token ids: a text, what a chat template writes around it, and the end token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.columns import Ragged
from alol_jax.text import flat_ids
from alol_jax.text.special_tokens import SpelledOut


class Frame(NamedTuple):
    """What a chat template makes of an answer, between the prompt and the end token."""

    anchor: str = ""  # the prompt's end, if the first tokens depend on it, as Llama's do
    before: str = ""  # white space in front of the text
    after: str = ""  # between the text and the end token, like the space of Llama 2
    strips: bool = False  # whether it takes the white space at both ends of the text away

    def around(self, text: str) -> str:
        """Return what stands between the prompt and the end token."""
        return self.before + (text.strip() if self.strips else text) + self.after

    def inside(self, text: str, *, ended: bool) -> str:
        """Return the text in an answer; what stands behind it is there only if it ended."""
        text = text.removeprefix(self.before)
        return text.removesuffix(self.after) if ended else text


NO_FRAME = Frame()


class Responses(NamedTuple):
    """Encodes responses as plain text with an end token.

    Attributes:
      plain: encodes texts with their special tokens spelled out.
      parsed: marks the special tokens of a template.
      end, name: the id and the name of the end token.
      frame: what a template puts around a text.
    """

    plain: SpelledOut
    parsed: Callable[[str], str]
    end: int
    name: str
    frame: Frame

    def encode(self, texts: Sequence[str], *, limit: int) -> tuple[Ragged, int]:
        """Encode responses, on all cores.

        Args:
          limit: the most tokens, the end token included. Longer ones are truncated on the right.

        Returns:
          (the ids of each response, i32, and how many were truncated)

        Raises:
          UserError: the limit is below 1.
        """
        if limit < 1:
            raise UserError(f"response limit of {limit} tokens leaves no room: raise it")
        parts, truncated, parses = [], 0, bool(self.frame.after)
        for batch in flat_ids.batches(texts):
            framed = list(map(self.frame.around, batch))
            if parses:  # the last tokens may be others in front of the end token
                framed = [text + self.plain.mark + self.name for text in framed]
            ids = self._behind_anchor(framed) if self.frame.anchor else self.plain.batch(framed)
            whole = ids.lengths + (not parses) <= limit
            kept, none = np.minimum(ids.lengths, limit), np.zeros(len(ids), bool)
            added = none if parses else whole
            parts.append(flat_ids.with_token(ids, self.end, before=none, kept=kept, after=added))
            truncated += int(np.sum(~whole))
        return Ragged.joined(parts, np.int32), truncated

    def _behind_anchor(self, texts: Sequence[str]) -> Ragged:
        """The ids of texts as they are behind the anchor; alone, where a token spans both."""
        anchor = self.parsed(self.frame.anchor)
        head = self.plain.ids(anchor)
        ids = self.plain.batch([anchor + text for text in texts])
        cut, begins = flat_ids.without_head(ids, head)
        if begins.all():
            return cut
        rows = list(cut)
        for place in np.flatnonzero(~begins):
            rows[place] = self.plain.ids(texts[place])
        return Ragged.of(*flat_ids.flat(rows))
