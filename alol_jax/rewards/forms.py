"""What a reward model reads: a prompt and a response as token ids, in the form it was trained on.

    form(tokenizer, turns, response, limit) -> ids

``turns`` are what was said before, the person first and last. Special tokens are put between texts
by name; in the texts themselves they are spelled out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from alol_jax.text.tokenizer import SpecialToken, Tokenizer
from alol_jax.types import UserError

Form = Callable[[Tokenizer, Sequence[str], str, int], tuple[int, ...]]


def oasst(tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int) -> tuple[int, ...]:
    """``<|prompter|>q<eos><|assistant|>a<eos>…<|assistant|>response<eos>``; the oldest are cut.

    OpenAssistant's reward models (oasst-rm-2.1-pythia-1.4b, oasst-rm-2-pythia-6.9b).
    """
    roles = itertools.cycle((SpecialToken("<|prompter|>"), SpecialToken("<|assistant|>")))
    end = SpecialToken(tokenizer.eos)
    parts = [
        part
        for role, said in zip(roles, (*turns, response), strict=False)
        for part in (role, said, end)
    ]
    return tokenizer.encode_sequence(parts, limit=limit)


def response(
    tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int
) -> tuple[int, ...]:
    """The response alone, between the tokenizer's own special tokens; the last are cut."""
    return tokenizer.encode_single(response, limit=limit)


def pair(tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int) -> tuple[int, ...]:
    """The last turn and the response as the tokenizer's pair of texts; the longer is cut."""
    return tokenizer.encode_pair(turns[-1], response, limit=limit)


def between_ends(
    tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int
) -> tuple[int, ...]:
    """``q<eos>a<eos>…response``: DialogRPT's context and answer; the oldest are cut."""
    end = SpecialToken(tokenizer.eos)
    parts = [part for said in turns for part in (said, end)]
    return tokenizer.encode_sequence([*parts, response], limit=limit)


def ended(tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int) -> tuple[int, ...]:
    """``q<eos>a<eos>…response<eos>``: ToxiChat's utterances; the oldest are cut."""
    end = SpecialToken(tokenizer.eos)
    parts = [part for said in (*turns, response) for part in (said, end)]
    return tokenizer.encode_sequence(parts, limit=limit)


FORMS: dict[str, Form] = {
    "oasst": oasst,
    "response": response,
    "pair": pair,
    "between_ends": between_ends,
    "ended": ended,
}


def form_of(name: str, where: str) -> Form:
    """The form called ``name``; an unknown one is a UserError that begins with ``where``."""
    if name not in FORMS:
        raise UserError.unknown(f"{where}: no form {name!r}", name, FORMS)
    return FORMS[name]
