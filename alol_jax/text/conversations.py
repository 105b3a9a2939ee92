"""Conversations as token ids, in a model's own chat template."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.columns import Ragged
from alol_jax.text.chat_template import WAY_OUT, ChatTemplate
from alol_jax.text.special_tokens import Guard
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.types import SYSTEM, USER, Turn


def chat_template_of(tokenizer: Tokenizer) -> ChatTemplate:
    """Return the model's own chat template.

    Raises:
      UserError: it has none.
    """
    if tokenizer.chat is None:
        raise UserError(
            "config.task.template='chat': the model has no chat template (chat_template.jinja, "
            "chat_template in tokenizer_config.json, tokenizer.chat_template in a .gguf file): "
            f"choose a chat model, {WAY_OUT}"
        )
    return tokenizer.chat


@dataclasses.dataclass(frozen=True, eq=False)
class Conversations:
    """Encodes conversations in a model's own chat template.

    The ids are those of `apply_chat_template`, except that special tokens in what is said are
    encoded as plain characters.

    Attributes:
      tokenizer: with a chat template, `in_chat`.
      marks: names that are special tokens in what is said, too.
      date: see `ChatTemplate.render`.
      answer_next: whether the assistant's turn begins at the end (the generation prompt).
    """

    tokenizer: Tokenizer
    marks: tuple[str, ...]
    date: str
    answer_next: bool

    def encode(self, talks: Sequence[Sequence[Turn]]) -> Ragged:
        """Encode conversations: i32 ids.

        Raises:
          UserError: there is no template, or it fails on the turns of one.
        """
        names = tuple(name for name in self.tokenizer.special if name not in self.marks)
        guard, template = _guard(names), chat_template_of(self.tokenizer)
        rendered = [
            template.render(
                [Turn(turn.role, guard(turn.text)) for turn in talk],
                date=self.date,
                answer_next=self.answer_next,
            )
            for talk in talks
        ]
        return self.tokenizer.encode_rendered(rendered, guard.mark)

    def shortened(
        self, talk: tuple[Turn, ...], limit: int, answer: tuple[Turn, ...] = ()
    ) -> np.ndarray:
        """Encode the longest rest of a conversation that fits, or the shortest if none does.

        It loses its oldest turns, two by two. If the user's last turn alone is too long, it loses
        its oldest tokens; if nothing of it has room, the system turn goes. Neither the template nor
        the answer is cut.

        Args:
          talk: ends with the user's turn.
          limit: the most tokens.
          answer: the turn that follows, if any.
        """
        for shorter in _without_oldest(talk):
            (ids,) = self.encode([(*shorter, *answer)])
            if len(ids) <= limit:
                return ids
        said, before = talk[-1], [turn for turn in talk[:1] if turn.role == SYSTEM]
        for head in (before, []):
            (least,) = self.encode([(*head, Turn(USER, said.text[-1]), *answer)])
            if len(least) > limit:
                continue
            (ids,) = self.encode([(*head, said, *answer)])
            for kept in self.tokenizer.ends_of(said.text, len(ids) - limit):
                (ids,) = self.encode([(*head, Turn(USER, kept), *answer)])
                if len(ids) <= limit:
                    return ids
        return least


@functools.lru_cache(maxsize=8)
def _guard(names: tuple[str, ...]) -> Guard:
    return Guard(names)


def _without_oldest(talk: tuple[Turn, ...]) -> Iterator[tuple[Turn, ...]]:
    """Yield the conversation without its oldest question and answer, its two oldest, …"""
    first = int(talk[0].role == SYSTEM)
    for start in range(first + 2, len(talk), 2):
        yield (*talk[:first], *talk[start:])
