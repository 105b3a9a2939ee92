"""The four forms of a conversation in the Helpful-and-Harmless data.

===============  ===============================================================================
turns            ("hi", "hello", "bye"): alternating turns, the first and the last the person's
tagged           ["<|prompter|>hi", "<|assistant|>hello", "<|prompter|>bye", "<|assistant|>"]
transcript       "\\n\\nHuman: hi\\n\\nAssistant: hello\\n\\nHuman: bye\\n\\nAssistant: see you"
prompt           "### Human: hi ### Assistant: hello ### Human: bye ### Assistant:"
===============  ===============================================================================

The paper trains on tagged rows, Anthropic/hh-rlhf publishes transcripts, and the language model
reads the prompt after the system sentence. The conversions match the published ones byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from alol_jax.errors import UserError

Turns = tuple[str, ...]

TEMPLATE = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.\n{prompt}"
)
STOP = (
    "###",
    " ###",
)  # the published stop is Llama's token "▁###" (835); " ###" is for BPE tokenizers

PERSON, ASSISTANT = "<|prompter|>", "<|assistant|>"
_MARKS = {PERSON: " ### Human: ", ASSISTANT: " ### Assistant: "}
_MARK = re.compile("({})".format("|".join(map(re.escape, _MARKS.values()))))
_SPEAKERS = {"Human:": PERSON, "Assistant:": ASSISTANT}
_NEXT_TURNS = ("\n Human:", "\nHuman:", "\n### Human")


def prompt_of(turns: Sequence[str]) -> str:
    """Build the prompt: the turns, then the mark after which the assistant answers.

    As in the published code, a tag inside a turn's text becomes a mark too. ``turns_of`` cannot
    undo that, so such rows are left out.
    """
    roles = _alternating(len(turns) + 1)
    text = "".join(role + words for role, words in zip(roles, (*turns, ""), strict=True))
    for tag, mark in _MARKS.items():
        text = text.replace(tag, mark)
    return text.strip()


def turns_of(prompt: str) -> Turns:
    """Split a prompt into turns, the inverse of ``prompt_of``.

    Raises:
      UserError: the prompt is not "### Human: … ### Assistant:" with alternating turns.
    """
    before, *pieces = _MARK.split(f" {prompt} ")
    marks, texts = pieces[0::2], pieces[1::2]
    expected = [_MARKS[role] for role in _alternating(len(marks))]
    if before or not marks or len(marks) % 2 or marks != expected or texts[-1]:
        shown = repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")
        raise UserError(
            f"the prompt {shown} is no conversation: expected '### Human: … ### Assistant:', "
            "with turns that alternate"
        )
    return tuple(texts[:-1])


def round_trips(turns: Turns) -> bool:
    """Whether ``turns_of`` recovers the turns, that is, no turn contains a mark."""
    try:
        return turns_of(prompt_of(turns)) == turns
    except UserError:
        return False


def from_tagged(tagged: Sequence[str]) -> Turns | None:
    """Return the turns of a published prefix.

    None unless person and assistant alternate, the person begins and the assistant is next.
    """
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
    shortened: bool  # whether paragraphs without a speaker were left out


def from_transcript(text: str) -> Transcript | None:
    """Parse a transcript like the published preprocessing; None if it gives no prompt.

    Paragraphs are separated by blank lines. A paragraph that begins with "Human:" or "Assistant:"
    is stripped and kept; consecutive ones of one speaker are joined by a newline. **All others are
    dropped**, so only the first paragraph of a longer answer remains.
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
    texts = ["\n".join(paragraphs) for _, paragraphs in spoken]
    tagged = [role + words for (role, _), words in zip(spoken[:-1], texts[:-1], strict=True)]
    turns = from_tagged([*tagged, spoken[-1][0]]) if spoken else None
    return None if turns is None else Transcript(turns, texts[-1], shortened)


def clean(text: str) -> str:
    """Clean a generated text as published: cut off turns that the model wrote for the person.

    Cuts at the first "\\n Human:", then at the first "\\nHuman:", then at the first "\\n### Human".
    If the stripped rest ends with "###", removes every "###".
    """
    for mark in _NEXT_TURNS:
        text = text.partition(mark)[0]
    text = text.strip()
    return text.replace("###", "").strip() if text.endswith("###") else text


def _alternating(count: int) -> list[str]:
    """Return the tags of ``count`` turns, the person's first."""
    return [(PERSON, ASSISTANT)[number % 2] for number in range(count)]
