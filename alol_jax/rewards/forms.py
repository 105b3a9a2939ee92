"""Input formats of reward models: a conversation as token ids, in the form a model was trained on.

    form(tokenizer, exchange, limit) -> ids

Special tokens are inserted between texts, by name or by the chat template; inside the texts they
are encoded as plain text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from alol_jax.errors import UserError
from alol_jax.text.conversations import Conversations
from alol_jax.text.prompts import ANY_DAY, in_chat
from alol_jax.text.tokenizer import SpecialToken, Tokenizer
from alol_jax.types import ASSISTANT, CHAT, Exchange, Turn

Form = Callable[[Tokenizer, Exchange, int], tuple[int, ...]]


def oasst(tokenizer: Tokenizer, exchange: Exchange, limit: int) -> tuple[int, ...]:
    """``<|prompter|>q<eos><|assistant|>a<eos>…<|assistant|>response<eos>``; drops the first tokens.

    The format of OpenAssistant's reward models (oasst-rm-2.1-pythia-1.4b, oasst-rm-2-pythia-6.9b).
    """
    roles = itertools.cycle((SpecialToken("<|prompter|>"), SpecialToken("<|assistant|>")))
    end = SpecialToken(tokenizer.eos)
    parts = [
        part
        for role, text in zip(roles, (*exchange.turns, exchange.response), strict=False)
        for part in (role, text, end)
    ]
    return tokenizer.encode_sequence(parts, limit=limit)


def response(tokenizer: Tokenizer, exchange: Exchange, limit: int) -> tuple[int, ...]:
    """The response alone, with the tokenizer's own special tokens; drops the last tokens."""
    return tokenizer.encode_single(exchange.response, limit=limit)


def whole(tokenizer: Tokenizer, exchange: Exchange, limit: int) -> tuple[int, ...]:
    """All turns and the response as one text, with spaces between; drops the last tokens."""
    return tokenizer.encode_single(" ".join((*exchange.turns, exchange.response)), limit=limit)


def pair(tokenizer: Tokenizer, exchange: Exchange, limit: int) -> tuple[int, ...]:
    """The task's two texts, by default the last turn and the response; truncates the longer."""
    return tokenizer.encode_pair(*exchange.pair, limit=limit)


def between_ends(tokenizer: Tokenizer, exchange: Exchange, limit: int) -> tuple[int, ...]:
    """``q<eos>a<eos>…response``, the format of DialogRPT; drops the first tokens."""
    end = SpecialToken(tokenizer.eos)
    parts = [part for text in exchange.turns for part in (text, end)]
    return tokenizer.encode_sequence([*parts, exchange.response], limit=limit)


def ended(tokenizer: Tokenizer, exchange: Exchange, limit: int) -> tuple[int, ...]:
    """``q<eos>a<eos>…response<eos>``, the format of ToxiChat; drops the first tokens."""
    end = SpecialToken(tokenizer.eos)
    parts = [part for text in (*exchange.turns, exchange.response) for part in (text, end)]
    return tokenizer.encode_sequence(parts, limit=limit)


def chat(tokenizer: Tokenizer, exchange: Exchange, limit: int) -> tuple[int, ...]:
    """The turns and the response in the model's own chat template; drops the oldest turns.

    The ids are those of `apply_chat_template` without a generation prompt, as Skywork-Reward and
    its kin read them. What is too long is `Conversations.shortened`; a response that has no room by
    itself loses its first tokens, with the template before it.

    Args:
        tokenizer: see `reader`.
    """
    talks = Conversations(tokenizer, (), ANY_DAY, answer_next=False)
    answer = (Turn(ASSISTANT, exchange.response),)
    (ids,) = talks.encode([exchange.conversation + answer])
    if len(ids) > limit:
        ids = talks.shortened(exchange.conversation, limit, answer)[-limit:]
    return tuple(ids.tolist())


FORMS: dict[str, Form] = {
    "oasst": oasst,
    "response": response,
    "whole": whole,
    "pair": pair,
    "between_ends": between_ends,
    "ended": ended,
    CHAT: chat,
}


RELEVANCE, SIMILARITY = "relevance", "similarity"
COSINES = (RELEVANCE, SIMILARITY)
"""Stand in ``reads`` for a sentence encoder, which reads texts one by one (`cosine`)."""


def form_of(name: str, where: str) -> Form:
    """Return the form ``name``.

    Raises:
        UserError: there is no such form; the message begins with ``where``.
    """
    if name not in FORMS:
        raise UserError.unknown(f"{where}: no form {name!r}", name, (*FORMS, *COSINES))
    return FORMS[name]


def reader(tokenizer: Tokenizer, form: Form, where: str) -> Tokenizer:
    """Return the tokenizer that a form needs: for ``chat``, that of the model's own chat template.

    Raises:
        UserError: the model has no chat template, or it fails; the message names ``where``.
    """
    if form is not chat:
        return tokenizer
    if tokenizer.chat is None:
        raise UserError(
            f"{where}={CHAT!r}: the reward model has no chat template (chat_template.jinja, or "
            "chat_template in tokenizer_config.json): put the one that it was trained on into its "
            f"directory, or name another form: {', '.join(name for name in FORMS if name != CHAT)}"
        )
    return in_chat(tokenizer, f"or choose another {where}")
