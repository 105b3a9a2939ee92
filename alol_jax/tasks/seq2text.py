"""Texts to texts: six data sets of RL4LMs (Ramamurthy et al. 2023, arXiv 2210.01241), as tasks.

Summaries (XSum, CNN/DailyMail), the rest of a review (IMDB), translations (IWSLT 2017), the next
turn (DailyDialog) and sentences from words (CommonGen). Each is a row of `SOURCES`: what the model
reads, and how prompts and responses are made of a raw row. A prompt is the source text alone; what
decorates it ("TL;DR:") is the template's. White space around prompts and responses is dropped.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alol_jax.errors import UserError
from alol_jax.tables.table import Table
from alol_jax.tasks import fields, sources
from alol_jax.tasks import splits as splitting
from alol_jax.tasks.text_rewards import TEXT_REWARDS
from alol_jax.types import Example, Progress, RewardSpec, Splits, Task, one_turn, unseen

Counts = collections.Counter[str]
Raw = Mapping[str, Any]

END = "<|endoftext|>"  # after every turn; the published <EOU> is replaced by it, too
TURNS = 5  # of DailyDialog before a response
LABELS = ("negative", "positive")  # of IMDB
KEYS = {"train": "train_files", "validation": "validation_files", "test": "test_files"}
"""Split -> its key of ``config.task``."""
COVERAGE = RewardSpec("coverage", "concept_coverage", "{prompt}\n{response}", 1.0)


class Pair(NamedTuple):
    """A prompt and its responses, of a raw row."""

    prompt: str
    responses: tuple[str, ...]
    label: str = ""  # of the row; "" = its data set has none
    fault: str = ""  # why it cannot be used


Read = Callable[[str, Raw], Iterator[Pair]]
"""(place for messages, raw row) -> its pairs."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: of its task.
        template: what the model reads, with ``{prompt}``.
        read: makes pairs of a raw row.
        trained: the label of the rows to train on; "" = all.
        rewards, turns, marks, shorten: as in `Task`.
    """

    name: str
    template: str
    read: Read
    trained: str = ""
    rewards: tuple[RewardSpec, ...] = TEXT_REWARDS
    turns: Callable[[str], tuple[str, ...]] = one_turn
    marks: tuple[str, ...] = ()
    shorten: Callable[[str], str | None] | None = None

    def load(self, options: Any, progress: Progress = unseen) -> Splits:
        """Read the files named in the options.

        A split without files is split off from the training prompts. Test prompts that are
        validation prompts are dropped, then training prompts that are either. All responses to a
        prompt become one example.

        Args:
          options: ``train_files``, ``validation_files``, ``test_files`` (tuples of files, or of hub
            splits like "abisee/cnn_dailymail:3.0.0:train"), ``validation`` and ``test`` (prompts to
            keep, 0 for all; or to split off), ``limit`` (training prompts, 0 for all).
          progress: shows how much of a big file has been read.

        Raises:
          UserError: a file is missing or unreadable, or a row has another form.
        """
        counts: Counts = collections.Counter()
        tables, cut = {}, {}
        commits: list[str] = []
        for split, key in KEYS.items():
            names = _listed(options, key)
            cut[split] = 0 if names else _to_split_off(split, options)
            examples = Table.of(self._examples(split, names, counts, commits, progress), Example)
            tables[split] = splitting.group_by_prompt(examples, examples["prompt"])
        tables = _with_parts(tables, cut, options)
        if self.trained:
            whole = tables["train"]
            tables["train"] = whole.where(whole["source"].equal(self.trained))
            left = len(whole) - len(tables["train"])
            counts[f"Left out train prompts that are not {self.trained}"] = left
        notes = (*commits, *(f"{what}: {count}." for what, count in counts.items() if count))
        splits = splitting.held_apart(Splits(**tables, notes=notes))
        return splitting.limit_train(splits, options.limit)

    def _examples(
        self,
        split: str,
        names: tuple[str, ...],
        counts: Counts,
        commits: list[str],
        progress: Progress,
    ) -> Iterator[Example]:
        """Yield the usable pairs of a split; count the others, and note commits of the hub."""
        seen: set[bytes] = set()
        number = 0
        for name in names:
            for where, row in sources.read_listed(name, commits.append, progress):
                for pair in self.read(where, row):
                    pair = pair._replace(
                        prompt=pair.prompt.strip(), responses=_stripped(pair.responses)
                    )
                    fault, row_id = pair.fault or _fault(pair, seen), f"{split}:{number}"
                    number += 1
                    if fault:
                        counts[f"Dropped {split} rows {fault}"] += 1
                    else:
                        source = pair.label or self.name
                        yield Example(row_id, pair.prompt, pair.responses, source)


def files(options: Any) -> tuple[Path, ...]:
    """Return the local files that a task loads."""
    return tuple(
        Path(name)
        for key in KEYS.values()
        for name in _listed(options, key)
        if sources.is_file(name)
    )


def _listed(options: Any, key: str) -> tuple[str, ...]:
    if isinstance(options[key], str):
        raise UserError(f"task.{key} is a text: expected a tuple, ({options[key]!r},)")
    return options[key]


def _to_split_off(split: str, options: Any) -> int:
    """The number of training prompts that become a split without files."""
    if split == "train":
        raise UserError("task.train_files is empty: name files or hub splits")
    if options[split] < 1:
        raise UserError(
            f"task.{KEYS[split]} is empty and task.{split} is {options[split]}: name files, or say "
            "how many training prompts to split off"
        )
    return options[split]


def _with_parts(
    tables: dict[str, Table[Example]], cut: Mapping[str, int], options: Any
) -> dict[str, Table[Example]]:
    """Split off ``cut[split]`` training prompts for each split; keep the wanted ones of others."""
    if any(cut.values()):
        parts = splitting.split_by_prompt(
            tables["train"], validation=cut["validation"], test=cut["test"]
        )
        tables["train"] = parts.train
        held_out = {"validation": parts.validation, "test": parts.test}
        tables |= {split: held_out[split] for split in held_out if cut[split]}
    for split in ("validation", "test"):
        if not cut[split]:
            tables[split] = splitting.first_prompts(tables[split], split, options[split])
    return tables


def _stripped(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _fault(pair: Pair, seen: set[bytes]) -> str:
    """Why a pair cannot be used, or ""; ``seen`` learns it."""
    if not pair.prompt:
        return "with an empty prompt"
    if not pair.responses:
        return "with an empty response"
    digest = hashlib.blake2b(digest_size=16)
    for text in (pair.prompt, *pair.responses):
        digest.update(text.encode("utf-8") + b"\0")
    if digest.digest() in seen:
        return "that repeat an earlier one"
    seen.add(digest.digest())
    return ""


# how rows are read


def texts(prompt: str, *responses: str) -> Read:
    """A field is the prompt; the first of some fields that is there is the response."""

    def read(where: str, row: Raw) -> Iterator[Pair]:
        name = next((name for name in responses if fields.has(row, name)), responses[0])
        texts = [fields.field(where, row, field, str) for field in (prompt, name)]
        yield Pair(texts[0], (texts[1],))

    return read


def halves(where: str, row: Raw) -> Iterator[Pair]:
    """The first half of the words of ``text`` is the prompt; ``label`` is 0 or 1."""
    words = fields.field(where, row, "text", str).split(" ")
    label = fields.field(where, row, "label", int)
    if label not in (0, 1):
        raise UserError(f"{where}: label {label}: expected 0 (negative) or 1 (positive)")
    middle = len(words) // 2
    yield Pair(" ".join(words[:middle]), (" ".join(words[middle:]),), LABELS[label])


def translation(where: str, row: Raw) -> Iterator[Pair]:
    """``translation`` is a map of languages to texts; from English to German."""
    both = fields.field(where, row, "translation", dict)
    inside = f"{where}, field 'translation'"
    english, german = (fields.field(inside, both, name, str) for name in ("en", "de"))
    yield Pair(english, (german,))


def conversation(where: str, row: Raw) -> Iterator[Pair]:
    """``dialog`` is a list of turns; each that has five before it is a response to these."""
    turns = [turn.strip() for turn in fields.elements(where, row, "dialog", str)]
    if len(turns) <= TURNS:
        yield Pair("", (), fault=f"of at most {TURNS} turns")
    for place in range(TURNS, len(turns)):
        before = turns[place - TURNS : place]
        fault = "with an empty turn" if not all(before) else ""
        if any(END in turn for turn in (*before, turns[place])):
            fault = f"with {END} in a turn"
        yield Pair(END.join(before), (turns[place],), fault=fault)


def words(where: str, row: Raw) -> Iterator[Pair]:
    """``concepts`` is a list of words; the responses are ``references`` or else ``target``."""
    concepts = fields.elements(where, row, "concepts", str)
    responses: tuple[str, ...] = ()
    if fields.has(row, "references"):
        responses = fields.elements(where, row, "references", str)
    if not responses:
        responses = (fields.field(where, row, "target", str),)
    single = all(len(concept.split()) == 1 for concept in concepts)
    fault = "" if single else "with a concept that is not one word"
    yield Pair(" ".join(map(str.strip, concepts)), responses, fault=fault)


# turns


def turns_of(prompt: str) -> tuple[str, ...]:
    """Return the turns of a prompt of DailyDialog."""
    return tuple(prompt.split(END))


def shorten(prompt: str) -> str | None:
    """Return the prompt without its oldest turn; None if it has only one."""
    _, end, rest = prompt.partition(END)
    return rest if end else None


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("xsum", "{prompt}TL;DR:", texts("document", "target", "summary")),
        Source("cnn_dailymail", "Summarize: {prompt}", texts("article", "highlights")),
        Source("imdb", "{prompt}", halves, trained="positive"),
        Source("iwslt_en_de", "translate English to German: {prompt}", translation),
        Source(
            "daily_dialog",
            "{prompt}" + END,
            conversation,
            turns=turns_of,
            marks=(END,),
            shorten=shorten,
        ),
        Source(
            "common_gen",
            "generate a sentence with: {prompt}.",
            words,
            rewards=(*TEXT_REWARDS, COVERAGE),
        ),
    )
}
"""Name of a task -> its data set."""

SEQ2TEXT: tuple[Task, ...] = tuple(
    Task(
        name=source.name,
        load=source.load,
        files=files,
        template=source.template,
        stop=(),
        rewards=source.rewards,
        turns=source.turns,
        marks=source.marks,
        shorten=source.shorten,
    )
    for source in SOURCES.values()
)
