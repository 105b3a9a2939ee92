"""Input formats of reward models: a conversation as token ids, in the form a model was trained on.

    form(tokenizer, turns, response, limit) -> ids

``turns`` are the turns before the response; the first and the last are the person's. Special tokens
are inserted between texts by name; inside the texts they are encoded as plain text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from alol_jax.errors import UserError
from alol_jax.text.tokenizer import SpecialToken, Tokenizer

Form = Callable[[Tokenizer, Sequence[str], str, int], tuple[int, ...]]


def oasst(tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int) -> tuple[int, ...]:
    """``<|prompter|>q<eos><|assistant|>a<eos>…<|assistant|>response<eos>``; drops the first tokens.

    The format of OpenAssistant's reward models (oasst-rm-2.1-pythia-1.4b, oasst-rm-2-pythia-6.9b).
    """
    roles = itertools.cycle((SpecialToken("<|prompter|>"), SpecialToken("<|assistant|>")))
    end = SpecialToken(tokenizer.eos)
    parts = [
        part
        for role, text in zip(roles, (*turns, response), strict=False)
        for part in (role, text, end)
    ]
    return tokenizer.encode_sequence(parts, limit=limit)


def response(
    tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int
) -> tuple[int, ...]:
    """The response alone, with the tokenizer's own special tokens; drops the last tokens."""
    return tokenizer.encode_single(response, limit=limit)


def pair(tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int) -> tuple[int, ...]:
    """The last turn and the response as a pair of texts; truncates the longer one."""
    return tokenizer.encode_pair(turns[-1], response, limit=limit)


def between_ends(
    tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int
) -> tuple[int, ...]:
    """``q<eos>a<eos>…response``, the format of DialogRPT; drops the first tokens."""
    end = SpecialToken(tokenizer.eos)
    parts = [part for text in turns for part in (text, end)]
    return tokenizer.encode_sequence([*parts, response], limit=limit)


def ended(tokenizer: Tokenizer, turns: Sequence[str], response: str, limit: int) -> tuple[int, ...]:
    """``q<eos>a<eos>…response<eos>``, the format of ToxiChat; drops the first tokens."""
    end = SpecialToken(tokenizer.eos)
    parts = [part for text in (*turns, response) for part in (text, end)]
    return tokenizer.encode_sequence(parts, limit=limit)


FORMS: dict[str, Form] = {
    "oasst": oasst,
    "response": response,
    "pair": pair,
    "between_ends": between_ends,
    "ended": ended,
}


def form_of(name: str, where: str) -> Form:
    """Return the form ``name``.

    Raises:
        UserError: there is no such form; the message begins with ``where``.
    """
    if name not in FORMS:
        raise UserError.unknown(f"{where}: no form {name!r}", name, FORMS)
    return FORMS[name]
