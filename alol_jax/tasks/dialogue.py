"""Knowledge-grounded dialogue: Wizard of Wikipedia and FaithDial.

Dinan et al. 2019 (arXiv 1811.01241), Dziri et al. 2022 (arXiv 2204.10757). Rows of three forms are
read, from JSON lists, JSON lines or the hub:

* a conversation of Wizard of Wikipedia: ``dialog``, turns with ``speaker``, ``text`` and, where the
  wizard speaks, ``checked_sentence``;
* a conversation of FaithDial: ``utterances``, a list of the next form;
* an answer of FaithDial: ``knowledge``, ``history`` (a list of turns) and ``response``; its stored
  reward, a number, may stand beside them as ``reward``.

Prompts are ``Knowledge: …<|endoftext|>turn<|endoftext|>turn``. One that is too long for the model
loses its oldest turns, never its knowledge.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alol_jax.errors import UserError
from alol_jax.tables.table import Table
from alol_jax.tasks import fields, sources
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.text_rewards import TEXT_REWARDS
from alol_jax.types import SYSTEM, Example, Progress, Splits, Task, Turn, alternating, unseen

Counts = collections.Counter[str]

END = "<|endoftext|>"
KNOWLEDGE = "Knowledge: "
NOTHING = "no_passages_used"  # stands where a wizard used no sentence
KEYS = {"train": "train_files", "validation": "validation_files", "test": "test_files"}
"""Split -> its key of ``config.task``."""


class Answer(NamedTuple):
    """An answer, with what was said before it and the sentence that it rests on."""

    knowledge: str
    history: tuple[str, ...]
    response: str
    rewards: tuple[float, ...] = ()  # one, if the row stores one


def load(options: Any, progress: Progress = unseen) -> Splits:
    """Read the files named in the options. Every usable answer becomes one example.

    Prompts that are in a later split are dropped, and counted.

    Args:
      options: ``train_files``, ``validation_files``, ``test_files`` (tuples of files, or of hub
        splits like "McGill-NLP/FaithDial:train"), ``validation`` and ``test`` (prompts to keep, 0
        for all), ``limit`` (training prompts, 0 for all).
      progress: shows how much of a big file has been read.

    Raises:
      UserError: a file is missing, unreadable or empty, or a row has none of the three forms.
    """
    counts: Counts = collections.Counter()
    tables: dict[str, Table[Example]] = {}
    commits: list[str] = []
    for split, key in KEYS.items():
        for name in _names(options, key):
            sources.check_published(key, name)
        rows = (
            example
            for number, name in enumerate(_names(options, key))
            for example in _examples(split, number, name, counts, commits, progress)
        )
        examples = Table.of(rows, Example)
        tables[split] = splitting.group_by_prompt(examples, examples["prompt"])
    for split in ("validation", "test"):
        tables[split] = splitting.first_prompts(tables[split], split, options[split])
    notes = (*commits, *(f"{what}: {count}." for what, count in counts.items() if count))
    return splitting.limit_train(splitting.held_apart(Splits(**tables, notes=notes)), options.limit)


def files(options: Any) -> tuple[Path, ...]:
    """Return the local files that ``load`` reads."""
    names = [name for key in KEYS.values() for name in _names(options, key)]
    return tuple(Path(name) for name in names if sources.is_file(name))


def _names(options: Any, key: str) -> tuple[str, ...]:
    """The files and hub splits of a key, which must be several texts."""
    names = options[key]
    if isinstance(names, str):
        raise UserError(f"task.{key} is a text: expected a tuple, ({names!r},)")
    if not names:
        raise UserError(f"task.{key} is empty: name files or hub splits")
    return tuple(names)


def _examples(
    split: str,
    number: int,
    name: str,
    counts: Counts,
    commits: list[str],
    progress: Progress,
) -> Iterator[Example]:
    """Yield the usable answers of a file or hub split, and note the commit of the latter."""
    source = _source(name)
    place = 0
    for where, row in sources.read_listed(name, commits.append, progress):
        for answer in _answers(where, row, split, counts):
            fault = _fault(answer)
            place += 1
            if fault:
                counts[f"Dropped {split} answers {fault}"] += 1
                continue
            prompt = prompt_of(answer.knowledge, answer.history)
            row_id = f"{split}/{number}.{source}:{place}"
            yield Example(row_id, prompt, (answer.response,), source, answer.rewards)
    if not place:
        raise UserError(f"{name}: the file has no answers")


def _answers(where: str, row: Mapping[str, Any], split: str, counts: Counts) -> Iterator[Answer]:
    if fields.has(row, "dialog"):
        turns = fields.field(where, row, "dialog", list)
        yield from _of_wizard(where, turns, split, counts)
    elif fields.has(row, "utterances"):
        for part in fields.field(where, row, "utterances", list):
            if not isinstance(part, dict):
                raise UserError(f"{where}, field 'utterances': expected a list of objects")
            yield _of_faithdial(where, part)
    elif fields.has(row, "history"):
        yield _of_faithdial(where, row)
    else:
        found = ", ".join(sorted(row)) or "none"
        raise UserError(
            f"{where}: neither a conversation (field 'dialog' or 'utterances') nor an answer "
            f"('knowledge', 'history', 'response'); found: {found}"
        )


def _of_wizard(where: str, turns: Sequence[Any], split: str, counts: Counts) -> Iterator[Answer]:
    """Yield the wizard's answers that rest on a sentence. Every turn belongs to the history."""
    history: list[str] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise UserError(f"{where}, field 'dialog': expected a list of objects")
        text = fields.field(where, turn, "text", str)
        if "Wizard" in fields.field(where, turn, "speaker", str):
            sentences = turn.get("checked_sentence") or {}
            if not isinstance(sentences, dict):
                raise UserError(f"{where}, field 'checked_sentence': expected a map")
            knowledge = next(iter(sentences.values()), "")
            if not knowledge or knowledge == NOTHING:
                counts[f"Left out {split} answers that rest on no sentence"] += 1
            else:
                yield Answer(str(knowledge), tuple(history), text)
        history.append(text)


def _of_faithdial(where: str, row: Mapping[str, Any]) -> Answer:
    return Answer(
        fields.field(where, row, "knowledge", str),
        fields.elements(where, row, "history", str),
        fields.field(where, row, "response", str),
        (fields.field(where, row, "reward", float),) if fields.has(row, "reward") else (),
    )


def _fault(answer: Answer) -> str:
    if not any(turn.strip() for turn in answer.history):
        return "without a history"
    if not answer.response.strip() or not answer.knowledge.strip():
        return "without a text or knowledge"
    if any(END in text for text in (answer.knowledge, *answer.history, answer.response)):
        return f"with {END} in a text"
    return ""


def _source(name: str) -> str:
    """The name of a file or hub split, as a source."""
    if sources.is_file(name):
        stem, folder = sources.stem(Path(name)), Path(name).parent.name
        return f"{folder}_{stem}" if folder else stem
    return name.rpartition("/")[2].split(":")[0].lower()


def prompt_of(knowledge: str, turns: Sequence[str]) -> str:
    """Return the prompt of these turns."""
    return END.join((KNOWLEDGE + knowledge, *turns))


def turns_of(prompt: str) -> tuple[str, ...]:
    """Return the turns of a prompt, without the knowledge."""
    return tuple(prompt.split(END)[1:])


def messages_of(prompt: str) -> tuple[Turn, ...]:
    """Return what a chat template reads: the knowledge as a system turn, and the turns."""
    return (Turn(SYSTEM, prompt.split(END)[0]), *alternating(turns_of(prompt)))


def pair(prompt: str, response: str) -> tuple[str, str]:
    """Return what a critic of faithfulness reads: knowledge and response."""
    return prompt.split(END)[0].removeprefix(KNOWLEDGE), response


def shorten(prompt: str) -> str | None:
    """Return the prompt without its oldest turn; None if it has only one."""
    knowledge, *turns = prompt.split(END)
    return None if len(turns) < 2 else END.join((knowledge, *turns[1:]))


DIALOGUE = Task(
    name="dialogue",
    load=load,
    files=files,
    template="{prompt}" + END,
    stop=(),
    rewards=TEXT_REWARDS,
    turns=turns_of,
    messages=messages_of,
    pair=pair,
    marks=(END,),
    shorten=shorten,
)
