"""Conversations: message lists and transcripts as turns, and turns as the text of a prompt.

==============  ================================================================================
messages        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
ShareGPT        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
transcript      "\\n\\nHuman: hi\\n\\nAssistant: hello"
==============  ================================================================================

A prompt of one turn of the user is that turn's text. Any other is a transcript that ends with
"Assistant:". A string template takes it like every other text; a chat template takes the turns,
which `messages_of` reads from it, each as it was said. For that, a "\\n\\nHuman:" inside a turn is
written as "\\n\\n\\\\Human:".
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alol_jax.errors import UserError
from alol_jax.tasks import fields
from alol_jax.types import ASSISTANT, SYSTEM, USER, Turn

ROLES = {
    "system": SYSTEM,
    "developer": SYSTEM,
    "user": USER,
    "human": USER,
    "prompter": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
}
"""What data call a role -> the role."""

EMPTY_SYSTEM = "Empty system turns left out"
SEVERAL = (
    "Prompts of several turns (turns in a chat template, else written as 'Human: …' and "
    "'Assistant: …')"
)

_END = "\n\nAssistant:"  # of a prompt of several turns

_SPEAKERS = {SYSTEM: "System", USER: "Human", ASSISTANT: "Assistant"}
_SPOKEN = {name: role for role, name in _SPEAKERS.items()}
_MARK = re.compile(r"(?:^|\n\n)(System|Human|Assistant):")
_INSIDE = re.compile(r"\n\n(\\*(?:System|Human|Assistant):)")  # like a mark, within a turn
_WRITTEN = re.compile(r"\n\n\\(\\*(?:System|Human|Assistant):)")
_FIELDS = (("role", "content"), ("from", "value"))

Turns = tuple[Turn, ...]


def from_messages(
    where: str, row: Mapping[str, Any], name: str, counts: collections.Counter[str]
) -> Turns:
    """Return the turns of a field that is a list of messages.

    Args:
      counts: empty system turns, which are left out, are counted under `EMPTY_SYSTEM`.

    Raises:
      UserError: a message is malformed, has an unknown role or no text.
    """
    turns = []
    for number, message in enumerate(fields.field(where, row, name, list), start=1):
        place = f"{where}, field {name!r}, turn {number}"
        turn = _turn(place, message)
        if not turn.text.strip() and turn.role == SYSTEM:
            counts[EMPTY_SYSTEM] += 1
            continue
        if not turn.text.strip():
            raise UserError(f"{place}: the turn of the {turn.role} is empty")
        turns.append(turn)
    return tuple(turns)


def _turn(place: str, message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise UserError(f"{place}: expected a message, a map, got {type(message).__name__}")
    names = next((pair for pair in _FIELDS if pair[0] in message), None)
    if names is None:
        raise UserError(f"{place}: expected role and content, or from and value")
    said = fields.field(place, message, names[0], str)
    if said not in ROLES:
        raise UserError.unknown(f"{place}: the role {said!r} is not known", said, ROLES)
    content = message.get(names[1])
    if isinstance(content, list):
        return Turn(ROLES[said], _joined_parts(place, content))
    return Turn(ROLES[said], fields.field(place, message, names[1], str))


def _joined_parts(place: str, parts: Sequence[Any]) -> str:
    """Return the text of a content that is a list of parts."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise UserError(f"{place}: a part of type {kind!r}: only text can be read")
        texts.append(fields.field(place, part, "text", str))
    return "".join(texts)


def from_transcript(where: str, text: str) -> Turns | None:
    """Return the turns of "\\n\\nHuman: … \\n\\nAssistant: …"; None for other texts.

    Raises:
      UserError: something comes before the first turn.
    """
    before, *pieces = _MARK.split(text)
    if not pieces:
        return None
    if before.strip():
        raise UserError(f"{where}: the transcript does not begin with 'Human:' or 'System:'")
    names, texts = pieces[0::2], pieces[1::2]
    return tuple(
        Turn(_SPOKEN[name], words.strip()) for name, words in zip(names, texts, strict=True)
    )


def check(where: str, turns: Turns) -> None:
    """Check that the turns alternate, from an optional system turn and the user's first.

    Raises:
      UserError: they do not.
    """
    spoken = turns[1:] if turns and turns[0].role == SYSTEM else turns
    for number, turn in enumerate(spoken):
        if turn.role == SYSTEM:
            raise UserError(f"{where}: a system turn after the first turn")
        if turn.role == (USER, ASSISTANT)[number % 2]:
            continue
        if number == 0:
            raise UserError(f"{where}: the conversation begins with the assistant")
        raise UserError(f"{where}: two turns of the {turn.role} in a row")


def answered(where: str, turns: Turns) -> tuple[str, str]:
    """Return the prompt and the response of a conversation that ends with the assistant.

    Raises:
      UserError: it does not, or its turns do not alternate.
    """
    check(where, turns)
    if not turns or turns[-1].role != ASSISTANT:
        last = turns[-1].role if turns else "nobody"
        raise UserError(f"{where}: the conversation ends with the {last}: it has no response")
    return prompt_of(where, turns[:-1]), turns[-1].text


def prompt_of(where: str, turns: Turns) -> str:
    """Return the turns as the text of a prompt, from which `messages_of` reads them.

    Raises:
      UserError: they do not alternate, or do not end with the user.
    """
    check(where, turns)
    if not turns or turns[-1].role != USER:
        last = turns[-1].role if turns else "nobody"
        raise UserError(f"{where}: the prompt ends with the {last}: expected the user")
    if len(turns) == 1 and _transcribed(turns[0].text) is None:
        return turns[0].text
    said = ((turn.role, _INSIDE.sub(r"\n\n\\\1", turn.text)) for turn in turns)
    return "\n\n".join(f"{_SPEAKERS[role]}: {text}" for role, text in said) + _END


def is_transcript(prompt: str) -> bool:
    """Whether the prompt is written as turns."""
    return _transcribed(prompt) is not None


def messages_of(prompt: str) -> Turns:
    """Return the turns of a prompt: those of a transcript, or one of the user."""
    return _transcribed(prompt) or (Turn(USER, prompt),)


def turns_of(prompt: str) -> tuple[str, ...]:
    """Return the turns of a prompt as reward models read them: the user's first and last.

    A system turn is read with the user's first.
    """
    turns = messages_of(prompt)
    if turns[0].role == SYSTEM:
        turns = (Turn(USER, "\n\n".join(turn.text for turn in turns[:2])), *turns[2:])
    return tuple(turn.text for turn in turns)


def _transcribed(prompt: str) -> Turns | None:
    """The turns of a transcript whose next turn is the assistant's; None for other texts."""
    before, *pieces = _MARK.split(prompt) if prompt.endswith(_END) else (prompt,)
    names, texts = pieces[0:-2:2], pieces[1:-2:2]
    if before or not names:
        return None
    said = (_WRITTEN.sub(r"\n\n\1", text.removeprefix(" ")) for text in texts)
    turns = tuple(Turn(_SPOKEN[name], text) for name, text in zip(names, said, strict=True))
    try:
        check("", turns)
    except UserError:
        return None
    whole = turns[-1].role == USER and all(turn.text.strip() for turn in turns)
    return turns if whole else None
