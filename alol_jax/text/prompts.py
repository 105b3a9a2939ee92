"""Prompts as token ids: in a string template, or in the model's own chat template."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from alol_jax.errors import UserError
from alol_jax.tables.columns import Ragged
from alol_jax.text import flat_ids
from alol_jax.text.chat_template import WAY_OUT, ChatTemplate
from alol_jax.text.conversations import Conversations, chat_template_of
from alol_jax.text.tokenizer import Tokenizer, batches
from alol_jax.types import ASSISTANT, USER, Turn, is_chat

ANY_DAY = "2024-07-26"  # where a template is only asked how it ends a turn
_SAID = "Qxzvk"  # a text that no template has

Conversation = Callable[[str], tuple[Turn, ...]]
"""A prompt -> its turns."""


class Asking(Protocol):
    """How prompts are asked: of `Task`, or of what is stored of one."""

    template: str
    marks: tuple[str, ...]
    date: str


class Encode(Protocol):
    """Prompts -> their token ids, and how many were truncated to ``limit`` tokens."""

    def __call__(self, texts: Sequence[str], *, limit: int) -> tuple[Ragged, int]: ...


def encoder_of(tokenizer: Tokenizer, asking: Asking, conversation: Conversation) -> Encode:
    """Return what encodes prompts in the template of a task.

    Args:
      tokenizer: with a chat template, `in_chat`.
      asking: the template and how it is filled.
      conversation: reads the turns of a prompt; a string template takes the text.
    """
    if is_chat(asking.template):
        return ChatPrompts(tokenizer, conversation, asking.marks, asking.date).encode
    return functools.partial(tokenizer.encode_prompts, asking.template, marks=asking.marks)


def in_chat(tokenizer: Tokenizer, otherwise: str = WAY_OUT) -> Tokenizer:
    """Return the tokenizer for conversations in the model's own chat template.

    Its responses end as the template ends an assistant's turn: with the first special token after
    the text. A template that writes none there leaves the tokenizer's end token.

    Args:
      otherwise: see `ChatTemplate`.

    Raises:
      UserError: there is no template, or it fails.
    """
    template = dataclasses.replace(chat_template_of(tokenizer), otherwise=otherwise)
    before, between, after = _around(template)
    added = tokenizer.added
    marks = [i for i in tokenizer.encode(before + between) if i in added and added[i].strip()]
    ends = [i for i in tokenizer.encode(after) if i in marks or added.get(i) in tokenizer.special]
    end = ends[0] if ends else tokenizer.eos_id
    return tokenizer.in_chat(template, end, [added[i] for i in (*marks, end) if i in added])


def _around(template: ChatTemplate) -> tuple[str, str, str]:
    """What a template writes before a question, from an answer to the next question, and after the
    last answer."""
    talk = [Turn(role, _SAID) for role in (USER, ASSISTANT, USER, ASSISTANT)]
    parts = template.render(talk, date=ANY_DAY, answer_next=False).split(_SAID)
    if len(parts) != len(talk) + 1:
        raise UserError(
            f"the model's chat template leaves out or repeats what is said: download it again, "
            f"{template.otherwise}"
        )
    return parts[0], parts[2], parts[4]


def notes_on_template(tokenizer: Tokenizer, asking: Asking) -> tuple[str, ...]:
    """Describe the template that is used, or say that the model has another one of its own."""
    if is_chat(asking.template):
        said = f"prompts in the model's own chat template, whose turns end with {tokenizer.eos!r}"
        told = f"; it is told the date {asking.date} (config.task.date)"
        return (said + told * tokenizer.chat.asks_for_date,)
    if tokenizer.chat is None or _writes_the_same(tokenizer, asking):
        return ()
    return (
        "the model has a chat template, but config.task.template is another one, which it may not "
        "know: --config.task.template=chat takes its own",
    )


def _writes_the_same(tokenizer: Tokenizer, asking: Asking) -> bool:
    """Whether a string template and the chat template make the same of a question."""
    ours, _ = tokenizer.encode_prompts(asking.template, [_SAID], limit=2**31 - 1)
    try:
        chat = ChatPrompts(in_chat(tokenizer), lambda text: (Turn(USER, text),), (), ANY_DAY)
        theirs, _ = chat.encode([_SAID], limit=2**31 - 1)
    except UserError:  # a template that cannot be used is no other choice
        return True
    return ours.tolist() == theirs.tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class ChatPrompts:
    """Prompts in the model's own chat template, with the generation prompt at the end.

    Attributes:
      tokenizer, marks, date: as in `Conversations`.
      conversation: a prompt -> its turns.
    """

    tokenizer: Tokenizer
    conversation: Conversation
    marks: tuple[str, ...]
    date: str

    def encode(self, texts: Sequence[str], *, limit: int) -> tuple[Ragged, int]:
        """Encode prompts; return their ids, i32, and how many were truncated.

        A prompt of more than ``limit`` tokens is `Conversations.shortened`.

        Raises:
          UserError: the template fails on the turns of a prompt, or has no room for text.
        """
        chat = Conversations(self.tokenizer, self.marks, self.date, answer_next=True)
        parts, truncated = [], 0
        for batch in batches(texts):
            talks = list(map(self.conversation, batch))
            prompts = chat.encode(talks)
            over = np.flatnonzero(prompts.lengths > limit)
            if len(over):
                rows = list(prompts)
                for place in over:
                    rows[place] = chat.shortened(talks[place], limit)
                    if len(rows[place]) > limit:
                        raise UserError(
                            f"prompt limit of {limit} tokens leaves no room: the model's chat "
                            f"template alone has about {len(rows[place])}: raise "
                            "config.model.max_prompt"
                        )
                prompts = Ragged.of(*flat_ids.flat(rows))
            parts.append(prompts)
            truncated += len(over)
        return Ragged.joined(parts, np.int32), truncated
