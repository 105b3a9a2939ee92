"""How a conversation of the Helpful-and-Harmless data is written: four forms of the same words.

===============  ===============================================================================
turns            ("hi", "hello", "bye"): what was said, in turn, by the person first and last
tagged           ["<|prompter|>hi", "<|assistant|>hello", "<|prompter|>bye", "<|assistant|>"]
transcript       "\\n\\nHuman: hi\\n\\nAssistant: hello\\n\\nHuman: bye\\n\\nAssistant: see you"
prompt           "### Human: hi ### Assistant: hello ### Human: bye ### Assistant:"
===============  ===============================================================================

Tagged rows are what the paper trains on, transcripts are what Anthropic/hh-rlhf publishes, and the
prompt is what the language model reads after the system sentence. Every byte is as published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from alol_jax.types import UserError

Turns = tuple[str, ...]

TEMPLATE = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.\n{prompt}"
)
STOP = ("###", " ###")  # Llama's "▁###" (835) ends an answer as published; the other is for BPE

PERSON, ASSISTANT = "<|prompter|>", "<|assistant|>"
_MARKS = {PERSON: " ### Human: ", ASSISTANT: " ### Assistant: "}
_MARK = re.compile("({})".format("|".join(map(re.escape, _MARKS.values()))))
_SPEAKERS = {"Human:": PERSON, "Assistant:": ASSISTANT}
_NEXT_TURNS = ("\n Human:", "\nHuman:", "\n### Human")


def prompt_of(turns: Sequence[str]) -> str:
    """What the language model reads: the turns, and the mark that lets the assistant speak.

    As published a tag in a turn's own text becomes a mark too; ``turns_of`` cannot undo that, so
    that such rows are left out.
    """
    roles = _alternating(len(turns) + 1)
    text = "".join(role + said for role, said in zip(roles, (*turns, ""), strict=True))
    for tag, mark in _MARKS.items():
        text = text.replace(tag, mark)
    return text.strip()


def turns_of(prompt: str) -> Turns:
    """The inverse of ``prompt_of``.

    Raises:
      UserError: the text does not read "### Human: … ### Assistant:", with turns that alternate.
    """
    before, *pieces = _MARK.split(f" {prompt} ")
    marks, said = pieces[0::2], pieces[1::2]
    expected = [_MARKS[role] for role in _alternating(len(marks))]
    if before or not marks or len(marks) % 2 or marks != expected or said[-1]:
        shown = repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
        raise UserError(
            f"the prompt {shown} is no conversation: expected '### Human: … ### Assistant:', "
            "with turns that alternate"
        )
    return tuple(said[:-1])


def survives(turns: Turns) -> bool:
    """Whether the prompt gives the turns back: none of them holds what marks a turn."""
    try:
        return turns_of(prompt_of(turns)) == turns
    except UserError:
        return False


def from_tagged(tagged: Sequence[str]) -> Turns | None:
    """The turns of a published prefix; None unless the person and the assistant alternate,
    the person begins and the assistant is to speak."""
    roles = _alternating(len(tagged))
    if not tagged or len(tagged) % 2 or tagged[-1] != ASSISTANT:
        return None
    if not all(text.startswith(role) for role, text in zip(roles, tagged, strict=True)):
        return None
    return tuple(
        text.removeprefix(role) for role, text in zip(roles[:-1], tagged[:-1], strict=True)
    )


class Transcript(NamedTuple):
    """A transcript that ends with the assistant's words."""

    turns: Turns
    response: str
    shortened: bool  # paragraphs without a speaker were left out


def from_transcript(text: str) -> Transcript | None:
    """What the published preprocessing makes of a transcript; None where it makes no prompt.

    Paragraphs are what blank lines separate. One that begins with "Human:" or "Assistant:" is
    stripped and kept, one after another of the same speaker joined to it by a line feed; **any
    other is left out**, so that of an answer of several paragraphs only the first remains.
    """
    spoken: list[tuple[str, list[str]]] = []
    shortened = False
    for paragraph in text.split("\n\n"):
        speaker = next((name for name in _SPEAKERS if paragraph.startswith(name)), None)
        if speaker is None:
            shortened |= bool(paragraph.strip())
            continue
        role = _SPEAKERS[speaker]
        if not spoken or spoken[-1][0] != role:
            spoken.append((role, []))
        spoken[-1][1].append(paragraph.removeprefix(speaker).strip())
    said = ["\n".join(paragraphs) for _, paragraphs in spoken]
    tagged = [role + words for (role, _), words in zip(spoken[:-1], said[:-1], strict=True)]
    turns = from_tagged([*tagged, spoken[-1][0]]) if spoken else None
    return None if turns is None else Transcript(turns, said[-1], shortened)


def clean(text: str) -> str:
    """A generated text as published: without what it says in the person's name, and no "###".

    What follows the first "\\n Human:" goes, then the first "\\nHuman:", then the first
    "\\n### Human"; if the stripped rest ends with "###", every "###" in it goes.
    """
    for mark in _NEXT_TURNS:
        text = text.partition(mark)[0]
    text = text.strip()
    return text.replace("###", "").strip() if text.endswith("###") else text


def _alternating(count: int) -> list[str]:
    """The tags of ``count`` turns, the person's first."""
    return [(PERSON, ASSISTANT)[number % 2] for number in range(count)]
