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
from alol_jax.text.responses import Frame
from alol_jax.text.special_tokens import any_of
from alol_jax.text.tokenizer import Tokenizer
from alol_jax.types import ASSISTANT, USER, Turn, is_chat

ANY_DAY = "2024-07-26"  # where a template is only asked how it ends a turn
_SAID, _ASKED = "Qxzvk", "Kvzxq"  # texts that no template has

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
    the text, and with what stands before it. A template that writes none there leaves the
    tokenizer's end token. Where the template strips an answer, responses are stripped.

    Args:
      otherwise: see `ChatTemplate`.

    Raises:
      UserError: there is no template, or it fails.
    """
    template = dataclasses.replace(chat_template_of(tokenizer), otherwise=otherwise)
    before, between, after = _around(template)
    added = tokenizer.added
    marks = [i for i in tokenizer.encode(before + between) if i in added and added[i].strip()]
    known = {name: i for i, name in added.items() if i in marks or name in tokenizer.special}
    found = any_of(known).search(after)
    end = tokenizer.eos_id if found is None else known[found[0]]
    named = [added[i] for i in (*marks, end) if i in added]
    strips = _answered(template, f" \n{_SAID}\n ") == _answered(template, _SAID)
    frame = Frame(after="" if found is None else after[: found.start()], strips=strips)
    plain = tokenizer.in_chat(template, end, named, frame)
    if _is_exact(plain, template):
        return plain
    anchor, space = _around_prompt(template)
    anchored = plain.in_chat(template, end, named, frame._replace(anchor=anchor, before=space))
    return anchored if _is_exact(anchored, template) else plain


def _answered(template: ChatTemplate, answer: str) -> str:
    """What a template writes of a question and its answer."""
    talk = (Turn(USER, _ASKED), Turn(ASSISTANT, answer))
    return template.render(talk, date=ANY_DAY, answer_next=False)


def _around_prompt(template: ChatTemplate) -> tuple[str, str]:
    """What a template writes behind a question, and the white space between that and the answer."""
    asked = template.render((Turn(USER, _ASKED),), date=ANY_DAY)
    between = _answered(template, _SAID).removeprefix(asked).partition(_SAID)[0]
    return asked.rpartition(_ASKED)[2], "" if between.strip() else between


def _is_exact(tokenizer: Tokenizer, template: ChatTemplate) -> bool:
    """Whether a prompt's ids and a response's are together those of the whole conversation."""
    asked = tokenizer.encode(template.render((Turn(USER, _ASKED),), date=ANY_DAY))
    for said in (_SAID, f" {_SAID}"):
        whole = [*asked, *tokenizer.encode_response(said, limit=2**31 - 1)[0]]
        if tokenizer.encode(_answered(template, said))[: len(whole)] != whole:
            return False
    return True


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
        said = (
            f"prompts in the model's own chat template, whose turns end with {tokenizer.ending!r}"
        )
        told = f"; it is told the date {asking.date} (config.task.date)"
        lines = [said + told * tokenizer.chat.asks_for_date]
        if not _is_exact(tokenizer, tokenizer.chat):
            lines.append(
                "the chat template writes an answer in a conversation otherwise than behind its "
                "generation prompt (like Qwen3, which puts an empty thought before it): responses "
                "are those behind the generation prompt, as they are generated"
            )
        return tuple(lines)
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
        for batch in flat_ids.batches(texts):
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
