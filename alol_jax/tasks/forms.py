"""The forms of a row, told apart by their fields: the table `FORMS`.

A form says which fields must be there, and how a row becomes a prompt, its responses and their
rewards. Fields that no form reads are counted, never an error.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from alol_jax.errors import UserError, format_names
from alol_jax.tasks import fields, turns

Counts = collections.Counter[str]

SCORES = ("reward", "score", "label")
"""Where the reward of a single response is; the first that a row has is read. A label that is a
text is none."""
PAIR_SCORES = ("score_chosen", "score_rejected")
BEFORE = ("system", "history")  # what a model reads before the prompt
PAIR = (1.0, 0.0)  # chosen and rejected, where the data have no scores
NO_SCORES = "Rows without scores, whose chosen response has reward 1 and the rejected one 0"


class Row(NamedTuple):
    """What a row says."""

    prompt: str
    responses: tuple[str, ...]
    rewards: tuple[float, ...]  # one per response; empty if none are stored


class Flat(NamedTuple):
    """The columns of a form whose fields are texts and numbers."""

    prompt: tuple[str, ...]  # joined by a blank line; all but the first may be empty
    responses: tuple[str, ...]
    scores: tuple[tuple[str, ...], ...]  # the first that is there, one column per response
    unscored: tuple[float, ...] = ()  # the rewards where no score is stored
    lists: tuple[str, ...] = ()  # columns of lists in the place of responses and scores


class Form(NamedTuple):
    """One form of a row."""

    needs: tuple[str, ...]  # fields that are there; "a|b": one of two
    may: tuple[str, ...]  # fields that are read besides
    # (place, row, counts for the notes) -> what the row says
    read: Callable[[str, Mapping[str, Any], Counts], Row]
    flat: Flat | None = None  # how to read it by columns

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that the form reads."""
        return (*"|".join(self.needs).split("|"), *self.may)


def recognise(there: Collection[str]) -> str | None:
    """Return the name of the first form whose fields are there; None if there is none."""
    for name, form in FORMS.items():
        if all(any(one in there for one in field.split("|")) for field in form.needs):
            return name
    return None


def unknown(where: str, there: Collection[str]) -> UserError:
    """Return the error for a row of no form.

    Args:
      there: its fields.
    """
    known = "; ".join(", ".join(form.needs).replace("|", " or ") for form in FORMS.values())
    names = format_names(sorted(name[:40] for name in there))
    return UserError(
        f"{where}: no form of a row has these fields ({names}): expected {known}; "
        "config.task.columns gives other names"
    )


def one_or_many(where: str, row: Mapping[str, Any], one: str, many: str, kind: type) -> tuple:
    """Return the values of the singular or the plural field; at least one."""
    if fields.has(row, one) and fields.has(row, many):
        raise UserError(f"{where}: has both {one!r} and {many!r}; keep one of them")
    if not fields.has(row, many):
        return (fields.field(where, row, one, kind),)
    values = fields.elements(where, row, many, kind)
    if not values:
        raise UserError(f"{where}, field {many!r}: the list is empty")
    return values


def _responses(where: str, row: Mapping[str, Any], counts: Counts) -> Row:
    """Read prompt, response(s) and reward(s)."""
    prompt = _prompt(where, row, "prompt", counts)
    if isinstance(row.get("response"), list):
        return Row(prompt, (_response(where, row, "response", counts),), _score(where, row))
    responses = one_or_many(where, row, "response", "responses", str)
    for number, text in enumerate(responses, start=1):
        if not text.strip():
            raise UserError(f"{where}: response {number} of {len(responses)} is empty")
    rewards: tuple[float, ...] = ()
    if fields.has(row, "reward") or fields.has(row, "rewards"):
        rewards = one_or_many(where, row, "reward", "rewards", float)
    elif len(responses) == 1:
        rewards = _score(where, row)
    if rewards and len(rewards) != len(responses):
        raise UserError(f"{where}: {len(rewards)} rewards for {len(responses)} responses")
    return Row(prompt, responses, rewards)


def _answer(prompt: str, response: str) -> Callable[[str, Mapping[str, Any], Counts], Row]:
    """Return what reads a prompt and one response, both texts or messages."""

    def read(where: str, row: Mapping[str, Any], counts: Counts) -> Row:
        text = _prompt(where, row, prompt, counts)
        return Row(text, (_response(where, row, response, counts),), _score(where, row))

    return read


def _pair(where: str, row: Mapping[str, Any], counts: Counts) -> Row:
    """Read prompt, chosen and rejected; or the prompt is the common head of the two."""
    chosen, rejected = (_conversation(where, row, name, counts) for name in ("chosen", "rejected"))
    whole = [one is not None and one[0].role != turns.ASSISTANT for one in (chosen, rejected)]
    if whole[0] != whole[1]:
        raise UserError(f"{where}: only one of chosen and rejected has the prompt in it")
    if all(whole):
        texts = _common_head(where, chosen, rejected)
    elif fields.has(row, "prompt"):
        prompt = _prompt(where, row, "prompt", counts)
        answers = tuple(_response(where, row, name, counts) for name in ("chosen", "rejected"))
        texts = (prompt, *answers)
    else:
        raise UserError(
            f"{where}: no prompt: expected a field 'prompt', or two message lists or two "
            "transcripts ('\\n\\nHuman: … \\n\\nAssistant: …') that begin alike"
        )
    return Row(texts[0], texts[1:], _pair_scores(where, row, counts))


def _conversation(
    where: str, row: Mapping[str, Any], name: str, counts: Counts
) -> turns.Turns | None:
    """The turns of a field that is a message list or, without a prompt, a transcript."""
    if isinstance(row.get(name), list):
        found = turns.from_messages(where, row, name, counts)
        if not found:
            raise UserError(f"{where}, field {name!r}: the list has no turns")
        return found
    if fields.has(row, "prompt"):
        return None
    return turns.from_transcript(f"{where}, field {name!r}", fields.field(where, row, name, str))


def _common_head(where: str, chosen: turns.Turns, rejected: turns.Turns) -> tuple[str, str, str]:
    prompt, answer = turns.answered(f"{where}, field 'chosen'", chosen)
    _, other = turns.answered(f"{where}, field 'rejected'", rejected)
    if chosen[:-1] != rejected[:-1]:
        raise UserError(f"{where}: chosen and rejected differ before their last turn")
    return prompt, _filled(where, "chosen", answer), _filled(where, "rejected", other)


def _query(where: str, row: Mapping[str, Any], counts: Counts) -> Row:
    """Read query, response and, where there is one, rejected_response."""
    prompt = _with_history(where, row, _prompt(where, row, "query", counts))
    response = _response(where, row, "response", counts)
    if not fields.has(row, "rejected_response"):
        return Row(prompt, (response,), _score(where, row))
    other = _response(where, row, "rejected_response", counts)
    return Row(prompt, (response, other), _pair_scores(where, row, counts))


def _instruction(where: str, row: Mapping[str, Any], counts: Counts) -> Row:
    """Read instruction, input and output; the input comes after a blank line."""
    prompt = _prompt(where, row, "instruction", counts)
    if fields.has(row, "input"):
        more = fields.field(where, row, "input", str)
        prompt = "\n\n".join(filter(None, (prompt, more)))
    prompt = _with_history(where, row, prompt)
    return Row(prompt, (_response(where, row, "output", counts),), _score(where, row))


def _with_history(where: str, row: Mapping[str, Any], prompt: str) -> str:
    """Return the prompt after a ``system`` turn and the pairs of ``history``, if there are any."""
    before = []
    if row.get("system"):
        before.append(turns.Turn(turns.SYSTEM, fields.field(where, row, "system", str)))
    pairs = fields.field(where, row, "history", list) if fields.has(row, "history") else ()
    for number, pair in enumerate(pairs, start=1):
        place = f"{where}, field 'history', pair {number}"
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_text, pair))):
            raise UserError(f"{place}: expected two texts, a query and its response")
        before += [turns.Turn(turns.USER, pair[0]), turns.Turn(turns.ASSISTANT, pair[1])]
    return turns.prompt_of(where, (*before, turns.Turn(turns.USER, prompt)))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _messages(name: str) -> Callable[[str, Mapping[str, Any], Counts], Row]:
    """Return what reads a list of messages: the last is the response."""

    def read(where: str, row: Mapping[str, Any], counts: Counts) -> Row:
        found = turns.from_messages(where, row, name, counts)
        first = row.get("system")
        if first and not (found and found[0].role == turns.SYSTEM):
            text = fields.field(where, row, "system", str)
            found = (turns.Turn(turns.SYSTEM, text), *found)
        prompt, response = turns.answered(f"{where}, field {name!r}", found)
        return Row(prompt, (response,), _score(where, row))

    return read


def _prompt(where: str, row: Mapping[str, Any], name: str, counts: Counts) -> str:
    """Return a prompt that is a text or a list of messages."""
    if isinstance(row.get(name), list):
        found = turns.from_messages(where, row, name, counts)
        return turns.prompt_of(f"{where}, field {name!r}", found)
    text = fields.field(where, row, name, str)
    if not text.strip():
        raise UserError(f"{where}, field {name!r}: the prompt is empty")
    return text


def _response(where: str, row: Mapping[str, Any], name: str, counts: Counts) -> str:
    """Return a response that is a text or a list with one message of the assistant."""
    if not isinstance(row.get(name), list):
        return _filled(where, name, fields.field(where, row, name, str))
    found = turns.from_messages(where, row, name, counts)
    if len(found) != 1 or found[0].role != turns.ASSISTANT:
        raise UserError(f"{where}, field {name!r}: expected one turn of the assistant")
    return found[0].text


def _filled(where: str, name: str, text: str) -> str:
    if not text.strip():
        raise UserError(f"{where}, field {name!r}: the response is empty")
    return text


def _score(where: str, row: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the reward of a single response, if there is one; true is 1."""
    name = next((name for name in SCORES if _is_score(row, name)), None)
    return () if name is None else (_number(where, row, name),)


def _is_score(row: Mapping[str, Any], name: str) -> bool:
    return fields.has(row, name) and not (name == "label" and isinstance(row[name], str))


def _number(where: str, row: Mapping[str, Any], name: str) -> float:
    if isinstance(row.get(name), bool) and name == "label":
        return float(row[name])
    return fields.field(where, row, name, float)


def _pair_scores(where: str, row: Mapping[str, Any], counts: Counts) -> tuple[float, ...]:
    there = [fields.has(row, name) for name in PAIR_SCORES]
    if not any(there):
        counts[NO_SCORES] += 1
        return PAIR
    return tuple(_number(where, row, name) for name in PAIR_SCORES)


_ONE_SCORE = tuple((name,) for name in SCORES)

FORMS: dict[str, Form] = {
    "a query with two responses": Form(
        ("query", "response", "rejected_response"),
        (*BEFORE, *PAIR_SCORES),
        _query,
        Flat(("query",), ("response", "rejected_response"), (PAIR_SCORES,), PAIR),
    ),
    "a pair": Form(
        ("prompt", "chosen", "rejected"),
        PAIR_SCORES,
        _pair,
        Flat(("prompt",), ("chosen", "rejected"), (PAIR_SCORES,), PAIR),
    ),
    "a pair with its prompt in it": Form(("chosen", "rejected"), PAIR_SCORES, _pair),
    "a prompt and its responses": Form(
        ("prompt", "response|responses"),
        ("rewards", *SCORES),
        _responses,
        Flat(("prompt",), ("response",), _ONE_SCORE, lists=("responses", "rewards")),
    ),
    "a prompt and a completion": Form(
        ("prompt", "completion"),
        SCORES,
        _answer("prompt", "completion"),
        Flat(("prompt",), ("completion",), _ONE_SCORE),
    ),
    "messages": Form(("messages",), ("system", *SCORES), _messages("messages")),
    "ShareGPT's conversations": Form(
        ("conversations",), ("system", *SCORES), _messages("conversations")
    ),
    "an instruction and its output": Form(
        ("instruction", "output"),
        ("input", *BEFORE, *SCORES),
        _instruction,
        Flat(("instruction", "input"), ("output",), _ONE_SCORE),
    ),
    "a query and a response": Form(
        ("query", "response"),
        (*BEFORE, *SCORES),
        _query,
        Flat(("query",), ("response",), _ONE_SCORE),
    ),
}
"""Name -> form. A row that has the fields of several is read as the first."""
